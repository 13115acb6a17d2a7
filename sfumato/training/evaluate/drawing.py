"""Many captions drawn together: each row of a forward is another caption's picture."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sfumato.core.request import Request
from sfumato.engine.decode import decode
from sfumato.engine.denoiser import Denoiser
from sfumato.engine.driver import run
from sfumato.engine.streams import Streams
from sfumato.families.types import Model
from sfumato.tasks.settle import settle
from sfumato.tasks.text_to_image import Beginning, Run

TOGETHER = 32


@torch.inference_mode()
def draw(model: Model, requests: Sequence[Request]) -> Tensor:
    """Pictures of one size, what ``text_to_image`` gives for each request of one picture up to rounding.

    Returns:
        [N, 3, H, W] uint8.
    """
    pictures = []
    for start in range(0, len(requests), TOGETHER):
        jobs, scales = [], []
        shared: Denoiser | None = None
        for request in requests[start : start + TOGETHER]:
            settled = settle(request, model)
            made = Run(model, settled, settled.sigmas)
            shared = shared or replace(made.denoiser(), rows=2 * TOGETHER)
            streams = Streams(settled.seeds, settled.latent_shape, model.device, settled.request.noise)
            x = streams() * made.plan.initial_scale(settled.sigmas[0])
            jobs.append(made.job(x, Beginning(x, streams), None, shared))
            scales.append(made.plan.final_scale(settled.sigmas[-1]))
        latents = torch.cat([x * scale for x, scale in zip(run(jobs), scales, strict=True)])
        pictures.append(decode(model, latents)[0])
    return torch.cat(pictures)

