"""Large pictures through an autoencoder in little memory: one picture at a time, or one tile of it at a time.

Slicing is exact. Tiling is not: a tile does not see what lies outside it (attention, the statistics of group norms),
so colours may drift slightly from those of the whole picture. Tiles overlap and melt into each other, so there are no
seams.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sfumato.core.errors import RequestError
from sfumato.models.autoencoder import check_size
from sfumato.models.latents import Codec, Gaussian


def decode_sliced(autoencoder: Codec, z: Tensor) -> Tensor:
    """``autoencoder.decode``, one picture at a time: [B, C, h, w] -> [B, 3, h * factor, w * factor]."""
    return torch.cat([autoencoder.decode(one) for one in _singles(z)])


def encode_sliced(autoencoder: Codec, x: Tensor) -> Gaussian:
    """``autoencoder.encode``, one picture at a time."""
    means, log_variances = zip(*(autoencoder.encode(one) for one in _singles(x)), strict=True)
    return Gaussian(torch.cat(means), torch.cat(log_variances))


def decode_tiled(autoencoder: Codec, z: Tensor, tile: int = 64, overlap: int = 16) -> Tensor:
    """``autoencoder.decode``, one tile of one picture at a time.

    Args:
        z: [B, C, h, w].
        tile: side of a tile, in latent positions.
        overlap: latent positions that neighbouring tiles share at least, less than ``tile``.

    Returns:
        [B, 3, h * factor, w * factor].

    Raises:
        RequestError: tiles that cannot overlap so.
    """
    factor = autoencoder.factor
    return torch.cat([_blend(autoencoder.decode, one, tile, overlap, 1, factor) for one in _singles(z)])


def encode_tiled(autoencoder: Codec, x: Tensor, tile: int = 64, overlap: int = 16) -> Gaussian:
    """``autoencoder.encode``, one tile of one picture at a time.

    Args:
        x: [B, 3, H, W] in [-1, 1].
        tile: side of a tile, in latent positions: ``tile * factor`` pixels.
        overlap: latent positions that neighbouring tiles share at least, less than ``tile``.

    Raises:
        RequestError: tiles that cannot overlap so, or a side that is no multiple of ``factor``.
    """
    check_size(x, autoencoder.factor)

    def moments(piece: Tensor) -> Tensor:
        return torch.cat(autoencoder.encode(piece), dim=1)

    blended = torch.cat([_blend(moments, one, tile, overlap, autoencoder.factor, 1) for one in _singles(x)])
    return Gaussian(*blended.chunk(2, dim=1))


def _singles(x: Tensor) -> Iterator[Tensor]:
    """[B, ...] -> B of [1, ...]."""
    return (x[i : i + 1] for i in range(len(x)))


def _blend(network: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, into: int, out: int) -> Tensor:
    """The weighted mean of what ``network`` makes of each tile.

    Args:
        tile, overlap: in latent positions.
        into, out: length of a latent position in the network's input and in its output.
    """
    if not 0 < overlap < tile:
        raise RequestError(f"Tiles of {tile} cannot overlap by {overlap}: it must be from 1 to {tile - 1}.")
    height, width = (side // into for side in x.shape[-2:])
    total, weights = torch.empty(0), torch.zeros(height * out, width * out, device=x.device)
    for top, bottom in spans(height, tile, overlap):
        for left, right in spans(width, tile, overlap):
            piece = network(x[..., top * into : bottom * into, left * into : right * into])
            rows = _ramp(top, bottom, height, overlap, out, x.device)
            columns = _ramp(left, right, width, overlap, out, x.device)
            weight = rows[:, None] * columns
            if not total.numel():  # only now is the number of channels known
                total = weights.new_zeros(*piece.shape[:-2], *weights.shape)
            area = (..., slice(top * out, bottom * out), slice(left * out, right * out))
            total[area] += piece * weight
            weights[area] += weight
    return (total / weights).to(piece.dtype)


def spans(length: int, tile: int, overlap: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of the fewest tiles that cover ``length``, all of one size, evenly spread."""
    if length <= tile:
        yield 0, length
        return
    gaps = -(-(length - tile) // (tile - overlap))
    for i in range(gaps + 1):
        start = (length - tile) * i // gaps
        yield start, start + tile


def _ramp(first: int, last: int, length: int, overlap: int, out: int, device: torch.device) -> Tensor:
    """[(last - first) * out] weights: they rise over the overlap, from 0 to 1, but not at the picture's own edges."""
    n = (last - first) * out
    position = torch.arange(n, device=device) + 0.5
    rise = position if first > 0 else torch.full_like(position, torch.inf)
    fall = n - position if last < length else torch.full_like(position, torch.inf)
    return (torch.minimum(rise, fall) / (overlap * out)).clamp(max=1.0)
