"""PNDM: Liu et al., "Pseudo numerical methods for diffusion models on manifolds", 2022, algorithms 1 and 2.

The paper's transfer (eq. 11) is, in this frame, x <- x + (sigma_next - sigma) e: Euler's step along a noise e that is
an average of the noises seen.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from sfumato.sampling.types import Noise, Query, Sampler, Sigmas

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights of the last one to four slopes, newest first, for equal steps."""

Averaged = Literal["epsilon", "v_prediction"]


def transfer(x: Tensor, x0: Tensor, change: Tensor | float, sigma: float, sigma_next: float) -> Tensor:
    """From ``sigma`` to ``sigma_next`` along the noise (x - x0) / sigma + ``change``."""
    return torch.lerp(x0, x, sigma_next / sigma) + change * (sigma_next - sigma)


def geometric_mean(sigma: float, sigma_next: float) -> float:
    """The sigma in the middle of log SNR."""
    return math.sqrt(sigma * sigma_next)


def plms(x: Tensor, sigmas: Sigmas, noise: Noise, *, average: Averaged = "epsilon") -> Sampler:
    """PNDM without the Runge-Kutta warm-up (pseudo linear multistep): its first step is made twice, as in CompVis'.

    Args:
        average: what is averaged. The paper's is the noise; for networks that say v, diffusers averages v.
    """
    seen: list[Tensor] = []  # newest first
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Query(x, sigma)).x0
        seen = [said(x, x0, sigma, average), *seen[:3]]
        change = deviation(mean(seen, ADAMS_BASHFORTH[len(seen) - 1]), seen[0], sigma, average)
        stepped = transfer(x, x0, change, sigma, sigma_next)
        if i == 0 and len(sigmas) > 2:  # Heun's step, with the noise at the end of Euler's
            again = (yield Query(stepped, sigma_next)).x0
            both = [said(stepped, again, sigma_next, average), seen[0]]
            change = deviation(mean(both, (0.5, 0.5)), seen[0], sigma, average)
            stepped = transfer(x, x0, change, sigma, sigma_next)
        x = stepped
    return x


def pndm(
    x: Tensor, sigmas: Sigmas, noise: Noise, *, average: Averaged = "epsilon",
    middle: Callable[[float, float], float] = geometric_mean,
) -> Sampler:
    """PNDM (Liu et al., 2022, algorithm 2): three pseudo Runge-Kutta steps (eq. 13), then linear multistep (eq. 12).

    Args:
        average: as in ``plms``.
        middle: the sigma half-way between two; the paper's is half-way in time, which a schedule knows.
    """
    seen: list[Tensor] = []
    for i, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        x0 = (yield Query(x, sigma)).x0
        seen = [said(x, x0, sigma, average), *seen[:3]]
        if i < 3 and sigma_next > 0:
            between = middle(sigma, sigma_next)
            stages = [seen[0]]
            for target in (between, between, sigma_next):
                guess = transfer(x, x0, deviation(stages[-1], seen[0], sigma, average), sigma, target)
                stages.append(said(guess, (yield Query(guess, target)).x0, target, average))
            averaged = mean(stages, (1 / 6, 1 / 3, 1 / 3, 1 / 6))
        else:
            averaged = mean(seen, ADAMS_BASHFORTH[len(seen) - 1])
        x = transfer(x, x0, deviation(averaged, seen[0], sigma, average), sigma, sigma_next)
    return x


def ipndm(x: Tensor, sigmas: Sigmas, noise: Noise, *, order: int = 4) -> Sampler:
    """iPNDM (Zhang and Chen, 2023, appendix): linear multistep from the start, of lower order while there is less.

    The weights are those of equal steps, so that the claimed order is reached where sigmas are evenly spaced.
    """
    seen: list[Tensor] = []
    for sigma, sigma_next in pairwise(sigmas):
        x0 = (yield Query(x, sigma)).x0
        seen = [said(x, x0, sigma, "epsilon"), *seen[: order - 1]]
        x = transfer(x, x0, mean(seen, ADAMS_BASHFORTH[len(seen) - 1]) - seen[0], sigma, sigma_next)
    return x


def mean(seen: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = seen[0] * weights[0]
    for value, weight in zip(seen[1:], weights[1:], strict=True):
        total = total + value * weight
    return total


def said(x: Tensor, x0: Tensor, sigma: float, average: Averaged) -> Tensor:
    """The noise that x and x0 stand for, or the v of a variance-preserving schedule, alpha noise - alpha sigma x0."""
    slope = (x - x0) / sigma
    return slope if average == "epsilon" else (slope - sigma * x0) * (1.0 + sigma**2) ** -0.5


def deviation(averaged: Tensor, own: Tensor, sigma: float, average: Averaged) -> Tensor:
    """How far the noise that ``averaged`` stands for is from the one that ``own`` stands for, at the same x.

    v reads as the noise alpha (v + alpha sigma x), so that x cancels in the difference.
    """
    change = averaged - own
    return change if average == "epsilon" else change * (1.0 + sigma**2) ** -0.5
