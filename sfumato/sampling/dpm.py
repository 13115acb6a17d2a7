"""DPM-Solver, fast and adaptive: Lu et al., "DPM-Solver: a fast ODE solver", 2022, section 3 and appendix C."""

import math
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from sfumato.core.errors import NumericError, RequestError
from sfumato.sampling.ancestral import split
from sfumato.sampling.types import Estimate, Noise, Query, Sampler, Sigmas

Answers = list[Tensor]
"""Slopes (x - x0) / sigma seen in one step, the first at its start."""


def dpm_fast(x: Tensor, sigmas: Sigmas, noise: Noise, *, eta: float = 0.0, s_noise: float = 1.0) -> Sampler:
    """DPM-Solver-fast (Lu et al., 2022, section 3.4): as many questions as there are steps, most in threes.

    Of ``sigmas``, only the ends and the number count: the steps are even in log sigma from the first to the last
    above 0. A run that ends at 0 spends its last question there.

    Args:
        eta, s_noise: as in ``ddim``.
    """
    budget = len(sigmas) - 1
    if sigmas[-1] == 0:
        if budget == 1:
            return (yield Query(x, sigmas[0])).x0
        budget -= 1
    start, end = sigmas[0], sigmas[-1] if sigmas[-1] > 0 else sigmas[-2]
    whole, rest = divmod(budget, 3)
    orders = [3] * whole + ([rest] if rest else [])
    if rest == 0:
        orders[-1:] = [2, 1]
    edges = [start * (end / start) ** (i / len(orders)) for i in range(len(orders))] + [end]
    for order, sigma, sigma_next in zip(orders, edges, edges[1:], strict=False):
        down, up = split(sigma, sigma_next, eta)
        x, _ = yield from step(x, sigma, down, order, [])
        if up > 0:
            x = x + noise() * (s_noise * up)
    return (yield Query(x, end)).x0 if sigmas[-1] == 0 else x


def dpm_adaptive(
    x: Tensor, sigmas: Sigmas, noise: Noise, *, order: int = 3, rtol: float = 0.05, atol: float = 0.0078,
    h_init: float = 0.05, pcoeff: float = 0.0, icoeff: float = 1.0, dcoeff: float = 0.0, safety: float = 0.81,
    eta: float = 0.0, s_noise: float = 1.0,
) -> Sampler:
    """DPM-Solver-12 and -23 with steps chosen by their error (Lu et al., 2022, appendix C; PID of Söderlind, 2003).

    Of ``sigmas``, only the ends count; the number of questions follows from the tolerances. A run that ends at 0 asks
    once more there.

    Args:
        order: 2 or 3, of the better of the two solutions compared.
        rtol, atol: the relative and absolute error allowed in a step.
        h_init: the first step to try, in log sigma.
        pcoeff, icoeff, dcoeff: of the step size controller.
        safety: how much smaller than allowed an error must be.
        eta, s_noise: as in ``ddim``.

    Raises:
        RequestError: several pictures in x: their errors would decide each other's steps.
        NumericError: the error of a step is not a number.
    """
    if len(x) != 1:
        raise RequestError("dpm_adaptive chooses its steps for one picture: run each picture alone.")
    end = sigmas[-1] if sigmas[-1] > 0 else sigmas[-2]
    sigma, h, before = sigmas[0], h_init, x
    errors: list[float] = []  # reciprocals, newest first
    while sigma > end * (1.0 + 1e-9):
        target = max(end, sigma * math.exp(-h))
        down, up = split(sigma, target, eta)
        low, seen = yield from step(x, sigma, down, order - 1, [], r=1 / 3)
        high, _ = yield from step(x, sigma, down, order, seen)
        allowed = torch.maximum(low.abs(), before.abs()).mul(rtol).clamp(min=atol)
        error = float(((low - high) / allowed).square().mean().sqrt())
        if not math.isfinite(error):
            raise NumericError(f"The step from sigma {sigma:.4g} to {target:.4g} gave numbers that are not finite.")
        inverse = 1.0 / (1e-8 + error)
        errors = errors or [inverse] * 3
        errors[0] = inverse
        exponents = (pcoeff + icoeff + dcoeff) / order, -(pcoeff + 2.0 * dcoeff) / order, dcoeff / order
        factor = math.prod(e**k for e, k in zip(errors, exponents, strict=True))
        factor = 1.0 + math.atan(factor - 1.0)
        if factor >= safety:
            errors = [errors[0], errors[0], errors[1]]
            before = low
            x = high + noise() * (s_noise * up) if up > 0 else high
            sigma = target
        h *= factor
    return (yield Query(x, end)).x0 if sigmas[-1] == 0 else x


def step(
    x: Tensor, sigma: float, sigma_next: float, order: int, seen: Answers, r: float = 0.5
) -> Generator[Query, Estimate, tuple[Tensor, Answers]]:
    """One step of DPM-Solver-1, of -2 (algorithm 1) or of -3 (algorithm 2, r1 = 1/3, r2 = 2/3).

    Args:
        seen: slopes that a step of lower order, from the same x and to the same end, has asked for.
        r: where the second order asks, as a share of the step in log sigma.

    Returns:
        x at ``sigma_next``, and the slopes asked for, which the next higher order need not ask again.
    """
    h = math.log(sigma / sigma_next)
    points = {1: (0.0,), 2: (0.0, r), 3: (0.0, 1 / 3, 2 / 3)}[order]
    slopes = list(seen)
    for k in range(len(slopes), order):
        at = sigma * math.exp(-points[k] * h)
        guess = x if k == 0 else _reach(x, slopes, points, sigma, at, h)
        slopes.append((guess - (yield Query(guess, at)).x0) / at)
    if order == 2:
        euler = torch.lerp(x - slopes[0] * sigma, x, sigma_next / sigma)
        return euler - (slopes[1] - slopes[0]) * (sigma_next * math.expm1(h) / (2.0 * r)), slopes
    return _reach(x, slopes, points, sigma, sigma_next, h), slopes


def _reach(x: Tensor, slopes: Answers, points: Sequence[float], sigma: float, target: float, h: float) -> Tensor:
    """x at ``target``, along the first slope and what the last one adds to it (Lu et al., 2022, algorithm 2)."""
    reached = torch.lerp(x - slopes[0] * sigma, x, target / sigma)
    if len(slopes) == 1:
        return reached
    along = math.log(sigma / target)
    change = (slopes[-1] - slopes[0]) / points[len(slopes) - 1]
    return reached - change * (target * (math.expm1(along) - along) / h)
