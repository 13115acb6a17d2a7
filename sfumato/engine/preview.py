"""What a picture will be, seen while it condenses: a linear map from latents to colours, which costs nothing."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sfumato.engine.decode import decode
from sfumato.families.types import LatentFormat, Model

SAMPLES, SIDE = 16, 8
"""Latents of noise whose colours are looked at, and their width and height."""


def preview(x0: Tensor, latent: LatentFormat) -> list[Image.Image]:
    """Rough pictures of the clean latents, as large as the finished ones.

    Args:
        x0: [B, C, h, w] in the diffusion model's scale, as ``driver.Progress`` has it.
        latent: whose ``rgb`` is the map; without one, the first three channels stand for red, green and blue.
    """
    channels = x0.shape[1]
    rgb = torch.tensor(latent.rgb or torch.eye(channels, 3).div(2).tolist())  # [C, 3], or [C + 1, 3]
    colours = torch.einsum("bchw,cr->brhw", x0.float().cpu(), rgb[:channels])  # [B, 3, h, w]
    colours = colours + rgb[channels:].sum(0)[:, None, None]
    colours = F.interpolate(colours, scale_factor=latent.factor, mode="bilinear")
    pixels = ((colours + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pixels]


def with_colours(model: Model) -> LatentFormat:
    """The model's latents with a map to colours: the one that is known, else the best there is for its decoder.

    That is the linear map, with an offset, that comes nearest to what the decoder makes of noise, by least squares.
    A model without an autoencoder has colours for latents.
    """
    latent = model.latent
    if latent.rgb or "vae" not in model.parts:
        return latent
    z = torch.randn(SAMPLES, latent.channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    pixels, _ = decode(model, z.to(model.device))
    colours = F.avg_pool2d(pixels / 127.5 - 1.0, latent.factor)  # [SAMPLES, 3, SIDE, SIDE]
    given = torch.cat([z, torch.ones_like(z[:, :1])], 1)  # [SAMPLES, C + 1, SIDE, SIDE]
    given, colours = (each.permute(0, 2, 3, 1).flatten(0, 2) for each in (given, colours))  # [n, C + 1], [n, 3]
    red, green, blue = torch.linalg.lstsq(given, colours).solution.T.tolist()
    return replace(latent, rgb=tuple(zip(red, green, blue, strict=True)))
