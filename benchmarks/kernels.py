"""The native kernels beside the plain layers, on the shapes that SD1.5 has."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.harness import compare
from benchmarks.report import Row, machine, report
from sfumato.engine.allocator import keep_freed_memory
from sfumato.engine.pack import FAST, SMALL, pack
from sfumato.nn.layers import GEGLU, Conv2d, GroupNorm, Linear

CONVOLUTIONS = (  # channels in and out, side of the picture
    (320, 320, 64), (640, 640, 32), (1280, 1280, 16), (1280, 1280, 8), (1920, 640, 32), (512, 512, 64), (128, 128, 256),
)
PRODUCTS = ((8192, 320, 320), (2048, 640, 640), (512, 1280, 1280), (8192, 1280, 320))  # rows, width in and out


def main(arguments: Sequence[str] = ()) -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--turns", type=int, default=5)
    turns = flags.parse_args(arguments).turns
    keep_freed_memory()
    about, rows = machine(), []
    torch.manual_seed(0)
    for channels, out, side in CONVOLUTIONS:
        x = torch.randn(2, channels, side, side).contiguous(memory_format=torch.channels_last)
        plain = Conv2d(channels, out, 3, padding=1)
        subjects: dict[str, nn.Module] = {"F.conv2d": plain}
        for name, growth in (("packed", SMALL), ("transformed", FAST)):
            subjects[name] = packed(Conv2d(channels, out, 3, padding=1), plain, growth)
        work = 2.0 * 9 * channels * out * x.shape[0] * side * side
        rows.append(row(f"3x3 convolution {channels} to {out}, {side} x {side}", subjects, x, turns, work))
    for count, width, out in PRODUCTS:
        linear = Linear(width, out)
        subjects = {"F.linear": linear, "packed": packed(Linear(width, out), linear)}
        work = 2.0 * count * width * out
        rows.append(row(f"linear {width} to {out}, {count} rows", subjects, torch.randn(count, width), turns, work))
    gated = GEGLU(320, 1280)
    subjects = {"plain": gated, "packed": packed(GEGLU(320, 1280), gated)}
    rows.append(row("GEGLU 320 to 1280, 8192 rows", subjects, torch.randn(8192, 320), turns, 2.0 * 8192 * 320 * 2560))
    norm = GroupNorm(32, 320)
    subjects = {"plain": norm, "fused": packed(GroupNorm(32, 320), norm)}
    x = torch.randn(2, 320, 64, 64).contiguous(memory_format=torch.channels_last)
    rows.append(row("group norm and SiLU, 320, 64 x 64", subjects, x, turns, 0.0, True))
    report("kernels", rows, about)


def packed(layer: nn.Module, plain: nn.Module, growth: float = SMALL) -> nn.Module:
    layer.load_state_dict(plain.state_dict())
    holder = nn.Sequential(layer)
    pack(holder, growth)
    return holder[0]


def row(name: str, subjects: dict[str, nn.Module], x: Tensor, turns: int, work: float, *more: bool) -> Row:
    return compare(name, {label: partial(run, layer, x, *more) for label, layer in subjects.items()}, turns, work=work)


def run(layer: nn.Module, *inputs: Tensor | bool) -> Tensor:
    y: Tensor = layer(*inputs)
    return y


if __name__ == "__main__":
    main(sys.argv[1:])
