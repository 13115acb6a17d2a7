"""The distribution that samplers draw from: its mean and its covariance, in the frame of every kind of schedule."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.noise import SPACINGS
from sfumato.noise.prediction import PREDICTIONS
from sfumato.noise.schedule import EDM, RectifiedFlow, Schedule, discrete
from sfumato.noise.spacing import initial_scale
from sfumato.sampling import SAMPLERS, TABLE
from sfumato.sampling.types import Estimate, Query
from tests.sampling.driving import Network, drive, generator_noise, network_denoiser
from tests.sampling.mixture import Mixture

COUNT = 4000
MIXTURE = Mixture()


def perfect(schedule: Schedule, prediction: str) -> Network:
    """A network that has learned the mixture exactly, and speaks as ``prediction`` in its schedule's own frame."""

    def network(x: Tensor, time: float) -> Tensor:
        at = torch.tensor(time, dtype=torch.float64)
        sigma = float(schedule.sigma(at))
        alpha = float(schedule.alpha(torch.tensor(sigma, dtype=torch.float64)))
        x0 = MIXTURE(Query(x / alpha, sigma)).x0
        return PREDICTIONS[prediction].target(x0, (x / alpha - x0) / sigma, alpha, alpha * sigma)

    return network


def moments(
    schedule: Schedule, prediction: str, name: str, sigmas: list[float], **options: Any
) -> tuple[Tensor, Tensor]:
    shape = torch.Size((COUNT, 2, 1, 1))
    noise = generator_noise(shape, 7)
    x = noise() * initial_scale(schedule, sigmas[0], unit=False)
    drawn = drive(
        SAMPLERS.get(name)(x, sigmas, noise, **options),
        network_denoiser(perfect(schedule, prediction), schedule, PREDICTIONS[prediction]),
    ).flatten(1)
    return drawn.double().mean(0), torch.cov(drawn.double().T)


def assert_drawn_from_the_mixture(found: tuple[Tensor, Tensor], slack: float = 0.0) -> None:
    mean, covariance = MIXTURE.mean(), MIXTURE.covariance()
    error = (covariance.diagonal() / COUNT).sqrt()  # of the mean
    assert ((found[0] - mean).abs() < 4 * error + slack).all()
    assert ((found[1] - covariance).abs() < 6 * covariance.diagonal().max() / COUNT**0.5 + slack).all()


SDE = [name for name, solver in TABLE.items() if solver.stochastic and name != "lcm"]
CHURN = {"s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0}


@pytest.mark.parametrize("name", SDE)
def test_stochastic_samplers_reproduce_mean_and_covariance(name: str) -> None:
    schedule = EDM(sigma_min=0.01, sigma_max=40.0)
    steps = 100 if TABLE[name].order == 1 else 40
    sigmas = SPACINGS.get("karras")(schedule, steps)
    assert_drawn_from_the_mixture(moments(schedule, "edm", name, sigmas), slack=0.02)


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_2"])
def test_churn_leaves_the_distribution_as_it_is(name: str) -> None:
    schedule = EDM(sigma_min=0.01, sigma_max=40.0)
    sigmas = SPACINGS.get("karras")(schedule, 100 if name == "euler" else 40)
    assert_drawn_from_the_mixture(moments(schedule, "edm", name, sigmas, **CHURN), slack=0.02)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde", "ddpm"])
def test_flow_matching(name: str) -> None:
    """The posterior of the variance-exploding frame is as right for straight paths as for any other."""
    schedule = RectifiedFlow(shift=3.0)
    sigmas = SPACINGS.get("flow")(schedule, 100)
    assert_drawn_from_the_mixture(moments(schedule, "flow", name, sigmas), slack=0.02)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde", "heun"])
def test_zero_terminal_snr(name: str) -> None:
    schedule = discrete(zero_terminal_snr=True)
    sigmas = SPACINGS.get("trailing")(schedule, 125)
    assert sigmas[0] > 4000
    assert_drawn_from_the_mixture(moments(schedule, "v_prediction", name, sigmas), slack=0.02)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_both_fixed_variances_of_ddpm_are_right_in_many_steps(variance: str) -> None:
    schedule = discrete("linear", start=0.0001, end=0.02)
    sigmas = SPACINGS.get("leading")(schedule, 200)
    assert_drawn_from_the_mixture(moments(schedule, "epsilon", "ddpm", sigmas, variance=variance), slack=0.03)


def test_one_step_of_a_consistency_model_draws_what_it_is_told() -> None:
    """LCM takes its network's answers for samples, so that a network that answers with samples is needed."""
    answers = torch.randn(COUNT, 2, 1, 1, generator=torch.Generator().manual_seed(3))
    sampler = SAMPLERS.get("lcm")(torch.zeros(COUNT, 2, 1, 1), [10.0, 1.0, 0.0], generator_noise(answers.shape, 1))
    first = next(sampler)
    second = sampler.send(Estimate(answers))
    assert first.sigma == 10.0
    assert second.sigma == 1.0
    assert float((second.x - answers).var()) == pytest.approx(1.0, abs=0.05)
    with pytest.raises(StopIteration) as end:
        sampler.send(Estimate(answers))
    assert torch.equal(end.value.value, answers)
