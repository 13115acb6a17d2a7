"""Pixels become latents: in tiles where the picture is large, again in float32 where half precision overflowed."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor

from sfumato.engine.decode import precision_of, tiles_of
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
    height, width = (side // model.latent.factor for side in pixels.shape[-2:])
    tiles = tiles_of(model, (height, width), tile)
    how: Callable[[Codec, Tensor], Gaussian] = encode_whole
    if tiles is not None:
        how = partial(encode_tiled, tile=tiles.tile, overlap=tiles.overlap)
    pixels = pixels.to(model.device, precision_of(autoencoder))
    found, note = encode_safely(cast(CodecModule, autoencoder), pixels, how)
    return Gaussian(found.mean.float(), found.log_variance.float()), note
