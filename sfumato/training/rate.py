"""The learning rate of each optimiser step: a function of the step alone."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from sfumato.core.errors import ConfigError


@dataclass(frozen=True)
class RateConfig:
    """The course of the learning rate, counted in optimiser steps."""

    learning_rate: Annotated[float, "the highest; of AdamW"] = 1e-4
    schedule: Annotated[Literal["constant", "linear", "cosine"], "how it falls to the last step"] = "cosine"
    warmup: Annotated[int, "optimiser steps in which it rises from 0"] = 0
    floor: Annotated[float, "0 to 1: the share of the highest at which it ends"] = 0.0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or self.warmup < 0 or not 0 <= self.floor <= 1:
            raise ConfigError("learning_rate must be above 0, warmup not below 0, floor from 0 to 1.")

    def at(self, step: int, steps: int) -> float:
        """The rate of step ``step``, 0 to ``steps - 1``."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, steps - self.warmup)
        left = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))}
        return self.learning_rate * (self.floor + (1.0 - self.floor) * left[self.schedule])
