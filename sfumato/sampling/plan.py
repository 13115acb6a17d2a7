"""A model's way of being sampled: what its files say, or what its family declares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from sfumato.core.errors import RequestError
from sfumato.noise import SPACINGS
from sfumato.noise.prediction import PREDICTIONS, Prediction
from sfumato.noise.schedule import EDM, Discrete, RectifiedFlow, Schedule
from sfumato.noise.spacing import initial_scale
from sfumato.sampling import SAMPLERS, TABLE, resolve
from sfumato.sampling.types import Noise, Sampler, Sigmas

Times = Literal["exact", "round", "floor"]


@dataclass(frozen=True)
class Plan:
    """All that a run needs to know beside the network, the prompt and the seed.

    Attributes:
        schedule: the noise schedule that the network was trained with.
        prediction: what its output means, a name of ``PREDICTIONS``.
        sampler: a canonical name of ``SAMPLERS``.
        options: its keyword arguments.
        spacing: a canonical name of ``SPACINGS``.
        spacing_options: its keyword arguments.
        within: for karras, exponential and beta, another spacing (name, options) whose ends are their range; the
            schedule's whole range unless given.
        unit: how the run starts; see ``noise.spacing.initial_scale``.
        times: what the network is told of the time that the schedule gives for a sigma: that, or a whole number near
            it, as some of diffusers' classes tell it.
        guidance: keyword arguments of ``guidance.build`` that belong to the model (pixel models clip).
    """

    schedule: Schedule
    prediction: str
    sampler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    spacing: str = "normal"
    spacing_options: Mapping[str, Any] = field(default_factory=dict)
    within: tuple[str, Mapping[str, Any]] | None = None
    unit: bool = False
    times: Times = "exact"
    guidance: Mapping[str, Any] = field(default_factory=dict)

    def sigmas(self, steps: int) -> list[float]:
        """``steps`` + 1 sigmas, decreasing.

        Raises:
            RequestError: the schedule cannot be spaced so, or has not so many steps.
        """
        options = dict(self.spacing_options)
        if self.within is not None:
            name, its = self.within
            ends = SPACINGS.get(name)(self.schedule, steps, **its)
            options |= {"sigma_max": ends[0], "sigma_min": ends[steps - 1]}
        found: list[float] = SPACINGS.get(self.spacing)(self.schedule, steps, **options)
        return found

    def time(self, sigma: float) -> float:
        """What the network is told at ``sigma``."""
        time = float(self.schedule.time(torch.tensor(sigma, dtype=torch.float64)))
        return {"exact": time, "round": float(round(time)), "floor": float(int(time))}[self.times]

    def alpha(self, sigma: float) -> float:
        """The factor from the variance-exploding frame into the model's own at ``sigma``."""
        return float(self.schedule.alpha(torch.tensor(sigma, dtype=torch.float64)))

    def final_scale(self, sigma: float) -> float:
        """What the last x, at ``sigma``, is multiplied with: what is left of the noise stays in proportion.

        Into the model's own frame, relative to where that frame has no noise at all (EDM's does not end at 1).
        """
        return self.alpha(sigma) / self.alpha(0.0)

    def meaning(self) -> Prediction:
        """The prediction itself."""
        return PREDICTIONS[self.prediction]

    def initial_scale(self, sigma: float) -> float:
        """What standard normal noise is multiplied with to start at ``sigma``."""
        return initial_scale(self.schedule, sigma, self.unit)

    def start(self, x: Tensor, sigmas: Sigmas, noise: Noise, **options: Any) -> Sampler:
        """The sampler, about to ask its first question.

        Args:
            x: [B, C, H, W] in the variance-exploding frame, at ``sigmas[0]``.
            options: of the sampler, in place of or beside the plan's own.

        Raises:
            RequestError: the sampler has no such option.
        """
        allowed = TABLE[self.sampler].options
        for name in options:
            if name not in allowed:
                offer = f"its options are {', '.join(allowed)}" if allowed else "it has none"
                raise RequestError(f"The sampler {self.sampler} has no option {name!r}; {offer}.")
        merged = {**self.options, **options}
        if self.sampler == "pndm":
            merged.setdefault("middle", self._middle)
        sampler: Sampler = SAMPLERS.get(self.sampler)(x, sigmas, noise, **merged)
        return sampler

    def _middle(self, sigma: float, sigma_next: float) -> float:
        """The sigma half-way in time, at a whole step where the schedule has steps."""
        times = self.schedule.time(torch.tensor([sigma, sigma_next], dtype=torch.float64))
        middle = (times[0] + times[1]) / 2.0
        return float(self.schedule.sigma(middle.ceil() if isinstance(self.schedule, Discrete) else middle))


def usual(schedule: Schedule, prediction: str, sampler: str, spacing: str | None = None) -> Plan:
    """The plan of a model that comes without a word on sampling: the sampler's own habits.

    Args:
        sampler: any name that ``sampling.resolve`` knows, a spacing at its end included.
        spacing: any name of ``SPACINGS``; flow-matching models are always spaced by "flow" unless it says otherwise.
    """
    name, suffix = resolve(sampler)
    wanted = spacing or suffix
    if wanted is None:
        wanted = TABLE[name].spacing
        if isinstance(schedule, RectifiedFlow):
            wanted = "flow"
        elif isinstance(schedule, EDM):
            wanted = "karras"
    return Plan(schedule, prediction, name, spacing=SPACINGS.canonical(wanted), unit=TABLE[name].unit)
