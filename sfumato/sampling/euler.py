"""Euler's method: Karras et al., "Elucidating the design space of diffusion-based generative models", 2022."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from sfumato.sampling.ddim import ddim
from sfumato.sampling.types import Noise, Query, Sampler, Sigmas


def euler(
    x: Tensor, sigmas: Sigmas, noise: Noise, *, s_churn: float = 0.0, s_tmin: float = 0.0,
    s_tmax: float = math.inf, s_noise: float = 1.0,
) -> Sampler:
    """Algorithm 2 of Karras et al. (2022) without its correction; without churn, the first-order ODE step.

    Args:
        s_churn: how much noise is put back before the steps, spread over all of them.
        s_tmin, s_tmax: only at sigmas in this range.
        s_noise: a factor on that noise.
    """
    for sigma, sigma_next in pairwise(sigmas):
        raised = churned(sigma, len(sigmas) - 1, s_churn, s_tmin, s_tmax)
        x = churn(x, noise, sigma, raised, s_noise)
        x0 = (yield Query(x, raised)).x0
        x = torch.lerp(x0, x, sigma_next / raised)
    return x


def euler_ancestral(x: Tensor, sigmas: Sigmas, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0) -> Sampler:
    """Ancestral sampling with Euler steps (k-diffusion): DDIM with eta, whose default is 1."""
    return ddim(x, sigmas, noise, eta=eta, s_noise=s_noise)


def churned(sigma: float, steps: int, s_churn: float, s_tmin: float, s_tmax: float) -> float:
    """The sigma to which noise is put back before a step (Karras et al., 2022, algorithm 2, lines 4 and 5)."""
    gamma = min(s_churn / steps, math.sqrt(2.0) - 1.0) if s_tmin <= sigma <= s_tmax else 0.0
    return sigma * (1.0 + gamma)


def churn(x: Tensor, noise: Callable[[], Tensor], sigma: float, raised: float, s_noise: float) -> Tensor:
    """x at ``sigma`` with noise put back up to ``raised`` (Karras et al., 2022, algorithm 2, line 6)."""
    if raised <= sigma:
        return x
    return x + noise() * (s_noise * math.sqrt((raised - sigma) * (raised + sigma)))
