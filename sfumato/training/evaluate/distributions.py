"""How like two sets of pictures are, in the features of a network: FID, KID, precision and recall."""

from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.errors import ConfigError


class Distances(NamedTuple):
    """Between real pictures and drawn ones.

    Attributes:
        fid: Fréchet distance, 0 or more; with few pictures it is too high.
        kid: squared maximum mean discrepancy, without bias: may be below 0.
        precision: 0 to 1, the share of drawn pictures that lie among real ones.
        recall: 0 to 1, the share of real pictures that lie among drawn ones.
    """

    fid: float
    kid: float
    precision: float
    recall: float


def distances(real: Tensor, drawn: Tensor) -> Distances:
    """All of them; [N, D] and [M, D] features.

    Raises:
        ConfigError: fewer than 5 of either, which say nothing of a distribution.
    """
    if min(len(real), len(drawn)) < 5:
        raise ConfigError(f"{len(real)} real and {len(drawn)} drawn pictures are too few to compare: at least 5 each.")
    return Distances(frechet(real, drawn), kid(real, drawn), *precision_recall(real, drawn))


def frechet(a: Tensor, b: Tensor) -> float:
    """Of two Gaussians with the sets' means and covariances (Heusel et al., 2017, eq. 6).

    |m - n|^2 + tr(A + B - 2 (A B)^(1/2)), and the last trace is that of the symmetric (A^(1/2) B A^(1/2))^(1/2).
    """
    a, b = a.double(), b.double()
    first, second = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    apart = (a.mean(0) - b.mean(0)).square().sum()
    return float(apart + first.trace() + second.trace() - 2.0 * mixed)


def kid(a: Tensor, b: Tensor) -> float:
    """With the kernel (x . y / D + 1)^3 over all pairs (Bińkowski et al., 2018, section 4; Gretton et al., eq. 3)."""
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1.0) ** 3

    def within(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2.0 * kernel(a, b).mean())


def precision_recall(real: Tensor, drawn: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Shares of one set within the balls about the other's points (Kynkäänniemi et al., 2019, eq. 1 and 2).

    A ball reaches to its centre's third nearest neighbour of the same set.
    """

    def covered(points: Tensor, centres: Tensor) -> float:
        radii = torch.cdist(centres, centres).kthvalue(min(neighbours + 1, len(centres)), dim=1).values
        return float((torch.cdist(points, centres) <= radii).any(1).double().mean())

    real, drawn = real.double(), drawn.double()
    return covered(drawn, real), covered(real, drawn)
