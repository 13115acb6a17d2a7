"""Classifier-free guidance: Ho and Salimans, "Classifier-free diffusion guidance", 2022, eq. 6."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassifierFree:
    """negative + scale (positive - negative): 1 is the model as it is, 0 the negative alone.

    Attributes:
        channels: only so many of the first are guided, the others are the positive's. DiT's authors guided 3 of 4.
    """

    scale: float
    channels: int | None = None

    def wants(self, sigma: float) -> tuple[str, ...]:
        if self.scale == 1.0:
            return ("positive",)
        return ("negative",) if self.scale == 0.0 and self.channels is None else ("positive", "negative")

    def combine(self, outputs: Mapping[str, Tensor], sigma: float) -> Tensor:
        wanted = self.wants(sigma)
        if len(wanted) == 1:
            return outputs[wanted[0]]
        positive, negative = outputs["positive"], outputs["negative"]
        guided = negative + self.scale * (positive - negative)
        if self.channels is None:
            return guided
        return torch.cat([guided[:, : self.channels], positive[:, self.channels :]], dim=1)

    def constrain(self, x0: Tensor, sigma: float) -> Tensor:
        return x0
