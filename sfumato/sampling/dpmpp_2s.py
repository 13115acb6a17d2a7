"""Singlestep DPM-Solver++: Lu et al., "DPM-Solver++: fast solver for guided sampling", 2022, algorithm 1."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from sfumato.sampling.ancestral import split
from sfumato.sampling.types import Noise, Query, Sampler, Sigmas


def dpmpp_2s_ancestral(
    x: Tensor, sigmas: Sigmas, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0
) -> Sampler:
    """Ancestral sampling with DPM-Solver++(2S) steps (k-diffusion; Lu et al., 2022, algorithm 1, r = 1/2).

    Args:
        eta, s_noise: as in ``ddim``; with eta = 0 it is DPM-Solver++(2S).
    """
    for sigma, sigma_next in pairwise(sigmas):
        down, up = split(sigma, sigma_next, eta)
        x0 = (yield Query(x, sigma)).x0
        if down > 0:
            between = math.sqrt(sigma * down)
            x0 = (yield Query(torch.lerp(x0, x, between / sigma), between)).x0
        x = torch.lerp(x0, x, down / sigma)
        if up > 0:
            x = x + noise() * (s_noise * up)
    return x


def dpmpp_sde(
    x: Tensor, sigmas: Sigmas, noise: Noise, *, eta: float = 1.0, s_noise: float = 1.0, r: float = 0.5
) -> Sampler:
    """DPM-Solver++ (stochastic) of k-diffusion: ``dpmpp_2s_ancestral`` with noise at the half-way point too.

    Both noises are of one Brownian path whose time is sigma: the half-way one is its first increment, the whole
    step's is the sum of both, so that two independent increments, drawn here, are all that is needed.

    Args:
        eta, s_noise: as in ``ddim``.
        r: where between the ends, in log sigma, the second question is asked.
    """
    for sigma, sigma_next in pairwise(sigmas):
        x0 = (yield Query(x, sigma)).x0
        if sigma_next == 0:
            return x0
        between = sigma ** (1.0 - r) * sigma_next**r
        down, up = split(sigma, between, eta)
        guess = torch.lerp(x0, x, down / sigma)
        path: Tensor | float = 0.0  # the Brownian path since sigma
        if up > 0:
            path = noise() * math.sqrt(sigma - between)
            guess = guess + path * (s_noise * up / math.sqrt(sigma - between))
        x0 = torch.lerp(x0, (yield Query(guess, between)).x0, 1.0 / (2.0 * r))
        down, up = split(sigma, sigma_next, eta)
        x = torch.lerp(x0, x, down / sigma)
        if up > 0:
            path = path + noise() * math.sqrt(between - sigma_next)
            x = x + path * (s_noise * up / math.sqrt(sigma - sigma_next))
    return x
