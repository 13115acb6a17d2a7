"""The denoising objective: noisy picture in, what its prediction type asks for out.

Everything random is given by the caller (``Draws``), so that a loss is a function of its arguments.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from sfumato.core.errors import ConfigError
from sfumato.nn.conditioning import Conditioning
from sfumato.noise.prediction import Epsilon, Prediction
from sfumato.noise.schedule import EDM, Discrete, RectifiedFlow, Schedule
from sfumato.objectives.loss import Loss

Network = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""(x [B, C, H, W], time [B], conditioning) -> [B, C, H, W], or [B, 2 C, H, W] where the variance is learned."""


class Draws(NamedTuple):
    """What is drawn for a batch."""

    quantile: Tensor  # [B] in [0, 1): where in their distribution the times lie
    noise: Tensor  # [B, C, H, W] standard normal
    offset: Tensor | None = None  # [B, C] standard normal, for ``noise_offset``
    perturbation: Tensor | None = None  # [B, C, H, W] standard normal, for ``input_perturbation``


@dataclass(frozen=True)
class DenoiseConfig:
    """How times are drawn and errors weighted."""

    timesteps: Annotated[
        Literal["uniform", "logit_normal", "log_normal"],
        "how times are drawn: uniform; logit-normal (SD 3); sigma log-normal (EDM)",
    ] = "uniform"
    location: Annotated[float, "mean of the normal beneath logit_normal or log_normal (EDM: -1.2)"] = 0.0
    spread: Annotated[float, "deviation of that normal (EDM: 1.2)"] = 1.0
    weighting: Annotated[
        Literal["none", "min_snr", "debiased"], "how times count: equally in the output; min-SNR-gamma; debiased",
    ] = "none"
    snr_gamma: Annotated[float, "gamma of min_snr"] = 5.0
    noise_offset: Annotated[float, "noise of one value a channel added to the noise: dark and bright pictures"] = 0.0
    input_perturbation: Annotated[float, "noise in the input alone, against exposure bias (0.1)"] = 0.0
    learned_variance: Annotated[bool, "the network gives a variance too; trained by the hybrid loss"] = False
    variance_weight: Annotated[float, "of the variational bound in the hybrid loss, times the number of steps"] = 0.001

    def __post_init__(self) -> None:
        for name in ("spread", "snr_gamma"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be more than 0.")
        for name in ("noise_offset", "input_perturbation", "variance_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be from 0 to 1.")


class Denoise:
    """The objective of one schedule and prediction.

    Raises:
        ConfigError: settings that contradict each other, e.g. a learned variance without discrete steps.
    """

    def __init__(self, config: DenoiseConfig, schedule: Schedule, prediction: Prediction) -> None:
        self.config, self.schedule, self.prediction = config, schedule, prediction
        discrete = isinstance(schedule, Discrete)
        if config.learned_variance and not discrete:
            raise ConfigError("learned_variance is defined for discrete steps: choose another schedule, or none.")
        if isinstance(schedule, Discrete) and isinstance(prediction, Epsilon) and schedule.alphas_bar[-1] <= 0:
            raise ConfigError(
                "With zero terminal SNR the last step is pure noise, from which epsilon says nothing: use v_prediction."
            )

    def time(self, quantile: Tensor) -> Tensor:
        """[B] in [0, 1) -> [B] the times that the network is told; integers where the schedule has steps."""
        q = quantile.double()
        if self.config.timesteps == "log_normal":
            sigma = (self.config.location + self.config.spread * _normal_quantile(q)).exp()
            time = self.schedule.time(sigma)
            return time.round().long() if isinstance(self.schedule, Discrete) else time
        if self.config.timesteps == "logit_normal":  # Esser et al., 2024, eq. 19
            q = torch.sigmoid(self.config.location + self.config.spread * _normal_quantile(q))
        if isinstance(self.schedule, Discrete):
            return (q * self.schedule.steps).long().clamp(max=self.schedule.steps - 1)
        if isinstance(self.schedule, RectifiedFlow):
            return q * self.schedule.scale
        if isinstance(self.schedule, EDM):
            low, high = math.log(self.schedule.sigma_min), math.log(self.schedule.sigma_max)
            return self.schedule.time((low + q * (high - low)).exp())
        raise ConfigError(f"How times of a {type(self.schedule).__name__} are drawn is not known; use log_normal.")

    def noisy(self, x0: Tensor, time: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """(what the network sees, the noise that it should find), both [B, C, H, W] float32."""
        noise = draws.noise.float()
        if self.config.noise_offset:
            assert draws.offset is not None
            noise = noise + self.config.noise_offset * draws.offset.float()[:, :, None, None]
        inside = noise
        if self.config.input_perturbation:  # Ning et al., 2023, algorithm 1: the target stays the noise alone
            assert draws.perturbation is not None
            inside = noise + self.config.input_perturbation * draws.perturbation.float()
        alpha, sigma = self.marginal(time)
        return alpha * x0 + sigma * inside, noise

    def marginal(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """[B] -> alpha and sigma of the model's own frame, [B, 1, 1, 1] float32."""
        alpha, sigma = self.schedule.marginal(time)
        return alpha.float()[:, None, None, None], sigma.float()[:, None, None, None]

    def weight(self, time: Tensor) -> Tensor:
        """[B] -> [B] the weight of an error in the network's output, float32.

        Weights are defined on errors of the clean picture, as functions of SNR = alpha^2 / sigma^2, and carried over
        by the slope of ``to_x0``: min(SNR, gamma) (Hang et al., 2023, eq. 9), sqrt(SNR) (Yu et al., 2023, eq. 13,
        which is 1 / sqrt(SNR) on the noise). A step of zero SNR has weight zero.
        """
        if self.config.weighting == "none":
            return torch.ones(len(time), device=time.device)
        alpha, sigma = (v.double() for v in self.schedule.marginal(time))
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        slope = self.prediction.to_x0(zero, one, alpha, sigma)
        snr = (alpha / sigma.clamp(min=1e-6)) ** 2
        on_x0 = snr.clamp(max=self.config.snr_gamma) if self.config.weighting == "min_snr" else snr.sqrt()
        return (on_x0 * slope**2).float()

    def loss(self, network: Network, x0: Tensor, conditioning: Conditioning, draws: Draws) -> Loss:
        """The loss of a batch.

        Args:
            x0: [B, C, H, W] clean pictures or latents, as the network is to know them (scaled, shifted).
        """
        x0 = x0.float()
        time = self.time(draws.quantile)
        x, noise = self.noisy(x0, time, draws)
        output = network(x, time, conditioning).float()
        variance = None
        if self.config.learned_variance:
            output, variance = output.chunk(2, dim=1)
        alpha, sigma = self.marginal(time)
        error = (output - self.prediction.target(x0, noise, alpha, sigma)) ** 2
        plain = error.flatten(1).mean(1)  # [B]
        each = self.weight(time) * plain
        parts = {"mse": plain.mean().detach()}
        if variance is not None:
            # The bound teaches the variance alone: the mean is left to the simple loss (Nichol and Dhariwal, eq. 16).
            seen = self.prediction.to_x0(x, output.detach(), alpha, sigma)
            bound = self._bound(x0, x, seen, variance, time)
            parts["bound"] = bound.mean().detach()
            assert isinstance(self.schedule, Discrete)
            each = each + self.config.variance_weight * self.schedule.steps * bound
        return Loss(each.mean(), parts, each.detach())

    def _bound(self, x0: Tensor, x: Tensor, seen: Tensor, variance: Tensor, time: Tensor) -> Tensor:
        """[B] one term of the variational bound, in bits a value (Nichol and Dhariwal, 2021, eqs. 4-7 and 15).

        Args:
            seen: the clean picture that the network sees in x, without gradient.
            variance: the network's second half, about [-1, 1].
        """
        assert isinstance(self.schedule, Discrete)
        bar = self.schedule.alphas_bar.to(time.device)
        before = torch.cat([bar.new_ones(1), bar[:-1]])
        beta = 1.0 - bar / before
        posterior = beta * (1.0 - before) / (1.0 - bar)  # of q(x_{t-1} | x_t, x0); zero at t = 0
        posterior[0] = posterior[1]
        on_x0 = (beta * before.sqrt() / (1.0 - bar))[time].float()[:, None, None, None]
        on_x = ((1.0 - before) * (1.0 - beta).sqrt() / (1.0 - bar))[time].float()[:, None, None, None]
        low, high = (v.log()[time].float()[:, None, None, None] for v in (posterior, beta))
        share = (variance + 1.0) / 2.0
        log_variance = share * high + (1.0 - share) * low
        truth, mean = on_x0 * x0 + on_x * x, on_x0 * seen + on_x * x
        kl = 0.5 * (log_variance - low + (low - log_variance).exp() - 1.0
                    + (truth - mean) ** 2 * (-log_variance).exp())  # fmt: skip
        first = -_log_likelihood(x0, mean, log_variance)
        nats = torch.where((time == 0)[:, None, None, None], first, kl)
        return nats.flatten(1).mean(1) / math.log(2.0)


def _log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log of the probability that a Gaussian gives to the 256 levels between -1 and 1 (Ho et al., 2020, eq. 13)."""
    inverse = (-0.5 * log_variance).exp()
    upper = torch.special.ndtr((x - mean + 1 / 255) * inverse)
    lower = torch.special.ndtr((x - mean - 1 / 255) * inverse)
    inside = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1.0 - lower, upper - lower))
    likelihood: Tensor = inside.clamp(min=1e-12).log()
    return likelihood


def _normal_quantile(q: Tensor) -> Tensor:
    """The inverse of the normal distribution function, finite on [0, 1)."""
    z: Tensor = torch.special.ndtri(q.clamp(1e-7, 1.0 - 1e-7))
    return z
