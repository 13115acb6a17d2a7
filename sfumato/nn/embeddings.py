"""Numbers made into vectors: time, sizes, guidance scales."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.layers import Linear


def sinusoid(t: Tensor, dim: int, cosine_first: bool = True, freq_shift: float = 0.0) -> Tensor:
    """Sines and cosines of t at ``dim / 2`` geometrically falling frequencies (Vaswani et al., 2017, section 3.5).

    Args:
        t: [...], any real numbers.
        dim: even.
        cosine_first: the cosines stand before the sines (the "flip" of configurations).
        freq_shift: the lowest frequency is 10000^-((dim/2 - 1) / (dim/2 - freq_shift)).

    Returns:
        [..., dim], float32 whatever t is: times of a thousand steps do not fit half precision.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angles = t.float()[..., None] * torch.exp(-math.log(10_000.0) * exponents)
    sine, cosine = angles.sin(), angles.cos()
    return torch.cat([cosine, sine] if cosine_first else [sine, cosine], dim=-1)


class TimestepEmbedding(nn.Module):
    """The small network that vectors pass on their way into the residual blocks (Ho et al., 2020, appendix B).

    Args:
        channels: of the input.
        dim: of the output.
        condition: of a second input that is added to the first (the guidance scale of Luo et al., "Latent consistency
            models", 2023), or None.
    """

    def __init__(self, channels: int, dim: int, condition: int | None = None) -> None:
        super().__init__()
        self.linear_1 = Linear(channels, dim)
        self.cond_proj = None if condition is None else Linear(condition, channels, bias=False)
        self.linear_2 = Linear(dim, dim)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """[..., channels], [..., condition] -> [..., dim]."""
        if self.cond_proj is not None and condition is not None:
            x = x + self.cond_proj(condition)
        y: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return y


@dataclass(frozen=True)
class Times:
    """What a network makes of the time, and of what is added to it, before it has seen the picture.

    Attributes:
        shifts: [..., rows, S]; for each row what every residual block adds, one after the other in the order in which
            they run. One row serves any number of pictures; else row r serves picture r mod rows.
    """

    shifts: Tensor

    def __len__(self) -> int:
        return len(self.shifts)

    def __getitem__(self, index: int | slice | Sequence[int]) -> "Times":
        """Along the first axis: of a schedule's table one step, of a step's rows some."""
        return Times(self.shifts[index if isinstance(index, int | slice) else list(index)])

    @staticmethod
    def cat(parts: "Sequence[Times]") -> "Times":
        """The rows of several, one after the other."""
        return parts[0] if len(parts) == 1 else Times(torch.cat([part.shifts for part in parts]))
