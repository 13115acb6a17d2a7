"""Kernels of our own for GPUs, for inference: what PyTorch does to pictures in several passes over memory, in one.

PyTorch's own group normalisation wants channels apart, where convolutions want them together, so that around each of
them the picture is turned over twice; on an H200 that is half of a U-Net's time. What ``torch.compile`` traces stays
plain, for it to fuse.

Pictures are [B, C, H, W] in channels-last memory: ``positions`` rows of ``channels`` numbers each, B times.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS, COLUMNS = 32, 64
"""Positions and channels of a tile, which is what a program has before it at once."""
PROGRAMS = 1024
"""Programs that keep a large GPU busy."""
LINE = 256
"""Numbers that a program has before it at once where they stand in a line."""
CHUNKS = 32
"""Parts of a picture whose statistics are joined at once."""
LARGEST = 4096
"""Numbers of a tile that a program can keep in its registers."""


SINCE = (8, 0)
"""CUDA's compute capability from which on chips have bfloat16."""


def kernels() -> Any:
    """The module ``gpu_kernels``; Triton, which it needs, comes with PyTorch for GPUs on Linux."""
    from sfumato.nn import gpu_kernels

    return gpu_kernels


@cache
def why_not(device: torch.device) -> str:
    """What keeps these kernels from being used on a device; empty where nothing does. The first call tries one."""
    if device.type != "cuda" or torch.version.hip:
        return "they are for NVIDIA's GPUs"
    if (found := torch.cuda.get_device_capability(device)) < SINCE:
        return f"they need compute capability {SINCE[0]}.{SINCE[1]}, and this GPU has {found[0]}.{found[1]}"
    try:
        _add(torch.zeros(1, 1, device=device), 1, 1, 1, torch.zeros(1, device=device), None, None)
    except ImportError:
        return "there is no Triton"
    except Exception as problem:  # no C compiler, no headers of Python, a folder that cannot be written, …
        said = [line for line in str(problem).splitlines() if line.strip()] or [type(problem).__name__]
        return f"Triton cannot compile them: {said[-1]}"
    return ""


def tiles(count: int, size: int) -> int:
    """So many of a size hold so much."""
    return -(-count // size)


def power_of_2(count: int) -> int:
    """The smallest that is no less."""
    return 1 << (count - 1).bit_length()


def fuses(x: Tensor) -> bool:
    """Whether these kernels take x, and nobody wants gradients or a graph of it."""
    return (
        not torch.compiler.is_compiling() and x.is_cuda and not torch.is_grad_enabled()
        and x.dtype in (torch.float32, torch.bfloat16, torch.float16) and not why_not(x.device)
    )  # fmt: skip


def is_picture(x: Tensor) -> bool:
    """Whether it is a picture whose channels stand together."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def group_norm(
    layer: nn.GroupNorm, x: Tensor, silu: bool, bias: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """``silu(layer(x + bias + shift))``, or without SiLU; the statistics are float32.

    Args:
        x: a picture.
        bias: [C].
        shift: [B or 1, C].

    Returns:
        A picture of the same precision.
    """
    count, channels, height, width = x.shape
    positions, members = height * width, channels // layer.num_groups
    blocks = tiles(channels, COLUMNS)
    chunks = max(1, min(tiles(positions, ROWS), PROGRAMS // (count * blocks)))
    each = tiles(positions, ROWS * chunks)
    means, spreads = torch.empty(2, count, chunks, channels, dtype=torch.float32, device=x.device)
    factor, more = torch.empty(2, count, channels, dtype=torch.float32, device=x.device)
    y = torch.empty_like(x)
    with torch.cuda.device(x.device):
        kernels().moments[chunks, blocks, count](x, means, spreads, positions, channels, each, ROWS, COLUMNS)
        kernels().join[layer.num_groups, count](
            means, spreads, layer.weight, layer.bias, bias, shift, factor, more, positions, channels, members, chunks,
            each * ROWS, per_row(shift), layer.eps, bias is not None, shift is not None, power_of_2(members), CHUNKS,
        )
        kernels().normalise[tiles(positions, ROWS), blocks, count](
            x, factor, more, y, positions, channels, silu, ROWS, COLUMNS
        )
    return y


def per_row(shift: Tensor | None) -> int:
    """How far the rows of a shift are apart, which one row for all are not."""
    return 0 if shift is None or len(shift) == 1 else shift.stride(0)


def convolution(layer: nn.Conv2d, x: Tensor, shift: Tensor | None, residual: Tensor | None) -> Tensor:
    """``layer(x) + shift + residual``: the library's convolution, and all that is added to it at once.

    Args:
        x: [B, C, H, W].
        shift: [B or 1, C'].
        residual: a picture, [B, C', H', W'].
    """
    y = F.conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    if layer.bias is None and shift is None and residual is None:
        return y
    if not is_picture(y) or not (residual is None or is_picture(residual)):
        for more in (layer.bias, shift):
            y = y if more is None else y + more.view(-1, y.shape[1], 1, 1)
        return y if residual is None else residual + y
    count, channels, height, width = y.shape
    _add(y, count, height * width, channels, layer.bias, shift, residual)
    return y


def doubled_convolution(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """``layer`` on x with each value twice in each direction, which are never written down.

    A window of 3 x 3 lies on 2 x 2 values of x, and its weights on each depend on the parity of row and column alone:
    so it is a convolution of 2 x 2 with four kernels, in 4 products where there were 9.

    Args:
        layer: 3 x 3, with a border of one zero.
        x: a picture, [B, C, H, W].

    Returns:
        A picture, [B, C', 2 H, 2 W].
    """
    (count, inputs, height, width), outputs = x.shape, layer.out_channels
    weight, y = (
        torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        for shape in ((4 * outputs, inputs, 2, 2), (count, outputs, 2 * height, 2 * width))
    )
    with torch.cuda.device(x.device):
        kernels().parities[outputs, tiles(inputs, LINE)](
            layer.weight, weight, inputs, outputs, *layer.weight.stride(), LINE
        )
        windows = F.conv2d(x, weight, padding=1).contiguous(memory_format=torch.channels_last)
        kernels().interleave[tiles(4 * height * width, ROWS), tiles(outputs, COLUMNS), count](
            windows, layer.bias, y, height, width, outputs, layer.bias is not None, ROWS, COLUMNS
        )
    return y


def add_to_rows(y: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
    """``y += bias + residual``, on contiguous [rows, C], [C] and [..., C] of as many rows."""
    if bias is not None or residual is not None:
        _add(y, 1, y.shape[0], y.shape[1], bias, None, residual)


def _add(
    y: Tensor, count: int, positions: int, channels: int, bias: Tensor | None, shift: Tensor | None,
    residual: Tensor | None,
) -> None:
    grid = tiles(positions, ROWS), tiles(channels, COLUMNS), count
    with torch.cuda.device(y.device):
        kernels().add[grid](
            y, bias, shift, residual, positions, channels, per_row(shift), bias is not None, shift is not None,
            residual is not None, ROWS, COLUMNS,
        )


def gated_gelu(both: Tensor) -> Tensor:
    """[..., 2 K], contiguous: ``value * gelu(gate)``, [..., K]."""
    inner = both.shape[-1] // 2
    rows, columns = both.numel() // (2 * inner), min(LARGEST // 4, max(ROWS, inner & -inner))  # no column in vain
    y = both.new_empty(*both.shape[:-1], inner)
    with torch.cuda.device(both.device):
        kernels().gate[tiles(rows, LARGEST // 2 // columns), tiles(inner, columns)](
            both, y, rows, inner, LARGEST // 2 // columns, columns
        )
    return y


def layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """``layer(x)`` of contiguous rows, [..., C]."""
    width = x.shape[-1]
    whole = power_of_2(width)
    rows, together = x.numel() // width, max(1, LARGEST // whole)
    y = torch.empty_like(x)
    with torch.cuda.device(x.device):
        kernels().layer_norm[(tiles(rows, together),)](
            x, layer.weight, layer.bias, y, rows, width, layer.eps, together, whole
        )
    return y


def coarse_rows(x: Tensor, kind: torch.dtype, most: float) -> tuple[Tensor, Tensor]:
    """Contiguous [rows, C] -> the same in 8 bits, ``most`` the largest of each row, and float32 scales [rows, 1]."""
    rows, width = x.shape
    whole = power_of_2(width)
    together = max(1, LARGEST // whole)
    y, scale = torch.empty_like(x, dtype=kind), torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    with torch.cuda.device(x.device):
        kernels().coarse[(tiles(rows, together),)](x, y, scale, rows, width, most, together, whole)
    return y, scale
