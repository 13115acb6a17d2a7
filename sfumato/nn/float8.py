"""A stand-in for ``sfumato.nn.layers.Linear`` that multiplies floating-point numbers of 8 bits: lossy.

The numbers are E4M3 (Micikevicius et al., "FP8 formats for deep learning", 2022): 4 bits of exponent, 3 of mantissa,
448 at most. Each output channel of the weights has one scale, and each row of the input (a token) one of its own, found
when it comes by, so that nothing has to be calibrated. Convolutions stay as they are: no chip's library has them in
these numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn import gpu

E4M3 = torch.float8_e4m3fn
MOST = 448.0
"""The largest number that E4M3 has."""

MULTIPLE = 16
"""What the sides of a weight must be divisible by."""

SINCE = (8, 9)
"""CUDA's compute capability from which on chips multiply such numbers: Ada and Hopper."""


def why_not(device: torch.device) -> str:
    """Why a device does not multiply these numbers by instructions of its own; empty where it does."""
    if device.type != "cuda":
        return f"{device.type} devices have no instructions for them that PyTorch knows"
    if torch.version.hip or (found := torch.cuda.get_device_capability(device)) >= SINCE:
        return ""
    return f"CUDA devices have them from capability {SINCE[0]}.{SINCE[1]} on, and this one has {found[0]}.{found[1]}"


def coarse_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., in] -> E4M3 of the same shape, and float32 scales [..., 1]; their product is x, about."""
    x = x.float()
    scale = (x.abs().amax(dim=-1, keepdim=True) / MOST).clamp(min=1e-30)
    return (x / scale).clamp(-MOST, MOST).to(E4M3), scale


class Float8Linear(nn.Module):
    """``layers.Linear``. A chip without such products gives the same result, and takes longer than in full.

    Weights [out, in] in E4M3, with their scales in float32 and a bias as it was.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        coarse, scale = coarse_rows(layer.weight.detach())
        self.register_buffer("weight", coarse, persistent=False)
        self.register_buffer("scale", scale.T.contiguous(), persistent=False)  # [1, out]
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach(), persistent=False)

    @staticmethod
    def fits(layer: nn.Linear) -> bool:
        """Whether the layer has sides that can be multiplied so."""
        return layer.in_features % MULTIPLE == 0 == layer.out_features % MULTIPLE

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``x @ weight.T + bias + residual`` on [..., in] and [..., out]."""
        rows = x.flatten(0, -2).contiguous()
        if gpu.fuses(rows):
            y = self._product(*gpu.coarse_rows(rows, E4M3, MOST)).to(x.dtype)
            gpu.add_to_rows(y, self.bias, None if residual is None else residual.contiguous())
            return y.view(*x.shape[:-1], self.out_features)
        y = self._product(*coarse_rows(rows)).view(*x.shape[:-1], self.out_features).to(x.dtype)
        if self.bias is not None:
            y = y + self.bias
        return y if residual is None else residual + y

    def _product(self, rows: Tensor, scale: Tensor) -> Tensor:
        """[rows, in] in E4M3, with [rows, 1] -> [rows, out] in bfloat16, which is what every such chip makes."""
        if rows.is_cuda:
            found: Tensor = torch._scaled_mm(
                rows, self.weight.T, scale, self.scale, out_dtype=torch.bfloat16, use_fast_accum=True
            )
            return found
        return F.linear(rows.float() * scale, self.weight.float() * self.scale.T).bfloat16()
