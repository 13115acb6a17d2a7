"""The layers whose arithmetic can be replaced without a network noticing: convolution, linear, norms, activations.

Networks are written with these and nothing lower. Each takes, as arguments, the addition that follows it in the
network, so that a packed or native replacement (same attributes, same call) can do both in one pass over memory. Here
they are plain PyTorch, which is the reference that a replacement is tested against.

Layout: pictures are [B, C, H, W] in channels-last memory, so that ``[B, H * W, C]`` tokens are a view of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn import gpu
from sfumato.nn.native import training


class Conv2d(nn.Conv2d):
    """A convolution, and what is added to its result."""

    def forward(self, x: Tensor, shift: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """``conv(x) + shift + residual``.

        Args:
            x: [B, C, H, W].
            shift: [B or 1, C'], added to every position (a time embedding).
            residual: [B, C', H', W'].
        """
        if gpu.fuses(x) and self.padding_mode == "zeros":
            return gpu.convolution(self, x, shift, residual)
        y = training.convolution(self, x) if training.convolves(self, x) else super().forward(x)
        if shift is not None:
            y = y + shift[:, :, None, None]
        return y if residual is None else residual + y


def _fuse(x: Tensor, *layers: nn.Module) -> bool:
    """Whether a GPU's kernels may do at once what these layers do, none of which is replaced or listened to."""
    return gpu.fuses(x) and gpu.is_picture(x) and all(
        type(layer) in (Conv2d, GroupNorm) and not layer._forward_hooks and not layer._forward_pre_hooks
        for layer in layers
    )  # fmt: skip


def doubled_convolution(conv: Conv2d, x: Tensor) -> Tensor:
    """``conv`` on x with each value repeated: [B, C, H, W] -> [B, C', 2 H, 2 W].

    Args:
        conv: 3 x 3, with a border of one zero.
    """
    if _fuse(x, conv):
        return gpu.doubled_convolution(conv, x)
    height, width = x.shape[-2:]
    y: Tensor = conv(F.interpolate(x, size=(2 * height, 2 * width), mode="nearest"))
    return y


class Linear(nn.Linear):
    """A matrix product, and what is added to its result."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``x @ weight.T + bias + residual`` on [..., in] and [..., out]."""
        y = super().forward(x)
        return y if residual is None else residual + y


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu and He, 2018), and the SiLU that follows it nearly everywhere."""

    def forward(self, x: Tensor, silu: bool = False) -> Tensor:
        """[B, C, ...] -> the same shape.

        In mixed precision the statistics are those of the weights' precision, on every device. (A CPU's own kernels for
        bfloat16 are also three times as slow.)
        """
        if gpu.fuses(x) and gpu.is_picture(x):
            return gpu.group_norm(self, x, silu)
        y = super().forward(x.to(self.weight.dtype)).to(x.dtype)
        return F.silu(y) if silu else y


def normalised_convolution(conv: Conv2d, norm: GroupNorm, x: Tensor, shift: Tensor | None) -> Tensor:
    """``silu(norm(conv(x, shift)))``; shapes as in ``Conv2d``.

    What is the same for all positions changes nothing but the mean that the norm subtracts, so that it need not be
    added to each of them.
    """
    if _fuse(x, conv, norm):
        y = F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
        return gpu.group_norm(norm, y, True, conv.bias, shift)
    normal: Tensor = norm(conv(x, shift), silu=True)
    return normal


class LayerNorm(nn.LayerNorm):
    """Layer normalisation (Ba et al., 2016) with weights of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> the same shape."""
        return gpu.layer_norm(self, x) if gpu.fuses(x) and x.is_contiguous() else super().forward(x)


class GEGLU(nn.Module):
    """Gated linear unit with GELU (Shazeer, "GLU variants improve transformer", 2020)."""

    def __init__(self, dim: int, inner: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = Linear(dim, 2 * inner, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., inner]."""
        both = self.proj(x)
        if training.learns(both):
            return training.gated_gelu(both)
        if gpu.fuses(both) and both.is_contiguous():
            return gpu.gated_gelu(both)
        value, gate = both.chunk(2, dim=-1)
        gated: Tensor = value * F.gelu(gate)
        return gated


class TanhGELU(nn.Module):
    """A linear layer with GELU by its tanh formula (Hendrycks and Gimpel, 2016, section 2)."""

    def __init__(self, dim: int, inner: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = Linear(dim, inner, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., inner]."""
        y = self.proj(x)
        return training.gelu_tanh(y) if training.learns(y) else F.gelu(y, approximate="tanh")


class ModulatedNorm(nn.Module):
    """Layer normalisation (Ba et al., 2016) whose scale and shift are told with each call."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """``normalised(x) * scale + shift`` on [B, N, dim] and [B or 1, 1, dim]."""
        if training.learns(x, shift, scale):
            return training.modulated_norm(x, shift, scale, self.eps)
        return torch.addcmul(shift, F.layer_norm(x, (self.dim,), eps=self.eps), scale)


def gated_sum(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """``x + gate * y`` on [B, N, dim] and a gate of [B or 1, 1, dim]."""
    if training.learns(x, gate, y) and x.shape == y.shape:
        return training.gated_sum(x, gate, y)
    return torch.addcmul(x, gate, y)
