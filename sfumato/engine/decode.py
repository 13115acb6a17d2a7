"""Latents become pixels: one picture at a time, in tiles where it is large, again in float32 where half overflowed."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from sfumato.engine.recorded import making_room, recorded_decoder
from sfumato.families.types import TINY, Model
from sfumato.models.latents import Codec
from sfumato.models.overflow import Decoding, decode_safely, decode_whole
from sfumato.models.tiling import decode_tiled
from sfumato.models.tiny_autoencoder import TinyAutoencoder

TILE_ABOVE = 1536
"""Pixels a side beyond which the decoder runs in tiles: its activations grow with the area."""


TILE, OVERLAP = 64, 16
"""Latent positions: side of a tile unless the caller says otherwise, and what neighbours share of a full one."""


class Tiles(NamedTuple):
    """Side and shared part of the tiles in which an autoencoder works, in latent positions."""

    tile: int
    overlap: int


def tiles_of(model: Model, latent_shape: tuple[int, ...], tile: int | None) -> Tiles | None:
    """How latents (..., h, w) are tiled; None: not at all.

    Args:
        tile: the side that is wanted; None: no tiles, unless the picture is huge.
    """
    longest = max(latent_shape[-2:])
    side = TILE if tile is None else tile
    whole = longest * model.latent.factor <= TILE_ABOVE if tile is None else longest <= side
    return None if whole else Tiles(side, side * OVERLAP // TILE)


def precision_of(autoencoder: nn.Module) -> torch.dtype:
    """What it computes in; packed for the CPU, it has no parameters that would tell."""
    return next((p.dtype for p in autoencoder.parameters()), torch.float32)


@torch.inference_mode()
def decode(
    model: Model, latents: Tensor, tile: int | None = None, part: str = "vae", recorded: bool = False
) -> tuple[Tensor, list[str]]:
    """Pictures of the diffusion model's latents.

    Args:
        latents: [B, C, h, w].
        tile: side of the decoder's tiles in latent positions; None: whole pictures, unless they are huge.
        part: which of the model's parts decodes.
        recorded: on a GPU small pictures are decoded by a recording; see ``engine.recorded``.

    Returns:
        [B, 3, H, W] uint8 on the CPU, and notes on what had to be done.

    Raises:
        NumericError: the latents, or the pictures even in float32, are not finite.
    """
    autoencoder = model.parts[part]
    latent = model.latent
    if part == TINY:  # made for the diffusion model's own scale, or one that its config names
        config = cast(TinyAutoencoder, autoencoder).config
        latent = replace(latent, scale=config.scaling_factor, shift=config.shift_factor)
    z = latent.to_autoencoder(latents).to(precision_of(autoencoder))
    tiles = tiles_of(model, tuple(latents.shape), tile)
    how: Callable[[Codec, Tensor], Tensor] = decode_whole
    if tiles is not None:
        how = partial(decode_tiled, tile=tiles.tile, overlap=tiles.overlap)
    elif recorded:
        how = recorded_decoder(autoencoder, model.device)
    pictures, notes = [], []
    for row in torch.split(z, 1):
        do: Callable[[], Decoding] = partial(decode_safely, autoencoder, row, how)  # type: ignore[arg-type]
        x, note = making_room(do, do)
        pictures.append(to_pixels(x))
        if note and note not in notes:
            notes.append(note)
    return torch.cat(pictures), notes


def to_pixels(x: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] -> uint8 on the CPU, rounded to the nearest of 0 … 255."""
    return ((x.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
