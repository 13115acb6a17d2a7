"""Orders of convergence, measured against the exact solution of a mixture of Gaussians."""

import math
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.sampling import SAMPLERS, TABLE
from sfumato.sampling.types import Query
from tests.sampling.driving import drive
from tests.sampling.mixture import Mixture

HIGH, LOW = 80.0, 0.1
MIXTURE = Mixture()


def start() -> Tensor:
    return HIGH * torch.randn(24, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@cache
def truth() -> Tensor:
    """The probability-flow ODE by 800 classical Runge-Kutta steps in log sigma."""

    def slope(x: Tensor, log: float) -> Tensor:
        return x - MIXTURE(Query(x, math.exp(log))).x0

    x = start()
    for i, j in pairwise(range(801)):
        a, b = (math.log(HIGH) + k / 800 * math.log(LOW / HIGH) for k in (i, j))
        h = b - a
        k1 = slope(x, a)
        k2 = slope(x + h / 2 * k1, a + h / 2)
        k3 = slope(x + h / 2 * k2, a + h / 2)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(x + h * k3, b))
    return x


def error(name: str, steps: int, **options: Any) -> float:
    edges = HIGH ** (1 / 7), LOW ** (1 / 7)
    sigmas = [(edges[0] + i / steps * (edges[1] - edges[0])) ** 7 for i in range(steps + 1)]
    sampler = SAMPLERS.get(name)(start(), sigmas, noise=unwanted, **options)
    return float((drive(sampler, MIXTURE) - truth()).square().mean().sqrt())


def unwanted() -> Tensor:
    raise AssertionError("a deterministic run drew noise")


def order(name: str, steps: int = 96, **options: Any) -> float:
    return math.log2(error(name, steps, **options) / error(name, 2 * steps, **options))


# dpm_adaptive chooses its own steps; ddpm, lcm and restart are nothing without their noise.
FIXED = [name for name in TABLE if name not in ("dpm_adaptive", "ddpm", "lcm", "restart")]


@pytest.mark.parametrize("name", FIXED)
def test_order_is_the_one_that_the_table_claims(name: str) -> None:
    options: dict[str, Any] = {"eta": 0.0} if TABLE[name].stochastic else {}
    assert order(name, **options) == pytest.approx(TABLE[name].order, abs=0.25)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("dpmpp_2m", {"order": 1}, 1),
        ("dpmpp_2m", {"solver": "heun"}, 2),
        ("lms", {"order": 1}, 1),
        ("lms", {"order": 2}, 2),
        ("lms", {"order": 3}, 3),
        ("deis", {"order": 1}, 1),
        ("deis", {"order": 3}, 3),
        ("dpmpp_2s", {"order": 3, "lower_order_final": False}, 3),
        ("dpmpp_2s", {"order": 3, "lower_order_final": False, "solver": "heun"}, 3),
    ],
)
def test_orders_of_the_variants(name: str, options: dict[str, Any], expected: int) -> None:
    assert order(name, **options) == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize("name", ["uni_pc", "uni_pc_bh2"])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_unipc_is_of_one_order_more_than_its_predictor(name: str, p: int) -> None:
    """Theorem 3.1 of its paper, which needs the last steps to be of full order."""
    assert order(name, 48, order=p, lower_order_final=False) == pytest.approx(p + 1, abs=0.3)


def test_adaptive_steps_obey_the_tolerance() -> None:
    def run(tolerance: float) -> tuple[float, int]:
        asked = 0

        def count(query: Query) -> Any:
            nonlocal asked
            asked += 1
            return MIXTURE(query)

        sampler = SAMPLERS.get("dpm_adaptive")(start()[:1], [HIGH, LOW], unwanted, rtol=tolerance, atol=tolerance)
        return float((drive(sampler, count) - truth()[:1]).abs().max()), asked

    (rough, few), (fine, many) = run(1e-2), run(1e-4)
    assert fine < 1e-3 < 0.3 > rough
    assert fine < rough / 5
    assert many > few
