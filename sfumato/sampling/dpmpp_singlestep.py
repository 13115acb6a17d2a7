"""DPM-Solver++ with the given sigmas as its intermediate points: Lu et al., "DPM-Solver++", 2022, section 4.1."""

import math
from typing import Literal

import torch
from torch import Tensor

from sfumato.sampling.types import Noise, Query, Sampler, Sigmas


def dpmpp_singlestep(
    x: Tensor, sigmas: Sigmas, noise: Noise, *, order: int = 2, solver: Literal["midpoint", "heun"] = "midpoint",
    lower_order_final: bool = True,
) -> Sampler:
    """Singlestep DPM-Solver++ of order 1 to 3 at one question a sigma (Lu et al., 2022, algorithm 1, and 2022a).

    The sigmas are taken in groups of ``order``: from the first of a group, every one of the next is reached with one
    answer more, always starting anew from the group's first x.

    Args:
        solver: how slopes enter: at the middle of the step, or integrated ("heun").
        lower_order_final: where groups do not fill the run, or it ends at 0, the last are smaller.
    """
    orders = groups(len(sigmas) - 1, order, lower_order_final or (len(sigmas) - 1) % order != 0 or sigmas[-1] == 0)
    if sigmas[-1] == 0:
        orders[-1] = 1
    anchor, answers = x, []
    for i, now in enumerate(orders):
        answers.append((yield Query(x, sigmas[i])).x0)
        if now == 1:
            anchor, answers = x, answers[-1:]
        if sigmas[i + 1] == 0:
            return answers[-1]
        first = i + 1 - now  # where the group began
        x = _step(anchor, answers[-now:], [sigmas[first + k] for k in range(now + 1)], solver)
    return x


def _step(x: Tensor, answers: list[Tensor], sigmas: list[float], solver: str) -> Tensor:
    """From sigmas[0] to sigmas[-1], with the answers at all but the last."""
    h = math.log(sigmas[0] / sigmas[-1])
    stepped = torch.lerp(answers[0], x, math.exp(-h))
    if len(answers) == 1:
        return stepped
    slope = 1.0 + math.expm1(-h) / h
    r = [math.log(sigmas[0] / sigma) / h for sigma in sigmas[1:-1]]
    last = (answers[-1] - answers[0]) / r[-1]
    if len(answers) == 2:
        return stepped + last * (-0.5 * math.expm1(-h) if solver == "midpoint" else slope)
    if solver == "midpoint":
        return stepped + last * slope
    early = (answers[1] - answers[0]) / r[0]
    first = (early * r[1] - last * r[0]) / (r[1] - r[0])
    second = (last - early) * (2.0 / (r[1] - r[0]))
    return stepped + first * slope - second * (slope / h - 0.5)


def groups(steps: int, order: int, fill: bool) -> list[int]:
    """The order of every step: 1, 2, … ``order``, and again; ``fill`` ends in smaller groups, of 2 and 1."""
    cycle = list(range(1, order + 1))
    if not fill or order == 1:
        return (cycle * steps)[:steps]
    whole = (steps - 1) // order if order == 2 or steps % order else steps // order - 1
    rest = steps - whole * order
    endings = {1: [1], 2: [1, 1] if order == 2 else [1, 2], 3: [1, 2, 1]}
    return cycle * whole + endings[rest]
