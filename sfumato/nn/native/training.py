"""What training takes of the native kernels: functions with their gradients.

``sfumato.nn`` asks ``learns`` where there is a choice; the plain PyTorch beside it has the same result. Parameters stay
what they are, so that nothing else in training hears of it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sfumato.nn.native.build import available

_ops = torch.ops.sfumato

TILE = 4
"""Outputs of a tile along a side: a quarter of the multiplications."""

TILES = 16
"""As many in a batch pay for transforming the weights in every step."""


def learns(*tensors: Tensor) -> bool:
    """Whether these take the native way: their gradient is wanted, in float32 on a CPU that has the kernels.

    What ``torch.compile`` traces stays plain, for it to fuse.
    """
    return (
        torch.is_grad_enabled()
        and any(t.requires_grad for t in tensors)
        and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
        and not torch.compiler.is_compiling()
        and available()
    )


def convolves(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether a layer's ``convolution`` takes the native way: 3 x 3, where Winograd's algorithm gains.

    It gains where there are tiles enough and little of them hangs over the edge.
    """
    if not (
        layer.kernel_size == (3, 3) and layer.stride == layer.padding == layer.dilation == (1, 1) and layer.groups == 1
        and layer.padding_mode == "zeros" and layer.in_channels % 16 == 0 and layer.out_channels % 16 == 0
    ):  # fmt: skip
        return False
    height, width = x.shape[-2:]
    tiles = len(x) * -(-height // TILE) * -(-width // TILE)
    return tiles >= TILES and 2 * TILE**2 * tiles <= 3 * len(x) * height * width and learns(x, layer.weight)


def convolution(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What ``nn.Conv2d.forward`` makes of [B, C, H, W], where the layer ``convolves``."""
    y: Tensor = _Convolution.apply(x, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return y


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(q k^T * scale) v, as ``sfumato.nn.attention.attend`` has it."""
    y: Tensor = _Attention.apply(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)  # type: ignore[no-untyped-call]
    return y


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh formula."""
    y: Tensor = _GELUTanh.apply(x)  # type: ignore[no-untyped-call]
    return y


def gated_gelu(x: Tensor) -> Tensor:
    """[..., 2 n], values and gates -> values * GELU(gates), [..., n]."""
    y: Tensor = _GatedGELU.apply(x)  # type: ignore[no-untyped-call]
    return y


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Layer normalisation of [B, N, D], times scale plus shift, [B or 1, 1, D]."""
    each = len(x), 1, x.shape[-1]
    y: Tensor = _ModulatedNorm.apply(x, shift.expand(each), scale.expand(each), eps)  # type: ignore[no-untyped-call]
    return y


def gated_sum(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate * y of [B, N, D], the gate [B or 1, 1, D]."""
    z: Tensor = _GatedSum.apply(x, gate.expand(len(x), 1, x.shape[-1]), y)  # type: ignore[no-untyped-call]
    return z


class _Convolution(torch.autograd.Function):
    """By Lavin and Gray's tiles (2016): the values, the gradient of x, which is a convolution too, and the weights'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        y: Tensor = _ops.winograd_convolution(x, weight, bias, False)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _ops.winograd_convolution(gradient, weight, None, True) if of_x else None,
            _ops.winograd_weight(gradient, x, weight) if of_weight else None,
            gradient.sum((0, 2, 3)) if of_bias else None,
        )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        y, logs = _ops.attention(q, k, v, scale)
        ctx.save_for_backward(q, k, v, y, logs)
        ctx.scale = scale
        found: Tensor = y
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *_ops.attention_backward(gradient, *ctx.saved_tensors, ctx.scale), None


class _GELUTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        y: Tensor = _ops.gelu_tanh(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        found: Tensor = _ops.gelu_tanh_backward(gradient, *ctx.saved_tensors)
        return found


class _GatedGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        y: Tensor = _ops.gated_gelu(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        found: Tensor = _ops.gated_gelu_backward(gradient, *ctx.saved_tensors)
        return found


class _ModulatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
        y, moments = _ops.modulated_norm(x, shift, scale, eps)
        ctx.save_for_backward(x, scale, moments)
        found: Tensor = y
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *_ops.modulated_norm_backward(gradient, *ctx.saved_tensors), None


class _GatedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(gate, y)
        z: Tensor = _ops.gated_sum(x, gate, y)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *_ops.gated_sum_backward(gradient, *ctx.saved_tensors)
