"""Painting part of a picture: what is known stays, and the rest is what the sampler alone would make of it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.sampling import SAMPLERS
from sfumato.sampling.known import keep
from sfumato.sampling.types import Estimate

SIGMAS = [5.0, 2.5, 1.0, 0.4, 0.0]


def answer(x: Tensor, sigma: float) -> Tensor:
    """The clean picture of pixels that are normal on their own, with mean 2 and variance 1."""
    return (x + 2.0 * sigma**2) / (1.0 + sigma**2)


def finish(sampler: Any) -> tuple[Tensor, list[Tensor]]:
    seen = []
    query = next(sampler)
    try:
        while True:
            seen.append(query.x)
            query = sampler.send(Estimate(answer(*query)))
    except StopIteration as end:
        return end.value, seen


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "euler_ancestral", "dpmpp_sde"])
def test_known_pixels_stay_and_others_do_not_notice(name: str) -> None:
    noise, known = torch.randn(2, 2, 3, 4, 4).unbind()
    mask = (torch.rand(2, 1, 4, 4) > 0.5).float()
    drawn: list[Tensor] = []

    def sampler() -> Any:
        generator = torch.Generator().manual_seed(0)
        x = known + noise * SIGMAS[0]
        return SAMPLERS.get(name)(x, SIGMAS, lambda: torch.randn(x.shape, generator=generator))

    alone, _ = finish(sampler())
    found, seen = finish(keep(sampler(), 0.0, known, mask, noise))
    torch.testing.assert_close(found * mask, alone * mask)
    torch.testing.assert_close(found * (1 - mask), known * (1 - mask), rtol=0, atol=0)
    for x in seen:  # as noisy as the question is, by the same noise
        drawn.append(((x - known) / noise)[(mask == 0).expand_as(x)])
    assert all(float(d.std()) < 1e-4 for d in drawn)
    assert float(drawn[0].mean()) == pytest.approx(SIGMAS[0], rel=1e-4)


def test_a_first_question_may_show_noise_alone() -> None:
    noise, known, mask = torch.randn(1, 3, 4, 4), torch.ones(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    x = noise * SIGMAS[0]
    euler = SAMPLERS.get("euler")
    found, (first, second, *_) = finish(keep(euler(x, SIGMAS, None), 0.0, known, mask, noise, blank=SIGMAS[0]))
    assert torch.equal(first, x)
    torch.testing.assert_close(second, known + noise * SIGMAS[1])
    assert torch.equal(found, known)


def test_a_run_that_goes_on_later_ends_with_noise() -> None:
    noise, known, mask = torch.randn(1, 3, 4, 4), torch.ones(1, 3, 4, 4), (torch.rand(1, 1, 4, 4) > 0.5).float()
    x, euler = known + noise * SIGMAS[0], SAMPLERS.get("euler")
    whole, _ = finish(keep(euler(x, SIGMAS, None), 0.0, known, mask, noise))
    half, _ = finish(keep(euler(x, SIGMAS[:3], None), SIGMAS[2], known, mask, noise))
    rest, _ = finish(keep(euler(half, SIGMAS[2:], None), 0.0, known, mask, noise))
    torch.testing.assert_close(rest, whole)
