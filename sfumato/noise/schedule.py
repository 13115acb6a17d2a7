"""How much noise there is at each time: ``x = alpha(t) * x0 + sigma(t) * noise`` in a model's own frame.

Samplers live in the variance-exploding frame ``x / alpha``, where only the ratio ``sigma / alpha`` is left; here
"sigma" without a qualifier is that ratio, and ``alpha(sigma)`` leads back into the model's own frame.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from sfumato.core.errors import ConfigError


class Schedule(Protocol):
    """A noise schedule. Times are what the network is told; all methods work elementwise, in float64."""

    @property
    def sigma_min(self) -> float:
        """The least sigma that the network was trained on."""

    @property
    def sigma_max(self) -> float:
        """The greatest sigma that a sampler may start from."""

    def marginal(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of the model's own frame at ``time``: what training mixes pictures and noise with."""

    def sigma(self, time: Tensor) -> Tensor:
        """sigma / alpha at ``time``."""

    def time(self, sigma: Tensor) -> Tensor:
        """The time at which sigma / alpha is ``sigma``: the inverse of ``sigma``."""

    def alpha(self, sigma: Tensor) -> Tensor:
        """The factor from the variance-exploding frame into the model's own."""


@dataclass(frozen=True)
class Discrete:
    """T variance-preserving steps (Ho et al., 2020): alpha^2 + sigma^2 = 1, times 0 .. T - 1.

    Between the steps log sigma is linear in time, as k-diffusion has it, so that any sigma has a (fractional) time.
    """

    betas: tuple[float, ...]
    SMALLEST_ALPHA_BAR = 2.0**-24
    """A zero terminal SNR has no finite sigma; diffusers' stand-in, sigma = 4096, is used for sampling only."""

    @cached_property
    def alphas_bar(self) -> Tensor:
        """[T] the product of (1 - beta) up to each step: the squared alpha."""
        return torch.cumprod(1.0 - torch.tensor(self.betas, dtype=torch.float64), 0)

    @cached_property
    def sigmas(self) -> Tensor:
        """[T] sigma / alpha at each step, increasing."""
        bar = self.alphas_bar.clamp(min=self.SMALLEST_ALPHA_BAR)
        return ((1.0 - bar) / bar).sqrt()

    @property
    def steps(self) -> int:
        return len(self.betas)

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def marginal(self, time: Tensor) -> tuple[Tensor, Tensor]:
        if not time.is_floating_point():
            bar = self.alphas_bar.to(time.device)[time]
            return bar.sqrt(), (1.0 - bar).sqrt()
        sigma = self.sigma(time)
        alpha = self.alpha(sigma)
        return alpha, alpha * sigma

    def sigma(self, time: Tensor) -> Tensor:
        table = self.sigmas.log().to(time.device)
        low = time.double().floor().clamp(0, self.steps - 2).long()
        return torch.lerp(table[low], table[low + 1], time.double() - low).exp()

    def time(self, sigma: Tensor) -> Tensor:
        table = self.sigmas.log().to(sigma.device)
        log = sigma.double().clamp(self.sigma_min, self.sigma_max).log()
        low = (torch.searchsorted(table, log, right=True) - 1).clamp(0, self.steps - 2)
        time = low + (log - table[low]) / (table[low + 1] - table[low])
        whole = time.round()
        return torch.where((time - whole).abs() < 1e-4, whole, time)  # a sigma of the table gives its own index

    def alpha(self, sigma: Tensor) -> Tensor:
        return (1.0 + sigma.double() ** 2).rsqrt()


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight paths from picture to noise: alpha = 1 - t, sigma = t, t in (0, 1) (Lipman et al., 2023).

    ``shift`` moves the times that a sampler visits towards noise, t' = s t / (1 + (s - 1) t) (Esser et al., 2024,
    eq. 23); it belongs to spacing and is kept here because it belongs to the model. The network is told t * ``scale``.
    """

    shift: float = 1.0
    scale: float = 1000.0
    sigma_min: float = 1e-3
    sigma_max: float = 999.0
    """In the ratio t / (1 - t): t from 0.001 to 0.999, since t = 1 has no finite ratio."""

    def marginal(self, time: Tensor) -> tuple[Tensor, Tensor]:
        t = time.double() / self.scale
        return 1.0 - t, t

    def sigma(self, time: Tensor) -> Tensor:
        t = time.double() / self.scale
        return t / (1.0 - t)

    def time(self, sigma: Tensor) -> Tensor:
        sigma = sigma.double()
        return self.scale * sigma / (1.0 + sigma)

    def alpha(self, sigma: Tensor) -> Tensor:
        return 1.0 / (1.0 + sigma.double())


@dataclass(frozen=True)
class EDM:
    """Karras et al., "Elucidating the design space", 2022: sigma is the time, the network is told log(sigma) / 4."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    data: float = 0.5

    def marginal(self, time: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.sigma(time)
        alpha = self.alpha(sigma)
        return alpha, alpha * sigma

    def sigma(self, time: Tensor) -> Tensor:
        return (4.0 * time.double()).exp()

    def time(self, sigma: Tensor) -> Tensor:
        return sigma.double().log() / 4.0

    def alpha(self, sigma: Tensor) -> Tensor:
        return (self.data**2 + sigma.double() ** 2).rsqrt()


BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]


def discrete(
    shape: BetaSchedule = "scaled_linear", steps: int = 1000, start: float = 0.00085, end: float = 0.012,
    zero_terminal_snr: bool = False,
) -> Discrete:
    """The discrete schedules of the field.

    Args:
        shape: ``linear`` in beta (Ho et al., 2020), ``scaled_linear`` in its root (Rombach et al., 2022), or the
            squared cosine of Nichol and Dhariwal (2021, eq. 17), which ignores start and end.
        zero_terminal_snr: rescale so that the last step is pure noise (Lin et al., 2024, algorithm 1).
    """
    if shape == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    elif shape == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    elif shape == "squaredcos_cap_v2":
        edges = torch.arange(steps + 1, dtype=torch.float64) / steps
        bar = ((edges + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        betas = (1.0 - bar[1:] / bar[:-1]).clamp(max=0.999)
    else:
        raise ConfigError(f"There is no beta schedule {shape!r}; known are linear, scaled_linear, squaredcos_cap_v2.")
    if zero_terminal_snr:
        root = torch.cumprod(1.0 - betas, 0).sqrt()
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        bar = root**2
        betas = 1.0 - torch.cat([bar[:1], bar[1:] / bar[:-1]])
    return Discrete(tuple(betas.tolist()))
