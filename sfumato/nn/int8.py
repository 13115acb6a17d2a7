"""Stand-ins for ``sfumato.nn.layers`` that multiply in 8 bits, in plain PyTorch: lossy.

Each column of the weights (an output channel) has one scale; each row of the input (a token, or a position of a
picture) has one scale and one zero point, found when it comes by, so that nothing has to be calibrated (Dettmers et
al., "LLM.int8()", 2022, section 2.1). Everything between the products stays in float32. The native layers do the same
with the processor's instructions for it; here is the reference that they are tested against.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def coarse_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] -> int8 of the same shape and a scale for each of [out]; their product is the weight, about."""
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-30)
    return (weight / scale[:, None]).round().to(torch.int8), scale


def coarse_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., in] -> whole numbers from -255 to 255 in float32, and scales [..., 1]; their product is x, about.

    0 stays 0, and a row's numbers span 255 from the least to the greatest.
    """
    least, most = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = ((most - least) / 255).clamp(min=1e-30)
    zero = (-least / scale + 0.5).floor()
    return (x / scale + zero + 0.5).floor().clamp(0, 255) - zero, scale


class Int8(nn.Module):
    """Weights of 8 bits, [out, in], with their scales and a bias in float32."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def _keep(self, weight: Tensor, bias: Tensor | None) -> None:
        coarse, scale = coarse_weight(weight.detach())
        self.register_buffer("weight", coarse, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def product(self, x: Tensor) -> Tensor:
        """``x @ weight.T + bias`` on [..., in] and [..., out]."""
        rows, scale = coarse_rows(x)
        y = F.linear(rows, self.weight.float()) * (scale * self.scale)
        return y if self.bias is None else y + self.bias


class Int8Linear(Int8):
    """``layers.Linear``."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._keep(layer.weight, layer.bias)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``x @ weight.T + bias + residual`` on [..., in] and [..., out]."""
        y = self.product(x)
        return y if residual is None else residual + y


class Int8GEGLU(Int8):
    """``layers.GEGLU``, made of its projection."""

    def __init__(self, projection: nn.Linear) -> None:
        super().__init__()
        self.inner = projection.out_features // 2
        self._keep(projection.weight, projection.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., inner]."""
        value, gate = self.product(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class Int8Conv2d(Int8):
    """``layers.Conv2d`` with one group, no dilation, and the same stride and padding both ways."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.in_channels, self.out_channels = layer.in_channels, layer.out_channels
        self.kernel_size, self.stride, self.padding = layer.kernel_size, layer.stride, layer.padding
        self._keep(layer.weight.flatten(1), layer.bias)  # [out, in * height * width]

    def forward(self, x: Tensor, shift: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """``conv(x) + shift + residual``; shapes as in ``layers.Conv2d``."""
        whole, scale = coarse_rows(x.permute(0, 2, 3, 1))  # [B, H, W, C]
        weight = self.weight.float().view(self.out_channels, self.in_channels, *self.kernel_size)
        coarse = (whole * scale).permute(0, 3, 1, 2)
        y = F.conv2d(coarse, weight, None, self.stride, self.padding) * self.scale[:, None, None]
        if self.bias is not None:
            y = y + self.bias[:, None, None]
        if shift is not None:
            y = y + shift[:, :, None, None]
        return y if residual is None else residual + y
