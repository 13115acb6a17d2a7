"""Which sigmas a run visits.

Every function here takes a schedule and a number of steps and returns ``steps + 1`` sigmas (sigma / alpha, plain
floats), decreasing. The last one is where the run ends: 0, or with ``final="sigma_min"`` the least sigma that the
network was trained on. Those that pick whole training steps return the schedule's own table values, so that
``schedule.time`` gives the whole step back.

What the run starts from is decided apart, by ``initial_scale``.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from sfumato.core.errors import RequestError
from sfumato.noise.schedule import Discrete, RectifiedFlow, Schedule

Final = Literal["zero", "sigma_min"]


def initial_scale(schedule: Schedule, sigma: float, unit: bool) -> float:
    """What standard normal noise is multiplied with to become the first x, in the variance-exploding frame.

    Args:
        sigma: the first sigma of the run.
        unit: True: the noise stands alone in the model's own frame, x = noise / alpha; for a variance-preserving
            schedule that is sqrt(sigma^2 + 1). So start the solvers that live in that frame (DDPM, DDIM, PNDM,
            DPM-Solver, DEIS, UniPC) and, in diffusers, "leading" spacing. False: x = noise * sigma, the k-diffusion
            habit. Both are approximations of x0 + sigma * noise, which nobody has before the run.
    """
    return 1.0 / float(schedule.alpha(torch.tensor(sigma, dtype=torch.float64))) if unit else sigma


def leading(
    schedule: Schedule, steps: int, *, offset: int = 0, open_end: bool = False, limit: int | None = None,
    final: Final = "zero",
) -> list[float]:
    """Training steps 0, k, 2k, … plus ``offset``, with k the whole part of T / steps (Lin et al., 2024, table 2).

    Args:
        open_end: divide into one step more and leave step 0 out (diffusers' DPM-Solver, DEIS and UniPC).
        limit: use the first ``limit`` training steps only.

    Raises:
        RequestError: more steps than the schedule has, or an offset that leads past its end.
    """
    table = _table(schedule, steps)
    parts = steps + 1 if open_end else steps
    ratio = (limit or len(table)) // parts
    return _pick(table, [i * ratio + offset for i in range(parts)][::-1][:steps], final)


def trailing(schedule: Schedule, steps: int, *, final: Final = "zero") -> list[float]:
    """Training steps T - 1, T - 1 - k, … with k = T / steps, rounded (Lin et al., 2024, table 2)."""
    table = _table(schedule, steps)
    # Halves round to even, after the very sums that numpy makes: other sums land a step away at some counts.
    times = np.arange(len(table), 0, -len(table) / steps)[:steps]
    return _pick(table, [round(t) - 1 for t in times], final)


def linspace(
    schedule: Schedule, steps: int, *, whole: bool = False, open_end: bool = False, limit: int | None = None,
    final: Final = "zero",
) -> list[float]:
    """Training steps from T - 1 to 0, evenly, both ends included (Lin et al., 2024, table 2).

    Args:
        whole: round to whole training steps; otherwise sigma is interpolated between them (linearly, as diffusers).
        open_end: one step more, and step 0 left out.
        limit: use the first ``limit`` training steps only.
    """
    table = _table(schedule, steps)
    first = (limit or len(table)) - 1.0
    times = np.linspace(0.0, first, max(steps + open_end, 2))[::-1][:steps]
    if whole or open_end:
        return _pick(table, [round(t) for t in times], final)
    return [*np.interp(times, np.arange(len(table)), table).tolist(), _last(schedule, final)]


def normal(schedule: Schedule, steps: int, *, final: Final = "zero") -> list[float]:
    """Times from the greatest sigma to the least, evenly, both included (k-diffusion's ``get_sigmas``)."""
    return [*_times_between(schedule, steps), _last(schedule, final)]


def sgm_uniform(schedule: Schedule, steps: int, *, final: Final = "zero") -> list[float]:
    """Times as ``normal`` has them for one step more, the least left out (Stability's generative-models)."""
    return [*_times_between(schedule, steps + 1)[:steps], _last(schedule, final)]


def simple(schedule: Schedule, steps: int, *, final: Final = "zero") -> list[float]:
    """Every (T / steps)th training step, counted down from the last."""
    if isinstance(schedule, RectifiedFlow):
        return flow(schedule, steps, final=final)
    table = _table(schedule, steps)
    return _pick(table, [len(table) - 1 - int(i * len(table) / steps) for i in range(steps)], final)


def ddim(schedule: Schedule, steps: int, *, final: Final = "zero") -> list[float]:
    """Training steps 1, 1 + k, 1 + 2k, …: what the first latent-diffusion code ran DDIM and PLMS on."""
    return leading(schedule, steps, offset=1, final=final)


def karras(
    schedule: Schedule, steps: int, *, rho: float = 7.0, sigma_min: float | None = None,
    sigma_max: float | None = None, final: Final = "zero",
) -> list[float]:
    """Even in sigma^(1 / rho) (Karras et al., 2022, eq. 5).

    Args:
        sigma_min, sigma_max: the range; the schedule's unless given.
    """
    low, high = _range(schedule, sigma_min, sigma_max)
    ramp = _ramp(steps)
    return _ends([(high ** (1 / rho) + r * (low ** (1 / rho) - high ** (1 / rho))) ** rho for r in ramp],
                 low, high, _last(schedule, final))


def exponential(
    schedule: Schedule, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None,
    final: Final = "zero",
) -> list[float]:
    """Even in log sigma."""
    return polyexponential(schedule, steps, rho=1.0, sigma_min=sigma_min, sigma_max=sigma_max, final=final)


def polyexponential(
    schedule: Schedule, steps: int, *, rho: float = 1.0, sigma_min: float | None = None,
    sigma_max: float | None = None, final: Final = "zero",
) -> list[float]:
    """A power ``rho`` of an even ramp, in log sigma (k-diffusion)."""
    low, high = _range(schedule, sigma_min, sigma_max)
    logs = [(1.0 - r) ** rho * (math.log(high) - math.log(low)) + math.log(low) for r in _ramp(steps)]
    return _ends([math.exp(v) for v in logs], low, high, _last(schedule, final))


def beta(
    schedule: Schedule, steps: int, *, a: float = 0.6, b: float = 0.6, sigma_min: float | None = None,
    sigma_max: float | None = None, final: Final = "zero",
) -> list[float]:
    """Quantiles of the Beta(a, b) distribution over the range (Lee et al., "Beta sampling is all you need", 2024)."""
    low, high = _range(schedule, sigma_min, sigma_max)
    found = [low + _beta_quantile(1.0 - r, a, b) * (high - low) for r in _ramp(steps)]
    return _ends(found, low, high, _last(schedule, final))


def kl_optimal(
    schedule: Schedule, steps: int, *, sigma_min: float | None = None, sigma_max: float | None = None,
    final: Final = "zero",
) -> list[float]:
    """Even in arctan(sigma) (Sabour et al., "Align your steps", 2024, theorem 3.1)."""
    low, high = _range(schedule, sigma_min, sigma_max)
    angles = [math.atan(high) + r * (math.atan(low) - math.atan(high)) for r in _ramp(steps)]
    return _ends([math.tan(angle) for angle in angles], low, high, _last(schedule, final))


ALIGN_YOUR_STEPS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
ALIGN_YOUR_STEPS_XL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
"""Optimised for Stable Diffusion 1.5 and XL at ten steps (Sabour et al., 2024)."""


def align_your_steps(
    schedule: Schedule, steps: int, *, levels: Sequence[float] = ALIGN_YOUR_STEPS, final: Final = "zero"
) -> list[float]:
    """A published list of sigmas, interpolated in log sigma to any number of steps (Sabour et al., 2024).

    Args:
        levels: decreasing, above 0; the list's own number of steps (one less than its length) returns it as it is,
            but for its last entry, which is where the run ends.
    """
    positions = np.linspace(0.0, 1.0, len(levels))
    logs = np.interp(np.linspace(0.0, 1.0, steps + 1), positions, np.log(levels))
    return [*np.exp(logs[:-1]).tolist(), _last(schedule, final)]


def align_your_steps_xl(schedule: Schedule, steps: int, *, final: Final = "zero") -> list[float]:
    """``align_your_steps`` with the list for Stable Diffusion XL."""
    return align_your_steps(schedule, steps, levels=ALIGN_YOUR_STEPS_XL, final=final)


def flow(
    schedule: Schedule, steps: int, *, shift: float | None = None, first_time: float = 1.0,
    last_time: float | None = None, open_end: bool = False, final: Final = "zero",
) -> list[float]:
    """Times from 1 down, evenly, moved towards noise: t' = s t / (1 + (s - 1) t) (Esser et al., 2024, eq. 23).

    Args:
        shift: s; the schedule's unless given.
        first_time: the first time, unshifted. That of 1 has no finite ratio: the run starts at the schedule's
            ``sigma_max``, just below it.
        last_time: the last time before the end, unshifted, in [0, 1); 1 / steps unless given.
        open_end: one step more, and ``last_time`` left out.
    """
    if not isinstance(schedule, RectifiedFlow):
        raise RequestError("Flow spacing needs a flow-matching model; this one was trained with another schedule.")
    s = schedule.shift if shift is None else shift
    parts = steps if open_end else max(steps - 1, 1)
    last = 1.0 / steps if last_time is None else last_time
    even = [first_time + i / parts * (last - first_time) for i in range(steps)]
    # 1 - t' = (1 - t) / (1 + (s - 1) t), so that the ratio is s t / (1 - t): a shift is a factor on sigma.
    ratios = [s * t / (1.0 - t) if t < 1.0 else math.inf for t in even]
    return [*(min(ratio, schedule.sigma_max) for ratio in ratios), _last(schedule, final)]


def lcm(schedule: Schedule, steps: int, *, original_steps: int = 50, final: Final = "zero") -> list[float]:
    """Even choices among the steps that a latent consistency model was distilled on (Luo et al., 2023)."""
    table = _table(schedule, steps)
    if not steps <= original_steps <= len(table):
        raise RequestError(f"A consistency model distilled on {original_steps} steps cannot take {steps}.")
    ratio = len(table) // original_steps
    known = [i * ratio - 1 for i in range(original_steps, 0, -1)]
    return _pick(table, [known[int(i * original_steps / steps)] for i in range(steps)], final)


def _table(schedule: Schedule, steps: int) -> list[float]:
    """The sigmas of all training steps, increasing."""
    if not isinstance(schedule, Discrete):
        raise RequestError(
            "This spacing picks whole training steps, and the model has none: use karras, exponential, normal or flow."
        )
    if not 1 <= steps <= schedule.steps:
        raise RequestError(f"steps = {steps}: the model was trained on {schedule.steps}, so 1 to {schedule.steps}.")
    table: list[float] = schedule.sigmas.tolist()
    return table


def _pick(table: list[float], times: list[int], final: Final) -> list[float]:
    if times[0] >= len(table):
        raise RequestError(f"The first step would be {times[0]} of 0 to {len(table) - 1}: lessen the offset.")
    return [*(table[t] for t in times), 0.0 if final == "zero" else table[0]]


def _last(schedule: Schedule, final: Final) -> float:
    return 0.0 if final == "zero" else schedule.sigma_min


def _range(schedule: Schedule, low: float | None, high: float | None) -> tuple[float, float]:
    return schedule.sigma_min if low is None else low, schedule.sigma_max if high is None else high


def _ramp(steps: int) -> list[float]:
    """From 0 to 1; a single step is all 0, the noisy end."""
    return [i / max(steps - 1, 1) for i in range(steps)]


def _ends(found: list[float], low: float, high: float, last: float) -> list[float]:
    """With the ends exactly those of the range, which powers and logarithms miss in the last digits."""
    found[0] = high
    if len(found) > 1:
        found[-1] = low
    return [*found, last]


def _times_between(schedule: Schedule, count: int) -> list[float]:
    ends = schedule.time(torch.tensor([schedule.sigma_max, schedule.sigma_min], dtype=torch.float64))
    times = torch.linspace(float(ends[0]), float(ends[1]), count, dtype=torch.float64)
    found: list[float] = schedule.sigma(times).tolist()
    return found


def _beta_quantile(probability: float, a: float, b: float) -> float:
    """The inverse of the regularised incomplete beta function, by bisection to the last digit."""
    if probability in (0.0, 1.0):
        return probability
    low, high = 0.0, 1.0
    for _ in range(64):
        middle = (low + high) / 2
        if _beta_cumulative(middle, a, b) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _beta_cumulative(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function by its continued fraction (Abramowitz and Stegun, 26.5.8)."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _beta_cumulative(1.0 - x, b, a)
    fraction = 1.0
    for m in range(60, 0, -1):  # from the inside out; the terms fall quickly on this side of the mean
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        fraction = 1.0 + even / (1.0 + odd / fraction)
    fraction = 1.0 - (a + b) * x / (a + 1.0) / fraction
    log_front = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(log_front) / (a * fraction)
