"""Nothing in the step loop waits for the device: it runs on the meta device, where no number can be read."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato import guidance
from sfumato.engine.denoiser import Denoiser, Shortcut
from sfumato.engine.driver import Job, run
from sfumato.engine.lossy.step_cache import StepCache
from sfumato.engine.streams import Streams
from sfumato.models.dit import DiT, DiTConfig
from sfumato.models.unet import UNet, UNetConfig
from sfumato.nn.conditioning import Conditioning
from sfumato.noise.schedule import discrete
from sfumato.sampling import TABLE
from sfumato.sampling.plan import usual

META = torch.device("meta")
WAITS = {"dpm_adaptive": "its steps are as long as the error allows, which has to be read"}
"""Samplers that look at numbers, and why."""


def tiny_unet() -> UNet:
    return UNet(UNetConfig(
        block_out_channels=(8, 16), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=4, cross_attention_dim=3,
        attention_head_dim=2, layers_per_block=1,
    ))  # fmt: skip


def tiny_dit() -> DiT:
    return DiT(DiTConfig(num_attention_heads=2, attention_head_dim=8, num_layers=3, sample_size=8))


def toy(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    return torch.tanh(x).repeat(len(conditioning) // len(x), 1, 1, 1) * t.mean()


def draw(
    network: Any, told: Mapping[str, Conditioning], sampler: str = "euler", shortcuts: tuple[Shortcut, ...] = ()
) -> Tensor:
    plan = usual(discrete(), "epsilon", sampler)
    sigmas = plan.sigmas(4)
    streams = Streams([1, 2], (4, 8, 8), META, "philox")
    guide = guidance.build(3.0, guidance_rescale=0.5, guidance_interval=(0.1, 10.0), dynamic_threshold=0.99)
    job = Job(
        plan.start(streams() * sigmas[0], sigmas, streams), sigmas, Denoiser(network, META), plan, guide, told,
        shortcuts=shortcuts,
    )
    with torch.inference_mode():
        [result] = run([job])
    return result


def test_a_number_that_is_read_is_noticed() -> None:
    told = {name: Conditioning(context=torch.zeros(2, 5, 3, device=META)) for name in ("positive", "negative")}

    def reads(x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return toy(x, t, conditioning) * float(x.mean())

    with pytest.raises(RuntimeError, match="meta"):
        draw(reads, told)


@pytest.mark.parametrize("sampler", [name for name in TABLE if name not in WAITS])
def test_samplers_and_guidance(sampler: str) -> None:
    told = {name: Conditioning(context=torch.zeros(2, 5, 3, device=META)) for name in ("positive", "negative")}
    result = draw(toy, told, sampler)
    assert result.shape == (2, 4, 8, 8)
    assert result.device == META


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_networks(kind: str, cached: bool) -> None:
    network: UNet | DiT
    with META:
        if kind == "unet":
            network = tiny_unet()
            rows = {name: Conditioning(context=torch.zeros(2, 5, 3)) for name in ("positive", "negative")}
        else:
            network = tiny_dit()
            rows = {name: Conditioning(labels=torch.zeros(2, dtype=torch.long)) for name in ("positive", "negative")}
    assert draw(network.eval(), rows, shortcuts=(StepCache(2, 1),) if cached else ()).device == META
