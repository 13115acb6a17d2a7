"""Which sigmas a run visits."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.core.errors import RequestError
from sfumato.noise import SPACINGS
from sfumato.noise.schedule import EDM, RectifiedFlow, Schedule, discrete
from sfumato.noise.spacing import ALIGN_YOUR_STEPS, initial_scale

SD = discrete()
FLOW = RectifiedFlow(shift=3.0)
WHOLE = ("leading", "trailing", "ddim", "lcm")
RANGE = ("karras", "exponential", "polyexponential", "kl_optimal", "beta", "normal", "linspace")


@given(st.sampled_from([name for name in SPACINGS if name != "flow"]), st.integers(1, 50), st.booleans())
def test_sigmas_fall_and_are_one_more_than_the_steps(name: str, steps: int, to_zero: bool) -> None:
    sigmas = SPACINGS.get(name)(SD, steps, final="zero" if to_zero else "sigma_min")
    assert len(sigmas) == steps + 1
    assert all(isinstance(sigma, float) for sigma in sigmas)
    assert all(a > b for a, b in pairwise(sigmas[:-1]))
    assert sigmas[-2] >= sigmas[-1]  # some end where the run ends: that step does nothing
    assert sigmas[-1] == (0.0 if to_zero else SD.sigma_min)
    assert sigmas[0] <= SD.sigma_max + 1e-3


@given(st.integers(2, 60), st.floats(0.1, 10.0))
def test_flow(steps: int, shift: float) -> None:
    sigmas = SPACINGS.get("flow")(FLOW, steps, shift=shift)
    assert len(sigmas) == steps + 1
    assert all(a > b for a, b in pairwise(sigmas))
    assert sigmas[0] == FLOW.sigma_max
    times = [sigma / (1.0 + sigma) for sigma in sigmas[1:-1]]
    even = [1.0 - i / steps for i in range(1, steps)]
    assert times == pytest.approx([shift * t / (1.0 + (shift - 1.0) * t) for t in even])


@pytest.mark.parametrize("schedule", [EDM(), FLOW, discrete("linear", 100), discrete(zero_terminal_snr=True)])
@pytest.mark.parametrize("name", ["karras", "exponential", "kl_optimal", "normal", "sgm_uniform", "beta"])
def test_spacings_that_fit_every_schedule(name: str, schedule: Schedule) -> None:
    sigmas = SPACINGS.get(name)(schedule, 12)
    assert sigmas[0] == pytest.approx(schedule.sigma_max)
    assert all(a > b for a, b in pairwise(sigmas))


@pytest.mark.parametrize("name", RANGE)
def test_both_ends_of_the_range_are_visited(name: str) -> None:
    sigmas = SPACINGS.get(name)(SD, 20)
    assert (sigmas[0], sigmas[-2]) == pytest.approx((SD.sigma_max, SD.sigma_min), rel=1e-12)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("steps", [1, 7, 20, 50])
def test_whole_steps_come_back_as_whole_times(name: str, steps: int) -> None:
    sigmas = torch.tensor(SPACINGS.get(name)(SD, steps)[:-1], dtype=torch.float64)
    times = SD.time(sigmas)
    assert torch.equal(times, times.round())


def test_the_steps_of_the_published_tables() -> None:
    """Lin et al., 2024, table 2, at ten steps of 1,000; SD's offset of one; and the last points left out."""

    def times(name: str, **options: object) -> list[int]:
        return [round(float(SD.time(torch.tensor(s)))) for s in SPACINGS.get(name)(SD, 10, **options)[:-1]]

    assert times("linspace", whole=True) == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert times("leading") == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert times("leading", offset=1) == times("ddim") == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]
    assert times("leading", open_end=True) == [900, 810, 720, 630, 540, 450, 360, 270, 180, 90]
    assert times("linspace", open_end=True) == [999, 899, 799, 699, 599, 500, 400, 300, 200, 100]
    assert times("linspace", open_end=True, limit=501) == [500, 450, 400, 350, 300, 250, 200, 150, 100, 50]
    assert times("trailing") == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert times("lcm") == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]


def test_align_your_steps_is_the_published_list_at_its_own_length() -> None:
    sigmas = SPACINGS.get("align_your_steps")(SD, 10)
    assert sigmas == pytest.approx([*ALIGN_YOUR_STEPS[:-1], 0.0])
    twice = SPACINGS.get("align_your_steps")(SD, 20)
    assert twice[::2] == pytest.approx(sigmas)
    assert twice[1] == pytest.approx((sigmas[0] * sigmas[1]) ** 0.5)  # log-linear


def test_quantiles_of_the_beta_distribution() -> None:
    stats = pytest.importorskip("scipy.stats")
    sigmas = SPACINGS.get("beta")(SD, 9, a=0.6, b=0.7)
    expected = [SD.sigma_min + stats.beta.ppf(1 - i / 8, 0.6, 0.7) * (SD.sigma_max - SD.sigma_min) for i in range(9)]
    assert sigmas[:-1] == pytest.approx(expected, rel=1e-9)


def test_starting_noise() -> None:
    sigma = SD.sigma_max
    assert initial_scale(SD, sigma, unit=False) == sigma
    assert initial_scale(SD, sigma, unit=True) == pytest.approx((sigma**2 + 1.0) ** 0.5)
    assert initial_scale(FLOW, 9.0, unit=True) == pytest.approx(10.0)  # noise alone at t = 0.9, over alpha = 0.1


@pytest.mark.parametrize(
    ("name", "schedule", "steps", "message"),
    [
        ("leading", SD, 1001, "1 to 1000"),
        ("leading", SD, 0, "1 to 1000"),
        ("leading", FLOW, 10, "no|none"),
        ("flow", SD, 10, "flow-matching"),
        ("lcm", SD, 51, "distilled on 50"),
    ],
)
def test_what_cannot_be_spaced_is_refused(name: str, schedule: Schedule, steps: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SPACINGS.get(name)(schedule, steps)


def test_an_offset_past_the_end_is_refused() -> None:
    with pytest.raises(RequestError, match="lessen the offset"):
        SPACINGS.get("leading")(SD, 1000, offset=1)


A1111 = (
    "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal", "Align Your Steps", "Simple",
    "Normal", "DDIM", "Beta",
)


@pytest.mark.parametrize("name", A1111)
def test_schedule_types_of_a1111_are_known(name: str) -> None:
    assert SPACINGS.canonical(name) in SPACINGS.targets


def test_an_unknown_spacing_offers_the_nearest() -> None:
    with pytest.raises(RequestError, match="karras"):
        SPACINGS.canonical("karas")
