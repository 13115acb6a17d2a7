"""Pictures of a denoiser that is not a whole text-to-image model: unconditional ones, classes, those on pixels."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sfumato import guidance
from sfumato.engine.denoiser import Denoiser, Network
from sfumato.engine.driver import Job, run
from sfumato.engine.streams import Streams
from sfumato.nn.conditioning import Conditioning
from sfumato.sampling.plan import Plan

TOGETHER = 8
"""Pictures in a forward."""


@torch.inference_mode()
def draw(
    network: Network, plan: Plan, conditionings: Mapping[str, Conditioning], shape: tuple[int, ...],
    seeds: Sequence[int], steps: int, cfg_scale: float, device: torch.device,
) -> Tensor:
    """From noise to what the network was trained on.

    Args:
        conditionings: "positive", with a row for each seed; and "negative" with as many, unless ``cfg_scale`` is 1.
        shape: of one picture or its latents, (C, H, W).

    Returns:
        [N, C, H, W], row i with seed i.

    Raises:
        NumericError: the network gave NaN or infinity. RequestError: the schedule has not so many steps.
    """
    guide = guidance.build(cfg_scale, **plan.guidance)
    sigmas, denoiser = plan.sigmas(steps), Denoiser(network, device)
    jobs = []
    for start in range(0, len(seeds), TOGETHER):
        rows = slice(start, start + TOGETHER)
        streams = Streams(seeds[rows], shape, device, "philox")
        x = streams() * plan.initial_scale(sigmas[0])
        told = {name: conditioning.rows(rows) for name, conditioning in conditionings.items()}
        jobs.append(Job(plan.start(x, sigmas, streams), sigmas, denoiser, plan, guide, told))
    return torch.cat([run([job])[0] for job in jobs]) * plan.final_scale(sigmas[-1])
