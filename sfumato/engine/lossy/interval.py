"""Guidance in a part of the run only; see ``guidance.interval``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from sfumato.core.errors import ConfigError
from sfumato.engine.lossy.types import Lossy


@dataclass(frozen=True)
class GuidanceInterval(Lossy):
    """The bounds are those that Kynkäänniemi et al. (2024, section 4.2) found best for Stable Diffusion XL."""

    name: ClassVar = "interval"
    title: ClassVar = "guides only while sigma is in an interval, and computes one answer a step outside it"

    low: Annotated[float, "sigma below which nothing is guided"] = 0.28
    high: Annotated[float, "sigma above which nothing is guided"] = 5.42

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ConfigError(f"interval = {self.low:g}, {self.high:g}: must be two sigmas, the lower first.")

    def guidance(self) -> Mapping[str, Any]:
        return {"guidance_interval": (self.low, self.high)}
