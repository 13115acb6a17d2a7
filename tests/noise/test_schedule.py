"""Noise schedules."""

import math

import pytest
import torch

from sfumato.core.errors import ConfigError
from sfumato.noise.schedule import EDM, Discrete, RectifiedFlow, Schedule, discrete

SCHEDULES = [
    discrete(), discrete("linear", start=1e-4, end=0.02), discrete("squaredcos_cap_v2"),
    discrete(zero_terminal_snr=True), RectifiedFlow(), RectifiedFlow(shift=3.0, scale=1.0), EDM(), EDM(data=1.0),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_is_the_inverse_of_sigma(schedule: Schedule) -> None:
    logs = torch.linspace(math.log(schedule.sigma_min), math.log(schedule.sigma_max * 0.999), 301, dtype=torch.float64)
    torch.testing.assert_close(schedule.sigma(schedule.time(logs.exp())), logs.exp(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_marginal_has_the_ratio_that_the_samplers_see(schedule: Schedule) -> None:
    times = schedule.time(torch.tensor([schedule.sigma_min, 0.3, 2.0, schedule.sigma_max / 2], dtype=torch.float64))
    alpha, sigma = schedule.marginal(times)
    ratio = schedule.sigma(times)
    torch.testing.assert_close(sigma / alpha, ratio)
    torch.testing.assert_close(schedule.alpha(ratio), alpha)


def test_known_values_of_stable_diffusion() -> None:
    sd = discrete()
    assert sd.betas[0] == pytest.approx(0.00085)
    assert sd.betas[-1] == pytest.approx(0.012)
    assert (sd.sigma_min, sd.sigma_max) == pytest.approx((0.029167, 14.614641), rel=1e-5)
    assert float(sd.alphas_bar[-1]) == pytest.approx(0.0046600, rel=1e-4)


def test_every_training_step_keeps_its_number() -> None:
    sd = discrete()
    assert torch.equal(sd.time(sd.sigmas), torch.arange(1000, dtype=torch.float64))


def test_discrete_schedules_preserve_variance() -> None:
    alpha, sigma = discrete().marginal(torch.arange(1000))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1000, dtype=torch.float64))


def test_zero_terminal_snr_ends_in_noise_alone_and_keeps_its_beginning() -> None:
    plain, rescaled = discrete(), discrete(zero_terminal_snr=True)
    assert float(rescaled.alphas_bar[-1]) == pytest.approx(0.0, abs=1e-12)
    assert float(rescaled.alphas_bar[0]) == pytest.approx(float(plain.alphas_bar[0]))
    assert rescaled.sigma_max == pytest.approx(4096.0, rel=1e-6)


def test_the_cosine_schedule_follows_its_formula() -> None:
    """Nichol and Dhariwal, 2021, eq. 17, where its clip at 0.999 does not bind."""
    t = torch.arange(1, 990, dtype=torch.float64) / 1000
    expected = ((t + 0.008) / 1.008 * math.pi / 2).cos() ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(discrete("squaredcos_cap_v2").alphas_bar[:989], expected)


def test_flow_is_a_straight_path() -> None:
    alpha, sigma = RectifiedFlow().marginal(torch.tensor([0.0, 250.0, 1000.0]))
    assert alpha.tolist() == [1.0, 0.75, 0.0]
    assert sigma.tolist() == [0.0, 0.25, 1.0]


def test_trained_betas_are_taken_as_they_are() -> None:
    torch.testing.assert_close(Discrete((0.1, 0.2)).alphas_bar, torch.tensor([0.9, 0.72], dtype=torch.float64))


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match="known are"):
        discrete("sigmoid")  # type: ignore[arg-type]
