"""Heun's method: Karras et al., "Elucidating the design space of diffusion-based generative models", 2022."""

import math
from itertools import pairwise

import torch
from torch import Tensor

from sfumato.sampling.euler import churn, churned
from sfumato.sampling.types import Noise, Query, Sampler, Sigmas


def heun(
    x: Tensor, sigmas: Sigmas, noise: Noise, *, s_churn: float = 0.0, s_tmin: float = 0.0,
    s_tmax: float = math.inf, s_noise: float = 1.0,
) -> Sampler:
    """Algorithm 2 of Karras et al. (2022); without churn, algorithm 1.

    Args:
        s_churn, s_tmin, s_tmax, s_noise: as in ``euler``.
    """
    for sigma, sigma_next in pairwise(sigmas):
        raised = churned(sigma, len(sigmas) - 1, s_churn, s_tmin, s_tmax)
        x = churn(x, noise, sigma, raised, s_noise)
        x0 = (yield Query(x, raised)).x0
        guess = torch.lerp(x0, x, sigma_next / raised)
        if sigma_next == 0:
            return guess
        slope, slope_next = (x - x0) / raised, (guess - (yield Query(guess, sigma_next)).x0) / sigma_next
        x = guess + (slope_next - slope) * ((sigma_next - raised) / 2.0)
    return x


def heunpp2(x: Tensor, sigmas: Sigmas, noise: Noise) -> Sampler:
    """Heun++ (Wang et al., "Lossy-to-lossless Heun++", as ComfyUI has it): three slopes, weighted by their sigmas.

    The weights, sigma_k / (3 sigma_0), are a heuristic for few steps: they are not those of a Taylor expansion, so the
    order is 1.
    """
    for i in range(len(sigmas) - 1):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        x0 = (yield Query(x, sigma)).x0
        slope = (x - x0) / sigma
        guess = torch.lerp(x0, x, sigma_next / sigma)
        change: Tensor | float = 0.0
        count = min(3, len(sigmas) - 1 - i)  # of slopes: the last step has one, the one before it two
        at = guess
        for k in range(1, count):
            here = sigmas[i + k]
            x0 = (yield Query(at, here)).x0
            change = change + ((at - x0) / here - slope) * (here / (count * sigmas[0]))
            at = torch.lerp(x0, at, sigmas[i + k + 1] / here)
        x = guess + change * (sigma_next - sigma)
    return x
