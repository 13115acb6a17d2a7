"""Truth that needs no peer: the exact denoiser of a mixture of Gaussians."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.sampling.types import Estimate, Query


@dataclass(frozen=True)
class Mixture:
    """Pictures of one pixel with two channels, drawn from Gaussians of deviation ``spread`` around ``centres``."""

    centres: tuple[tuple[float, float], ...] = ((-1.0, -0.5), (0.4, 1.2), (1.1, -0.8))
    weights: tuple[float, ...] = (0.5, 0.3, 0.2)
    spread: float = 0.35

    def mean(self) -> Tensor:
        """[2]"""
        return torch.tensor(self.weights, dtype=torch.float64) @ torch.tensor(self.centres, dtype=torch.float64)

    def covariance(self) -> Tensor:
        """[2, 2]"""
        centred = torch.tensor(self.centres, dtype=torch.float64) - self.mean()
        between = (centred * torch.tensor(self.weights, dtype=torch.float64)[:, None]).T @ centred
        return between + self.spread**2 * torch.eye(2, dtype=torch.float64)

    def __call__(self, query: Query) -> Estimate:
        """E[x0 | x]: each centre's posterior mean, weighted by how likely it is."""
        x = query.x.flatten(1)  # [B, 2]
        centres = torch.tensor(self.centres, dtype=x.dtype)  # [K, 2]
        variance = self.spread**2 + query.sigma**2
        offsets = x[:, None] - centres  # [B, K, 2]
        likely = torch.softmax(
            torch.tensor(self.weights, dtype=x.dtype).log() - offsets.square().sum(-1) / (2.0 * variance), dim=1
        )
        means = centres + offsets * (self.spread**2 / variance)
        return Estimate((likely[..., None] * means).sum(1).view_as(query.x))
