"""A picture through an autoencoder and back: what its latents keep."""

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps

from sfumato.checkpoints.parts import Part
from sfumato.core.errors import RequestError
from sfumato.engine.decode import to_pixels
from sfumato.models.overflow import decode_safely, encode_safely
from sfumato.tasks.picture import Picture


class Reconstruction(NamedTuple):
    """Before, after, and how far apart they are."""

    before: Picture  # what was encoded: framed, so that its sides are multiples of the factor
    after: Picture
    latent: tuple[int, ...]  # (channels, height, width)
    psnr: float  # dB, of 8-bit pixels


@torch.inference_mode()
def reconstruct(part: Part, picture: Picture, side: int | None = None) -> Reconstruction:
    """Encode to the most probable latent, and decode that.

    Args:
        side: first scaled and cropped to a square of so many pixels; else only cropped to multiples of the factor.

    Raises:
        RequestError: a side that the autoencoder does not take.
    """
    autoencoder = part.load(torch.float32)
    factor: int = autoencoder.factor
    width, height = (side, side) if side else (n - n % factor for n in picture.image.size)
    if min(width, height) < factor or width % factor:
        raise RequestError(f"{width} x {height} pixels: this autoencoder takes multiples of {factor}.")
    image = ImageOps.fit(picture.image, (width, height), Image.Resampling.LANCZOS)
    before = Picture(image)
    x = torch.from_numpy(before.pixels).permute(2, 0, 1)[None].float() / 127.5 - 1.0  # [1, 3, H, W]
    z = encode_safely(autoencoder, x).latents.mode()
    after = Picture.of(to_pixels(decode_safely(autoencoder, z).pictures)[0])
    return Reconstruction(before, after, tuple(z.shape[1:]), psnr(before, after))


def psnr(a: Picture, b: Picture) -> float:
    """Peak signal-to-noise ratio in dB; infinite where every pixel is the same."""
    error = np.square(a.pixels.astype(float) - b.pixels.astype(float)).mean()
    return math.inf if error == 0 else 10.0 * math.log10(255.0**2 / error)
