"""InceptionV3 as FID is measured with (Szegedy et al., 2016; Heusel et al., 2017): pictures to 2,048 features.

The network of TensorFlow's 2015-12-05 file: average pools leave the padding out of the count, and the last block pools
by maximum. Parameter names are those of its PyTorch port, ``pt_inception-2015-12-05``.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.layers import Conv2d

SIDE = 299
"""Pixels a side, to which every picture is brought."""


class Norm(nn.Module):
    """Batch normalisation by the means and variances of training, which are never measured anew."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-3)


class Convolution(nn.Module):
    """Convolution, normalisation, rectifier."""

    def __init__(self, inner: int, outer: int, kernel: tuple[int, int], stride: int, padded: bool) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        self.conv = Conv2d(inner, outer, kernel, stride=stride, padding=padding, bias=False)
        self.bn = Norm(outer)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        return F.relu(self.bn(self.conv(x)))


class Step(NamedTuple):
    """One convolution of a branch."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


class Branch(NamedTuple):
    """Convolutions one after the other.

    Attributes:
        pool: what happens to the picture before: nothing, an average or a maximum of 3 x 3, or one of every other.
        fork: convolutions that each see the last one's result, side by side.
    """

    steps: tuple[Step, ...] = ()
    pool: str = ""
    fork: tuple[Step, ...] = ()


class Block(nn.Module):
    """Branches side by side, their results stacked in order."""

    def __init__(self, inner: int, branches: tuple[Branch, ...]) -> None:
        super().__init__()
        self.branches, self.channels = branches, 0
        for branch in branches:
            width = inner
            for step in branch.steps:
                self._add(step, width)
                width = step.channels
            for step in branch.fork:
                self._add(step, width)
            self.channels += sum(step.channels for step in branch.fork) if branch.fork else width

    def _add(self, step: Step, inner: int) -> None:
        made = Convolution(inner, step.channels, step.kernel, step.stride, padded=step.stride == 1)
        self.add_module(step.name, made)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W']."""
        found = []
        for branch in self.branches:
            y = _pool(x, branch.pool)
            for step in branch.steps:
                y = getattr(self, step.name)(y)
            found += [getattr(self, step.name)(y) for step in branch.fork] or [y]
        return torch.cat(found, dim=1)


def _pool(x: Tensor, kind: str) -> Tensor:
    if kind == "average":
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    if kind == "maximum":
        return F.max_pool2d(x, 3, stride=1, padding=1)
    return F.max_pool2d(x, 3, stride=2) if kind == "half" else x


ROW, COLUMN = (1, 7), (7, 1)


def _a(pooled: int) -> tuple[Branch, ...]:
    return (
        Branch((Step("branch1x1", 64),)),
        Branch((Step("branch5x5_1", 48), Step("branch5x5_2", 64, (5, 5)))),
        Branch((Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3)))),
        Branch((Step("branch_pool", pooled),), "average"),
    )


def _b() -> tuple[Branch, ...]:
    return (
        Branch((Step("branch3x3", 384, (3, 3), 2),)),
        Branch((Step("branch3x3dbl_1", 64), Step("branch3x3dbl_2", 96, (3, 3)), Step("branch3x3dbl_3", 96, (3, 3), 2))),
        Branch(pool="half"),
    )


def _c(width: int) -> tuple[Branch, ...]:
    return (
        Branch((Step("branch1x1", 192),)),
        Branch((Step("branch7x7_1", width), Step("branch7x7_2", width, ROW), Step("branch7x7_3", 192, COLUMN))),
        Branch((
            Step("branch7x7dbl_1", width), Step("branch7x7dbl_2", width, COLUMN), Step("branch7x7dbl_3", width, ROW),
            Step("branch7x7dbl_4", width, COLUMN), Step("branch7x7dbl_5", 192, ROW),
        )),
        Branch((Step("branch_pool", 192),), "average"),
    )  # fmt: skip


def _d() -> tuple[Branch, ...]:
    return (
        Branch((Step("branch3x3_1", 192), Step("branch3x3_2", 320, (3, 3), 2))),
        Branch((
            Step("branch7x7x3_1", 192), Step("branch7x7x3_2", 192, ROW), Step("branch7x7x3_3", 192, COLUMN),
            Step("branch7x7x3_4", 192, (3, 3), 2),
        )),
        Branch(pool="half"),
    )  # fmt: skip


def _e(pool: str) -> tuple[Branch, ...]:
    def fork(name: str) -> tuple[Step, Step]:
        return Step(f"{name}a", 384, (1, 3)), Step(f"{name}b", 384, (3, 1))

    return (
        Branch((Step("branch1x1", 320),)),
        Branch((Step("branch3x3_1", 384),), fork=fork("branch3x3_2")),
        Branch((Step("branch3x3dbl_1", 448), Step("branch3x3dbl_2", 384, (3, 3))), fork=fork("branch3x3dbl_3")),
        Branch((Step("branch_pool", 192),), pool),
    )


BLOCKS = {
    "Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64), "Mixed_6a": _b(), "Mixed_6b": _c(128),
    "Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192), "Mixed_7a": _d(), "Mixed_7b": _e("average"),
    "Mixed_7c": _e("maximum"),
}


class Inception(nn.Module):
    """The network up to its last pool; what follows it, a layer of 1,008 classes, is not read."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), 2, padded=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3), 1, padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3), 1, padded=True)
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1), 1, padded=False)
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3), 1, padded=False)
        width = 192
        for name, branches in BLOCKS.items():
            block = Block(width, branches)
            self.add_module(name, block)
            width = block.channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 2048]; brought to 299 x 299 by bilinear interpolation, as the port does it."""
        if x.shape[-2:] != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # [B, 64, 147, 147]
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_pool(x, "half")))  # [B, 192, 71, 71]
        x = _pool(x, "half")  # [B, 192, 35, 35]
        for name in BLOCKS:
            x = getattr(self, name)(x)
        return x.mean((2, 3))  # [B, 2048]
