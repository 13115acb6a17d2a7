"""Restart: Xu et al., "Restart sampling for improving generative processes", 2023, algorithm 2."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from sfumato.sampling.heun import heun
from sfumato.sampling.types import Noise, Sampler, Sigmas

Segment = tuple[float, float, int, int]


def restart(
    x: Tensor, sigmas: Sigmas, noise: Noise, *, segments: Sequence[Segment] = ((0.1, 2.0, 9, 1),),
    s_noise: float = 1.0,
) -> Sampler:
    """Heun's method that goes back up with fresh noise and down again (Xu et al., 2023, algorithm 2).

    Args:
        segments: (low, high, steps, times): on reaching the sigma nearest to low, go up to high and down again in
            that many steps, that many times; these steps are made beside those of ``sigmas``. A segment that does
            not lie within the run (low above 0, high not above the first sigma) is left out.
        s_noise: a factor on the fresh noise.
    """
    inner = [s for s in sigmas[1:-1] if s > 0]
    due: dict[float, list[Segment]] = {}
    for segment in segments:
        if inner and segment[1] <= sigmas[0]:
            nearest = min(inner, key=lambda s: abs(s - segment[0]))
            if nearest < segment[1]:
                due.setdefault(nearest, []).append(segment)
    for sigma, sigma_next in pairwise(sigmas):
        x = yield from heun(x, (sigma, sigma_next), noise)
        for _, high, steps, times in due.get(sigma_next, []):
            for _ in range(times):
                x = x + noise() * (s_noise * math.sqrt((high - sigma_next) * (high + sigma_next)))
                x = yield from heun(x, powers(high, sigma_next, steps), noise)
    return x


def powers(high: float, low: float, steps: int, rho: float = 7.0) -> list[float]:
    """``steps`` + 1 sigmas, even in sigma^(1 / rho) (Karras et al., 2022, eq. 5), both ends exact."""
    ends = high ** (1.0 / rho), low ** (1.0 / rho)
    between = [(ends[0] + i / steps * (ends[1] - ends[0])) ** rho for i in range(1, steps)]
    return [high, *between, low]
