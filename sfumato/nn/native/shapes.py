"""What the native operators make of tensors without content: by it, work and memory are counted beforehand."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import Library

_kept: list[Library] = []  # what a library registered goes with it


def tiles(shape: Sequence[int]) -> int:
    """Of 4 x 4 outputs, by which Winograd's algorithm takes pictures [B, C, H, W]."""
    return int(shape[0]) * -(-int(shape[2]) // 4) * -(-int(shape[3]) // 4)


def direct_work(shape: Sequence[int]) -> int:
    """Multiplications of a 3 x 3 convolution, for each pair of channels in and out."""
    return 9 * int(shape[0]) * int(shape[2]) * int(shape[3])


def tiled_work(shape: Sequence[int], transformed: bool = True) -> int:
    """The same by tiles, with what the transforms of the pictures and of weights take in the time of multiplications.

    Args:
        transformed: the weights were, beforehand. Else they are for some 50 tiles at a time.
    """
    count = tiles(shape)
    return 47 * count + (0 if transformed else max(250, 5 * count))


def register() -> None:
    """Let the operators, which are loaded, take tensors of the meta device."""
    if _kept:
        return
    library = Library("sfumato", "IMPL", "Meta")  # type: ignore[no-untyped-call]
    for name, shape in SHAPES.items():
        library.impl(name, shape)  # type: ignore[no-untyped-call]
    _kept.append(library)


def panel() -> int:
    """Columns that packed weights are filled up to a multiple of."""
    columns: int = torch.ops.sfumato.panel()
    return columns


def _panels(columns: int) -> int:
    return -(-columns // panel())


def _pack_linear(weight: Tensor) -> Tensor:
    return weight.new_empty(_panels(len(weight)), weight.shape[1], panel())


def _pack_convolution(weight: Tensor) -> Tensor:
    return _pack_linear(weight.flatten(1))


def _pack_winograd(weight: Tensor) -> Tensor:
    return weight.new_empty(_panels(len(weight)), 36, weight.shape[1], panel())


def _pack_int8(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    taps, panels = weight.shape[2:].numel(), _panels(len(weight))
    packed = weight.new_empty(panels, taps * -(-weight.shape[1] // 4), panel(), dtype=torch.int32)
    return packed, weight.new_empty(panels * panel()), weight.new_empty(panels, taps, panel())


def _rows(x: Tensor, *rest: object) -> Tensor:
    """[..., in] -> [..., out]; the last argument is out."""
    columns = rest[-1]
    assert isinstance(columns, int)
    return x.new_empty(*x.shape[:-1], columns)


def _picture(x: Tensor, columns: int, height: int, width: int) -> Tensor:
    return torch.empty(
        (len(x), columns, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )


def _convolution(x: Tensor, *rest: object) -> Tensor:
    columns, height, width, step, padding = (n for n in rest[-5:] if isinstance(n, int))
    down, across = ((n + 2 * padding - k) // step + 1 for n, k in zip(x.shape[2:], (height, width), strict=True))
    return _picture(x, columns, down, across)


def _winograd(x: Tensor, *rest: object) -> Tensor:
    columns = rest[-1]
    assert isinstance(columns, int)
    return _picture(x, columns, *x.shape[2:])


def _group_norm(x: Tensor, *_: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _attention(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    count, heads, length, width = q.shape
    return q.new_empty(count, length, heads, width).transpose(1, 2), q.new_empty(count, heads, length)


SHAPES = {
    "pack_linear": _pack_linear, "pack_convolution": _pack_convolution, "pack_winograd": _pack_winograd,
    "pack_int8": _pack_int8, "linear": _rows, "geglu": _rows, "linear_int8": _rows, "geglu_int8": _rows,
    "convolution": _convolution, "convolution_int8": _convolution, "winograd": _winograd, "group_norm": _group_norm,
    "attention": _attention,
}  # fmt: skip
