"""UniPC: Zhao et al., "UniPC: a unified predictor-corrector framework", 2023, algorithms 1 and 2."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sfumato.sampling.types import Noise, Query, Sampler, Sigmas

B = Literal["bh1", "bh2"]


def uni_pc(
    x: Tensor, sigmas: Sigmas, noise: Noise, *, order: int = 3, solver: B = "bh1", lower_order_final: bool = True,
    skip_corrector: Sequence[int] = (),
) -> Sampler:
    """UniPC in the data prediction of DPM-Solver++ (Zhao et al., 2023, algorithms 1 and 2, eq. 11).

    Every answer corrects the step that led to it before the next is made, so that there is one question a step.

    Args:
        order: of the predictor, 1 to 3; the corrector adds one.
        solver: B(h) = h ("bh1") or e^h - 1 ("bh2").
        lower_order_final: end in orders 2 and 1. A last step to 0 is always of order 1.
        skip_corrector: the numbers of the steps that are not corrected.
    """
    steps = len(sigmas) - 1
    answers: list[Tensor] = []  # newest first
    start, used = x, 0  # of the last step
    for i in range(steps):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        x0 = (yield Query(x, sigma)).x0
        if i > 0 and i - 1 not in skip_corrector and sigma < sigmas[i - 1]:
            x = _step(start, answers, sigmas, i - 1, used, solver, x0)
        answers = [x0, *answers[: order - 1]]
        if sigma_next == 0:
            return x0
        used = min(order, len(answers), steps - i if lower_order_final else order)
        start = x
        if sigma_next < sigma:
            x = _step(x, answers, sigmas, i, used, solver, None)
    return x


def _step(
    x: Tensor, answers: Sequence[Tensor], sigmas: Sigmas, i: int, order: int, solver: B, arrived: Tensor | None
) -> Tensor:
    """From sigmas[i] to sigmas[i + 1]: the predictor, or with the answer found on arrival the corrector.

    Args:
        answers: newest first; the first is that at sigmas[i].
    """
    h = math.log(sigmas[i] / sigmas[i + 1])
    scale = -h if solver == "bh1" else math.expm1(-h)
    ratios = [math.log(sigmas[i] / sigmas[i - k]) / h for k in range(1, order)]
    slopes = [(answers[k] - answers[0]) / ratios[k - 1] for k in range(1, order)]
    if arrived is not None:
        ratios, slopes = [*ratios, 1.0], [*slopes, arrived - answers[0]]
    x = torch.lerp(answers[0], x, sigmas[i + 1] / sigmas[i])
    for weight, slope in zip(_weights(ratios, h, scale, arrived is None), slopes, strict=True):
        x = x - slope * (scale * weight)
    return x


def _weights(ratios: Sequence[float], h: float, scale: float, predicting: bool) -> list[float]:
    """The solution a of sum_k ratios[k]^(n - 1) a[k] = n! phi_(n + 1)(-h) (-h) / scale, n = 1, 2, … (eq. 11).

    A single weight is 1/2 whatever h is: then every B(h) will do (section 3.3).
    """
    if len(ratios) == 0:
        return []
    if len(ratios) == 1:
        return [0.5]
    phi, factorial = math.expm1(-h) / -h - 1.0, 1.0
    right = []
    for n in range(1, len(ratios) + 1):
        right.append(phi * factorial / scale)
        factorial *= n + 1
        phi = phi / -h - 1.0 / factorial
    matrix = np.array([[r**n for r in ratios] for n in range(len(ratios))])
    found: list[float] = np.linalg.solve(matrix, np.array(right)).tolist()
    return found


def uni_pc_bh2(
    x: Tensor, sigmas: Sigmas, noise: Noise, *, order: int = 2, lower_order_final: bool = True,
    skip_corrector: Sequence[int] = (),
) -> Sampler:
    """``uni_pc`` with B(h) = e^h - 1, and of order 2 unless said otherwise, as diffusers has it."""
    return uni_pc(x, sigmas, noise, order=order, solver="bh2", lower_order_final=lower_order_final,
                  skip_corrector=skip_corrector)
