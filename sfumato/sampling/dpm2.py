"""DPM-Solver-2 in the form of Karras et al.: Lu et al., "DPM-Solver", 2022, algorithm 1; k-diffusion."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from sfumato.sampling.ancestral import split
from sfumato.sampling.euler import churn, churned
from sfumato.sampling.types import Noise, Query, Sampler, Sigmas


def dpm_2(
    x: Tensor, sigmas: Sigmas, noise: Noise, *, s_churn: float = 0.0, s_tmin: float = 0.0,
    s_tmax: float = math.inf, s_noise: float = 1.0,
) -> Sampler:
    """The midpoint method, its middle being that of log sigma (k-diffusion; Lu et al., 2022, algorithm 1).

    Args:
        s_churn, s_tmin, s_tmax, s_noise: as in ``euler``.
    """
    for sigma, sigma_next in pairwise(sigmas):
        raised = churned(sigma, len(sigmas) - 1, s_churn, s_tmin, s_tmax)
        x = churn(x, noise, sigma, raised, s_noise)
        x = yield from midpoint(x, raised, sigma_next)
    return x


def dpm_2_ancestral(
    x: Tensor, sigmas: Sigmas, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Sampler:
    """Ancestral sampling with the steps of ``dpm_2``.

    Args:
        eta, s_noise: as in ``ddim``.
    """
    for sigma, sigma_next in pairwise(sigmas):
        down, up = split(sigma, sigma_next, eta)
        x = yield from midpoint(x, sigma, down)
        if up > 0:
            x = x + noise() * (s_noise * up)
    return x


def midpoint(x: Tensor, sigma: float, sigma_next: float) -> Sampler:
    """One step; Euler's where it ends at 0, of which no logarithm is half-way."""
    x0 = (yield Query(x, sigma)).x0
    if sigma_next == 0:
        return x0
    between = math.sqrt(sigma * sigma_next)
    guess = torch.lerp(x0, x, between / sigma)
    change = (guess - (yield Query(guess, between)).x0) / between - (x - x0) / sigma
    return torch.lerp(x0, x, sigma_next / sigma) + change * (sigma_next - sigma)
