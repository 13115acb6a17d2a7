"""Static and dynamic thresholding: Saharia et al. (Imagen), 2022, section 2.3."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.guidance.types import Guidance


@dataclass(frozen=True)
class Threshold:
    """Clip each clean picture to its own range s and divide by it, s being a percentile of its absolute values.

    Attributes:
        percentile: in (0, 1].
        unit: the range of pixels; s is never below it, so that pictures within it stay as they are.
        maximum: s is never above it.
    """

    inner: Guidance
    percentile: float
    unit: float = 1.0
    maximum: float = torch.inf

    def wants(self, sigma: float) -> tuple[str, ...]:
        return self.inner.wants(sigma)

    def combine(self, outputs: Mapping[str, Tensor], sigma: float) -> Tensor:
        return self.inner.combine(outputs, sigma)

    def constrain(self, x0: Tensor, sigma: float) -> Tensor:
        x0 = self.inner.constrain(x0, sigma)
        s = torch.quantile(x0.flatten(1).abs().float(), self.percentile, dim=1).clamp(self.unit, self.maximum)
        s = s.to(x0.dtype).view(-1, *[1] * (x0.ndim - 1))  # [B, 1, 1, 1]
        return x0.clamp(-s, s) * (self.unit / s)


@dataclass(frozen=True)
class Clip:
    """Clip the clean picture to [-bound, bound] (static thresholding)."""

    inner: Guidance
    bound: float

    def wants(self, sigma: float) -> tuple[str, ...]:
        return self.inner.wants(sigma)

    def combine(self, outputs: Mapping[str, Tensor], sigma: float) -> Tensor:
        return self.inner.combine(outputs, sigma)

    def constrain(self, x0: Tensor, sigma: float) -> Tensor:
        return self.inner.constrain(x0, sigma).clamp(-self.bound, self.bound)
