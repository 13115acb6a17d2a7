"""A training step beside diffusers' own (its models and scheduler in a plain loop), and what latents save.

The same U-Net with the same weights, the same batch, times and noise, the same loss and optimiser; each subject has its
own process. Three rows: with cached latents; with encoding on the fly; and sfumato's latent run against its pixel run
of the same U-Net. A turn is ``STEPS`` steps.
"""

import sys
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Process, compare
from benchmarks.report import machine, report

STEPS, BATCH, PIXELS, FACTOR = 2, 8, 32, 4
UNET: dict[str, Any] = {
    "block_out_channels": [64, 128], "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": 1, "attention_head_dim": 4,
    "cross_attention_dim": 96,
}
VAE: dict[str, Any] = {
    "block_out_channels": [32, 64, 128], "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3, "layers_per_block": 1, "latent_channels": 4, "sample_size": PIXELS,
}
Subject = tuple[Callable[[], Tensor], dict[str, str]]


def main(turns: int = 3) -> None:
    torch.set_num_threads(1)
    about, rows = machine(), []
    for name, fresh in (("cached latents", False), ("encoding on the fly", True)):
        subjects = {"diffusers": Process(diffusers, fresh), "sfumato": Process(sfumato, fresh)}
        # AdamW's first step goes by the signs of gradients, of which those near 0 hang on the order of sums.
        rows.append(compare(f"training step, {name}", subjects, turns, limit=1e-2))
        end(subjects)
    subjects = {"in pixels": Process(sfumato, False, True), "in latents": Process(sfumato, False)}
    rows.append(compare(f"the same U-Net, {PIXELS} x {PIXELS} pictures", subjects, turns, limit=float("inf")))
    end(subjects)
    for row in rows:
        for subject, found in row.subjects.items():
            row.notes[f"{subject}, pictures/s"] = f"{STEPS * BATCH / median(found.seconds):.1f}"
    report("training_step", rows, about)


def end(subjects: dict[str, Process]) -> None:
    for subject in subjects.values():
        subject.end()


def weights(channels: int) -> tuple[Any, Any]:
    """diffusers' U-Net and autoencoder, the same in every process."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(in_channels=channels, out_channels=channels, **UNET)  # type: ignore[no-untyped-call]
    vae: Any = AutoencoderKL(**VAE)  # type: ignore[no-untyped-call]
    return unet, vae.eval().requires_grad_(False)


def batches(channels: int, side: int) -> Iterator[dict[str, Tensor]]:
    """One batch after the other."""
    drawn = torch.Generator().manual_seed(1)
    while True:
        yield {
            "pixels": torch.rand(BATCH, 3, PIXELS, PIXELS, generator=drawn) * 2 - 1,
            "latents": torch.randn(BATCH, channels, side, side, generator=drawn),
            "noise": torch.randn(BATCH, channels, side, side, generator=drawn),
            "time": torch.randint(0, 1000, (BATCH,), generator=drawn),
            "context": torch.randn(BATCH, 24, 96, generator=drawn),
        }


def trained(network: torch.nn.Module, loss: Callable[[dict[str, Tensor]], Tensor], channels: int, side: int) -> Subject:
    """A turn: ``STEPS`` steps of AdamW from the weights as they were; its output is the last gradient of a layer."""
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    layer = network.get_parameter("mid_block.resnets.0.conv1.weight")

    def turn() -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            network.load_state_dict(start)
            optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
            source = batches(channels, side)
            for _ in range(STEPS):
                value = loss(next(source))
                torch.autograd.backward(value)
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                assert layer.grad is not None
                gradient = layer.grad.clone()
                optimizer.step()
                optimizer.zero_grad()
            return gradient

    return turn, {}


def diffusers(fresh: bool) -> Subject:
    from diffusers import DDPMScheduler

    unet, vae = weights(4)
    unet.train()
    scheduler: Any = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)  # type: ignore[no-untyped-call]

    def loss(batch: dict[str, Tensor]) -> Tensor:
        x = batch["latents"]
        if fresh:
            with torch.no_grad():
                found = vae.encode(batch["pixels"]).latent_dist
                x = (found.mean + found.std * batch["latents"]) * 0.18215
        noisy = scheduler.add_noise(x, batch["noise"], batch["time"])
        said: Tensor = unet(noisy, batch["time"], batch["context"]).sample
        return F.mse_loss(said, batch["noise"])

    return trained(unet, loss, 4, PIXELS // FACTOR)


def sfumato(fresh: bool, pixels: bool = False) -> Subject:
    from sfumato.core.config import from_dict
    from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
    from sfumato.models.unet import UNet, UNetConfig
    from sfumato.nn.conditioning import Conditioning
    from sfumato.noise.prediction import PREDICTIONS
    from sfumato.noise.schedule import discrete
    from sfumato.objectives.denoise import Denoise, DenoiseConfig, Draws

    channels, side = (3, PIXELS) if pixels else (4, PIXELS // FACTOR)
    theirs, their_vae = weights(channels)
    unet = UNet(from_dict(UNetConfig, {**UNET, "in_channels": channels, "out_channels": channels}))
    unet.load_state_dict(theirs.state_dict())
    unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    vae = Autoencoder(from_dict(AutoencoderConfig, {**VAE, "mid_block_add_attention": True})).requires_grad_(False)
    vae.load_state_dict(their_vae.state_dict())
    objective = Denoise(DenoiseConfig(), discrete(), PREDICTIONS["epsilon"])

    def loss(batch: dict[str, Tensor]) -> Tensor:
        x = batch["latents"]
        if fresh:
            with torch.no_grad():
                x = vae.encode(batch["pixels"]).sample(batch["latents"]) * 0.18215
        draws = Draws((batch["time"].double() + 0.5) / 1000, batch["noise"])
        return objective.loss(unet, x, Conditioning(context=batch["context"]), draws).total

    return trained(unet, loss, channels, side)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
