"""The denoising objective, against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from sfumato.core.errors import ConfigError
from sfumato.nn.conditioning import Conditioning
from sfumato.noise.prediction import PREDICTIONS, Epsilon, Flow, Prediction, Sample, Velocity
from sfumato.noise.schedule import EDM, RectifiedFlow, Schedule, discrete
from sfumato.objectives.denoise import Denoise, DenoiseConfig, Draws, _log_likelihood

B, C, S = 6, 2, 4


def draws(seed: int = 0) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    normal = [torch.randn(shape, generator=generator) for shape in ((B, C, S, S), (B, C), (B, C, S, S))]
    return Draws(torch.rand(B, generator=generator), *normal)


X0 = torch.randn(B, C, S, S, generator=torch.Generator().manual_seed(9)) * 0.5
NOTHING = Conditioning()

PAIRS: list[tuple[Schedule, Prediction]] = [
    (discrete(), Epsilon()), (discrete("linear", 1000, 1e-4, 0.02), Sample()),
    (discrete("squaredcos_cap_v2"), Velocity()), (discrete(zero_terminal_snr=True), Velocity()),
    (RectifiedFlow(), Flow()), (EDM(), PREDICTIONS["edm"]),
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "prediction"), PAIRS)
@pytest.mark.parametrize("weighting", ["none", "min_snr", "debiased"])
def test_the_network_that_knows_the_picture_has_no_loss(
    schedule: Schedule, prediction: Prediction, weighting: str
) -> None:
    config = DenoiseConfig(weighting=weighting)  # type: ignore[arg-type]
    objective = Denoise(config, schedule, prediction)

    def oracle(x: Tensor, time: Tensor, _: Conditioning) -> Tensor:
        alpha, sigma = objective.marginal(time)
        noise = (x - alpha * X0) / sigma
        return prediction.target(X0, noise, alpha, sigma)

    loss = objective.loss(oracle, X0, NOTHING, draws())
    assert loss.total < 1e-6
    assert loss.each.shape == (B,)
    wrong = objective.loss(lambda x, t, c: oracle(x, t, c) + 1.0, X0, NOTHING, draws())
    assert torch.allclose(wrong.each, objective.weight(objective.time(draws().quantile)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("weighting", ["min_snr", "debiased"])
def test_weights_are_the_papers(weighting: str) -> None:
    schedule = discrete()
    time = torch.tensor([0, 10, 300, 999])
    alpha, sigma = schedule.marginal(time)
    snr = (alpha / sigma) ** 2
    config = DenoiseConfig(weighting=weighting, snr_gamma=5.0)  # type: ignore[arg-type]
    on = {name: Denoise(config, schedule, p).weight(time).double() for name, p in PREDICTIONS.items()}
    if weighting == "min_snr":  # Hang et al., section 3.4: for noise, for velocity, for the picture
        expected = {"epsilon": snr.clamp(max=5) / snr, "v_prediction": snr.clamp(max=5) / (snr + 1)}
        expected["sample"] = snr.clamp(max=5)
    else:
        expected = {"epsilon": snr**-0.5, "v_prediction": snr.sqrt() / (snr + 1), "sample": snr.sqrt()}
    for name, value in expected.items():
        assert torch.allclose(on[name], value, rtol=1e-4), name


def test_uniform_times_cover_every_step_equally() -> None:
    objective = Denoise(DenoiseConfig(), discrete(steps=10), Epsilon())
    time = objective.time((torch.arange(1000) + 0.5) / 1000)
    assert torch.equal(torch.bincount(time), torch.full((10,), 100))
    assert objective.time(torch.tensor([1.0 - 2**-24])).item() == 9


def test_logit_normal_times_have_their_density() -> None:
    quantiles = (torch.arange(20000) + 0.5) / 20000
    config = DenoiseConfig(timesteps="logit_normal", location=0.5, spread=0.8)
    t = Denoise(config, RectifiedFlow(), Flow()).time(quantiles) / 1000
    logit = torch.log(t / (1 - t))
    assert abs(logit.mean() - 0.5) < 0.01
    assert abs(logit.std() - 0.8) < 0.01


def test_log_normal_sigmas_are_edms() -> None:
    quantiles = (torch.arange(20000) + 0.5) / 20000
    config = DenoiseConfig(timesteps="log_normal", location=-1.2, spread=1.2)
    sigma = EDM().sigma(Denoise(config, EDM(), PREDICTIONS["edm"]).time(quantiles))
    assert abs(sigma.log().mean() + 1.2) < 0.01
    assert abs(sigma.log().std() - 1.2) < 0.01


def test_noise_offset_shifts_whole_channels_and_is_part_of_the_target() -> None:
    objective = Denoise(DenoiseConfig(noise_offset=0.1), discrete(), Epsilon())
    plain = Denoise(DenoiseConfig(), discrete(), Epsilon())
    time = objective.time(draws().quantile)
    _, noise = objective.noisy(X0, time, draws())
    _, without = plain.noisy(X0, time, draws())
    offset = draws().offset
    assert offset is not None
    assert torch.allclose(noise - without, (0.1 * offset)[:, :, None, None].expand_as(noise), atol=1e-6)


def test_input_perturbation_is_in_the_input_alone() -> None:
    objective = Denoise(DenoiseConfig(input_perturbation=0.1), discrete(), Epsilon())
    time = objective.time(draws().quantile)
    x, noise = objective.noisy(X0, time, draws())
    assert torch.equal(noise, draws().noise)
    alpha, sigma = objective.marginal(time)
    extra = (x - alpha * X0) / sigma - noise
    perturbation = draws().perturbation
    assert perturbation is not None
    assert torch.allclose(extra, 0.1 * perturbation, atol=1e-4)


def learned(variance: float, wrong: float = 0.0) -> tuple[Tensor, Tensor]:
    """(bound, loss) of a network that is off by ``wrong`` in the noise and gives this variance."""
    objective = Denoise(DenoiseConfig(learned_variance=True), discrete(), Epsilon())

    def network(x: Tensor, time: Tensor, _: Conditioning) -> Tensor:
        alpha, sigma = objective.marginal(time)
        noise = (x - alpha * X0) / sigma
        return torch.cat([noise + wrong, torch.full_like(x, variance)], 1)

    early = draws()._replace(quantile=torch.linspace(0.001, 0.02, B))  # where the two ends of the range differ
    loss = objective.loss(network, X0, NOTHING, early)
    return loss.parts["bound"], loss.total


def test_the_bound_is_zero_for_the_true_posterior_and_positive_elsewhere() -> None:
    assert learned(-1.0)[0].abs() < 1e-4  # the lower end of the range is the posterior's own variance
    assert learned(1.0)[0] > 1e-4
    assert learned(-1.0, wrong=0.5)[0] > 1e-4
    assert torch.allclose(learned(1.0)[1], 0.001 * 1000 * learned(1.0)[0], rtol=1e-3)


def test_the_bound_does_not_teach_the_mean() -> None:
    objective = Denoise(DenoiseConfig(learned_variance=True, variance_weight=1.0), discrete(), Epsilon())
    output = torch.zeros(B, 2 * C, S, S, requires_grad=True)
    torch.autograd.backward(objective.loss(lambda x, t, c: output, X0, NOTHING, draws()).total)
    assert output.grad is not None
    simple = torch.zeros(B, C, S, S, requires_grad=True)
    plain = Denoise(DenoiseConfig(), discrete(), Epsilon())
    torch.autograd.backward(plain.loss(lambda x, t, c: simple, X0, NOTHING, draws()).total)
    assert simple.grad is not None
    assert torch.allclose(output.grad[:, :C], simple.grad)
    assert output.grad[:, C:].abs().sum() > 0


def test_the_first_steps_bound_is_a_probability_of_levels() -> None:
    levels = torch.arange(256) / 127.5 - 1.0  # every value that a picture can have
    x0 = levels.reshape(256, 1, 1, 1)
    mean = torch.full_like(x0, 0.31)
    probability = _log_likelihood(x0, mean, torch.full_like(x0, math.log(0.02))).exp().sum()
    assert torch.allclose(probability, torch.tensor(1.0), atol=1e-4)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ConfigError, match="v_prediction"):
        Denoise(DenoiseConfig(), discrete(zero_terminal_snr=True), Epsilon())
    with pytest.raises(ConfigError, match="learned_variance"):
        Denoise(DenoiseConfig(learned_variance=True), RectifiedFlow(), Flow())
    with pytest.raises(ConfigError, match="snr_gamma"):
        DenoiseConfig(snr_gamma=0.0)
