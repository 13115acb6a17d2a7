"""Stand-ins for ``sfumato.nn.layers`` whose weights are packed for the native kernels.

Same call, same result to rounding (of ``sfumato.nn.int8`` where that is in the name), on float32 CPU tensors and
without gradients. Each takes its weights from the layer it stands for and keeps them in its own order only, so it can
neither be saved nor moved nor cast.
"""

from collections.abc import Callable
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from sfumato.core.errors import CheckpointError, SfumatoError
from sfumato.nn import layers
from sfumato.nn.native.shapes import direct_work, tiled_work

_ops = torch.ops.sfumato


class Packed(nn.Module):
    """What all packed layers keep, and what they refuse.

    Attributes:
        kept: the weights in the order in which the operator takes them; a buffer takes longer to look up.
    """

    kept: tuple[Tensor | None, ...]

    def _keep(self, packed: Tensor, bias: Tensor | None, **more: Tensor) -> None:
        tensors = {"packed": packed, **more, "bias": None if bias is None else bias.detach()}
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)
        self.kept = tuple(tensors.values())

    def _save_to_state_dict(self, *arguments: Any, **options: Any) -> NoReturn:
        raise CheckpointError(
            f"A {type(self).__name__} holds packed weights, which cannot be saved or hashed: do so before `pack`."
        )

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> NoReturn:
        raise CheckpointError(f"A {type(self).__name__} holds packed weights: load the checkpoint before `pack`.")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Packed":
        probe = fn(torch.empty(1))
        if probe.device.type != "cpu" or probe.dtype != torch.float32:
            raise SfumatoError(
                f"A {type(self).__name__} works on the CPU in float32 only, not on {probe.device} in {probe.dtype}: "
                "move or cast the network before `pack`."
            )
        return self

    @property
    def weight(self) -> NoReturn:
        """There is none any more."""
        raise SfumatoError(f"A {type(self).__name__} has no `weight`: it was packed. Use it before `pack`.")


class PackedLinear(Packed):
    """``layers.Linear``."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._keep(_ops.pack_linear(layer.weight.detach()), layer.bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``x @ weight.T + bias + residual`` on [..., in] and [..., out]."""
        y: Tensor = _ops.linear(x, *self.kept, residual, self.out_features)
        return y


class PackedGEGLU(Packed):
    """``layers.GEGLU`` whose inner width is a multiple of 32."""

    def __init__(self, layer: layers.GEGLU) -> None:
        super().__init__()
        self.inner = layer.proj.out_features // 2
        self._keep(_ops.pack_linear(layer.proj.weight.detach()), layer.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., inner]."""
        y: Tensor = _ops.geglu(x, *self.kept, self.inner)
        return y


class PackedConv2d(Packed):
    """``layers.Conv2d`` with one group, no dilation, and the same stride and padding both ways.

    Where it is ``tileable`` and the picture is not tiny, it is done as by ``WinogradConv2d``, with weights that are
    transformed as they are used.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size, self.stride, self.padding = layer.kernel_size, layer.stride, layer.padding
        self._shape = (*layer.kernel_size, int(layer.stride[0]), int(layer.padding[0]))
        self.tileable = tileable(layer)
        self._keep(_ops.pack_convolution(layer.weight.detach()), layer.bias)

    def forward(self, x: Tensor, shift: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """``conv(x) + shift + residual``; shapes as in ``layers.Conv2d``."""
        one = (1, *x.shape[1:])  # so that a picture does not hang on how many there are
        if self.tileable and tiled_work(one, transformed=False) < direct_work(one):
            return cast(Tensor, _ops.winograd(x, *self.kept, shift, residual, self.out_channels))
        y: Tensor = _ops.convolution(x, *self.kept, shift, residual, self.out_channels, *self._shape)
        return y


def tileable(layer: nn.Conv2d) -> bool:
    """Whether Winograd's algorithm covers it: 3 x 3, stride 1, padding 1, input channels in multiples of 16."""
    return layer.in_channels % 16 == 0 and (
        (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
    )


class WinogradConv2d(Packed):
    """``layers.Conv2d`` that is ``tileable``.

    Lavin and Gray, "Fast algorithms for convolutional neural networks" (2016), F(4 x 4, 3 x 3): a quarter of the
    multiplications, at a relative error of about 5e-6. Weights that are transformed beforehand take four times the
    memory, and no time afterwards.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size, self.stride, self.padding = layer.kernel_size, layer.stride, layer.padding
        self._keep(_ops.pack_winograd(layer.weight.detach()), layer.bias)

    def forward(self, x: Tensor, shift: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """``conv(x) + shift + residual``; shapes as in ``layers.Conv2d``."""
        y: Tensor = _ops.winograd(x, *self.kept, shift, residual, self.out_channels)
        return y


class FusedGroupNorm(layers.GroupNorm):
    """``layers.GroupNorm`` with its SiLU, on the parameters of the layer it stands for."""

    def __init__(self, layer: layers.GroupNorm) -> None:
        super().__init__(layer.num_groups, layer.num_channels, layer.eps, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor, silu: bool = False) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        if x.dim() != 4:
            return super().forward(x, silu)
        y: Tensor = _ops.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, silu)
        return y


class PackedInt8(Packed):
    """What packed layers of 8 bits keep: weights, and for each column its scale and the sums of its weights."""

    def _keep_int8(self, weight: Tensor, bias: Tensor | None) -> None:
        packed, scale, sums = _ops.pack_int8(weight.detach())
        self._keep(packed, bias, scale=scale, sum=sums)


class PackedInt8Linear(PackedInt8):
    """``int8.Int8Linear``."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._keep_int8(layer.weight, layer.bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``x @ weight.T + bias + residual`` on [..., in] and [..., out]."""
        y: Tensor = _ops.linear_int8(x, *self.kept, residual, self.out_features)
        return y


class PackedInt8GEGLU(PackedInt8):
    """``int8.Int8GEGLU`` whose inner width is a multiple of 32."""

    def __init__(self, layer: layers.GEGLU) -> None:
        super().__init__()
        self.inner = layer.proj.out_features // 2
        self._keep_int8(layer.proj.weight, layer.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., inner]."""
        y: Tensor = _ops.geglu_int8(x, *self.kept, self.inner)
        return y


class PackedInt8Conv2d(PackedInt8):
    """``int8.Int8Conv2d``."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size, self.stride, self.padding = layer.kernel_size, layer.stride, layer.padding
        self._shape = (*layer.kernel_size, int(layer.stride[0]), int(layer.padding[0]))
        self._keep_int8(layer.weight, layer.bias)

    def forward(self, x: Tensor, shift: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """``conv(x) + shift + residual``; shapes as in ``layers.Conv2d``."""
        y: Tensor = _ops.convolution_int8(
            x, *self.kept, shift, residual, self.out_channels, *self._shape
        )
        return y
