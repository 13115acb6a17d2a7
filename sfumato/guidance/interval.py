"""Guidance in an interval: Kynkäänniemi et al., "Applying guidance in a limited interval", 2024, eq. 5."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sfumato.guidance.types import Guidance


@dataclass(frozen=True)
class Interval:
    """``inner`` while sigma is in ``bounds`` (both included); the positive alone, and alone computed, elsewhere."""

    inner: Guidance
    bounds: tuple[float, float]

    def _inside(self, sigma: float) -> bool:
        return self.bounds[0] <= sigma <= self.bounds[1]

    def wants(self, sigma: float) -> tuple[str, ...]:
        return self.inner.wants(sigma) if self._inside(sigma) else ("positive",)

    def combine(self, outputs: Mapping[str, Tensor], sigma: float) -> Tensor:
        return self.inner.combine(outputs, sigma) if self._inside(sigma) else outputs["positive"]

    def constrain(self, x0: Tensor, sigma: float) -> Tensor:
        return self.inner.constrain(x0, sigma)
