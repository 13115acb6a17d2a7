"""Guidance rescale: Lin et al., "Common diffusion noise schedules and sample steps are flawed", 2024, eq. 15, 16."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from sfumato.guidance.types import Guidance


@dataclass(frozen=True)
class Rescaled:
    """The guided output, pulled by ``share`` (0 to 1) towards the standard deviation of the positive one."""

    inner: Guidance
    share: float

    def wants(self, sigma: float) -> tuple[str, ...]:
        return self.inner.wants(sigma)

    def combine(self, outputs: Mapping[str, Tensor], sigma: float) -> Tensor:
        guided = self.inner.combine(outputs, sigma)
        if len(self.wants(sigma)) == 1:
            return guided
        dims = list(range(1, guided.ndim))  # a deviation for each picture
        ratio = outputs["positive"].std(dims, keepdim=True) / guided.std(dims, keepdim=True)
        return guided * (self.share * ratio + (1.0 - self.share))

    def constrain(self, x0: Tensor, sigma: float) -> Tensor:
        return self.inner.constrain(x0, sigma)
