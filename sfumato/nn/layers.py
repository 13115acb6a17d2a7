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
