"""Pixels become latents: in tiles where the picture is large, again in float32 where half precision overflowed."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor

from sfumato.engine.decode import OVERLAP, TILE, tile_of
from sfumato.families.types import Model
from sfumato.models.latents import Codec, Gaussian
from sfumato.models.overflow import CodecModule, encode_safely, encode_whole
from sfumato.models.tiling import encode_tiled


@torch.inference_mode()
def encode(model: Model, pixels: Tensor, tile: int | None = None) -> tuple[Gaussian, str | None]:
    """What the model's autoencoder makes of a picture.

    Args:
        pixels: [1, 3, H, W] in [-1, 1].
        tile: side of the encoder's tiles in latent positions; None: the whole picture, unless it is huge.

    Returns:
        A distribution over latents [1, C, h, w], float32, in the autoencoder's own scale; and what there is to say.

    Raises:
        NumericError: the latents are not finite, even in float32.
    """
    autoencoder = model.parts["vae"]
    dtype = next((p.dtype for p in autoencoder.parameters()), torch.float32)  # packed for the CPU, it has none
    height, width = (side // model.latent.factor for side in pixels.shape[-2:])
    side = tile_of(model, (height, width), tile)
    how: Callable[[Codec, Tensor], Gaussian] = encode_whole
    if side is not None:
        how = partial(encode_tiled, tile=side, overlap=side * OVERLAP // TILE)
    found, note = encode_safely(cast(CodecModule, autoencoder), pixels.to(model.device, dtype), how)
    return Gaussian(found.mean.float(), found.log_variance.float()), note
