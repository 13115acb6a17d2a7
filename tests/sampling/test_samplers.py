"""What every sampler keeps to, and the names by which they are found."""

import inspect
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sfumato.core.errors import NumericError, RequestError
from sfumato.core.registry import fold
from sfumato.noise import SPACINGS
from sfumato.noise.schedule import RectifiedFlow, discrete
from sfumato.sampling import REFUSED, SAMPLERS, TABLE, resolve
from sfumato.sampling.plan import Plan, usual
from sfumato.sampling.types import Estimate, Query
from tests.conftest import ROOT
from tests.sampling.driving import drive, generator_noise, queries
from tests.sampling.mixture import Mixture

SD = discrete()
MIXTURE = Mixture()
ALONE = "dpm_adaptive"


def first(count: int = 1, sigma: float = 10.0) -> Tensor:
    return sigma * torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", TABLE)
def test_the_table_says_what_options_there_are(name: str) -> None:
    parameters = inspect.signature(SAMPLERS.get(name)).parameters
    assert list(parameters)[:3] == ["x", "sigmas", "noise"]
    options = {p.name for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert options == set(TABLE[name].options)


@pytest.mark.parametrize("name", TABLE)
def test_the_table_says_whether_noise_is_drawn(name: str) -> None:
    drawn = 0

    def noise() -> Tensor:
        nonlocal drawn
        drawn += 1
        return torch.randn(1, 2, 1, 1)

    drive(SAMPLERS.get(name)(first(), [10.0, 5.0, 2.0, 1.0, 0.1, 0.0], noise), MIXTURE)
    assert (drawn > 0) == TABLE[name].stochastic


@pytest.mark.parametrize("name", TABLE)
def test_the_table_says_how_many_questions_a_step_asks(name: str) -> None:
    sigmas = SPACINGS.get("karras")(SD, 30, sigma_max=10.0)
    sampler = SAMPLERS.get(name)(first(), sigmas, generator_noise(first().shape, 1))
    asked = list(queries(sampler, MIXTURE))
    assert all(query.sigma > 0 for query in asked)
    if name not in (ALONE, "restart"):  # those make more steps than they are told
        assert abs(len(asked) - 30 * TABLE[name].queries) <= (9 if name == "pndm" else max(TABLE[name].queries, 2))


@pytest.mark.parametrize("end", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
@pytest.mark.parametrize("name", TABLE)
def test_any_number_of_steps_ends_at_any_sigma(name: str, steps: int, end: float) -> None:
    """One Gaussian as data: the deviation of x at the end is known."""
    gaussian = Mixture(centres=((0.0, 0.0),), weights=(1.0,), spread=1.0)
    edges = [10.0 * (max(end, 0.02) / 10.0) ** (i / steps) for i in range(steps)] + [end]
    count = 1 if name == ALONE else 500
    x = first(count, 101.0**0.5)
    found = drive(SAMPLERS.get(name)(x, edges, generator_noise(x.shape, 4)), gaussian)
    assert found.shape == x.shape
    assert torch.isfinite(found).all()
    if steps == 20 and count > 1:
        expected = (1.0 + end**2) ** 0.5
        tolerance = 0.25 if TABLE[name].order == 1 else 0.12
        if name != "lcm":  # which takes answers for samples
            assert float(found.std()) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("name", TABLE)
def test_a_picture_does_not_depend_on_its_neighbours(name: str) -> None:
    if name == ALONE:
        pytest.skip("is driven one picture at a time")
    sigmas = SPACINGS.get("karras")(SD, 12, sigma_max=10.0)
    fixed = torch.randn(200, 3, 2, 1, 1, generator=torch.Generator().manual_seed(1))

    def run(rows: slice) -> Tensor:
        draws = iter(fixed)
        return drive(SAMPLERS.get(name)(first(3)[rows], sigmas, lambda: next(draws)[rows]), MIXTURE)

    torch.testing.assert_close(run(slice(0, 3))[1:2], run(slice(1, 2)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TABLE)
def test_float32_is_enough_from_a_sigma_of_4096(name: str) -> None:
    sigmas = SPACINGS.get("trailing")(discrete(zero_terminal_snr=True), 25)

    def run(dtype: torch.dtype) -> Tensor:
        draw = generator_noise(first().shape, 3)
        sampler = SAMPLERS.get(name)(first(1, 4096.0).to(dtype), sigmas, lambda: draw().to(dtype))
        return drive(sampler, MIXTURE)

    if name == ALONE:
        pytest.skip("may choose other steps in another precision")
    torch.testing.assert_close(run(torch.float32).double(), run(torch.float64), rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["ddim", "plms", "dpmpp_2m", "deis", "uni_pc", "lms", "dpmpp_2m_sde"])
def test_a_last_step_of_no_length_changes_nothing(name: str) -> None:
    """Stable Diffusion's DDIM from training step 0 to the sigma of training step 0."""
    sigmas = [10.0, 4.0, 2.0, 1.0, 0.5]
    shape = first().shape
    plain = drive(SAMPLERS.get(name)(first(), sigmas, generator_noise(shape, 3)), MIXTURE)
    longer = drive(SAMPLERS.get(name)(first(), [*sigmas, 0.5], generator_noise(shape, 3)), MIXTURE)
    if name == "uni_pc":  # corrects the step before
        assert torch.isfinite(longer).all()
    else:
        torch.testing.assert_close(longer, plain, rtol=0, atol=1e-6)


def test_adaptive_steps_refuse_company_and_numbers_that_are_none() -> None:
    with pytest.raises(RequestError, match="each picture alone"):
        next(SAMPLERS.get(ALONE)(first(2), [10.0, 0.0], lambda: first(2)))
    with pytest.raises(NumericError, match="not finite"):
        drive(SAMPLERS.get(ALONE)(first(), [10.0, 0.1], first), lambda query: Estimate(query.x * torch.nan))


def test_learned_variance_lies_between_the_fixed_ones() -> None:
    sigmas, shape = [10.0, 3.0, 1.0, 0.0], first().shape

    def run(said: float | None, variance: str) -> Tensor:
        def answer(query: Query) -> Estimate:
            log = None if said is None else torch.full(shape, said)
            return Estimate(MIXTURE(query).x0, log)

        return drive(SAMPLERS.get("ddpm")(first(), sigmas, generator_noise(shape, 3), variance=variance), answer)

    torch.testing.assert_close(run(-1.0, "learned_range"), run(None, "fixed_small"))
    torch.testing.assert_close(run(1.0, "learned_range"), run(None, "fixed_large"))
    with pytest.raises(RequestError, match="learned no variance"):
        run(None, "learned_range")


def test_restart_goes_back_up() -> None:
    sigmas = [10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.0]
    sampler = SAMPLERS.get("restart")(first(), sigmas, generator_noise(first().shape, 1), segments=((0.1, 2.0, 4, 3),))
    asked = [query.sigma for query in queries(sampler, MIXTURE)]
    assert sum(b > a for a, b in pairwise(asked)) == 3
    assert asked.count(2.0) == 3


A1111 = (
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "Euler",
    "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "HeunPP2", "IPNDM", "IPNDM_V", "DEIS",
    "DDIM", "PLMS", "UniPC", "LCM",
)
DIFFUSERS = (
    "DDPM", "DDIM", "PNDM", "LMSDiscrete", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete",
    "KDPM2AncestralDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "DPMSolverSDE", "DEISMultistep",
    "UniPCMultistep", "IPNDM", "LCM", "FlowMatchEulerDiscrete", "EDMEuler", "EDMDPMSolverMultistep",
)
K_DIFFUSION = (
    "euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive",
    "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde",
)


@pytest.mark.parametrize("name", [*A1111, *(f"{n}Scheduler" for n in DIFFUSERS), *K_DIFFUSION, "uni_pc", "uni_pc_bh2"])
def test_names_of_the_field_are_known(name: str) -> None:
    canonical, spacing = resolve(name)
    assert callable(SAMPLERS.get(canonical))
    assert spacing is None


@pytest.mark.parametrize("name", K_DIFFUSION)
def test_k_diffusion_functions(name: str) -> None:
    assert resolve(f"sample_{name}") == (name, None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("DPM++ 2M SDE Exponential", ("dpmpp_2m_sde", "exponential")),
        ("DPM++ SDE Karras", ("dpmpp_sde", "karras")),
        ("dpm++ 2s a karras", ("dpmpp_2s_ancestral", "karras")),
        ("LMS Karras", ("lms", "karras")),
        ("DPM2 a Karras", ("dpm_2_ancestral", "karras")),
        ("euler sgm_uniform", ("euler", "sgm_uniform")),
        ("DPM++ 2M Align Your Steps", ("dpmpp_2m", "align_your_steps")),
    ],
)
def test_old_names_carry_a_spacing(name: str, expected: tuple[str, str]) -> None:
    assert resolve(name) == expected


@pytest.mark.parametrize(
    ("name", "offer"), [("eulr", "euler"), ("DPM++ 2N", "DPM\\+\\+ 2M"), ("unipcc", "uni_pc|UniPC")]
)
def test_unknown_names_offer_the_nearest(name: str, offer: str) -> None:
    with pytest.raises(RequestError, match=offer):
        resolve(name)


def test_refused_names_say_why() -> None:
    for name in REFUSED:
        with pytest.raises(RequestError, match="unguided"):
            resolve(name.lower())


def test_no_name_stands_for_two() -> None:
    for name, solver in TABLE.items():
        for alias in (name, solver.title, *solver.aliases):
            assert SAMPLERS.canonical(alias) == name, alias
    folded = [fold(n) for n in TABLE]
    assert len(set(folded)) == len(folded)


def test_every_usual_spacing_exists() -> None:
    assert all(solver.spacing in SPACINGS.targets for solver in TABLE.values())


def test_the_table_is_read_without_torch() -> None:
    code = "import sys, sfumato.sampling, sfumato.noise, sfumato.guidance; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_usual_plans() -> None:
    assert usual(SD, "epsilon", "DPM++ 2M").spacing == "karras"
    assert usual(SD, "epsilon", "Euler Karras").spacing == "karras"
    assert usual(SD, "epsilon", "Euler", "SGM Uniform").spacing == "sgm_uniform"
    assert usual(RectifiedFlow(), "flow", "DPM++ 2M").spacing == "flow"


def test_an_option_that_a_sampler_has_not_is_refused() -> None:
    plan = Plan(SD, "epsilon", "dpmpp_2m")
    with pytest.raises(RequestError, match="no option 's_churn'"):
        plan.start(first(), [10.0, 0.0], first, s_churn=1.0)
    with pytest.raises(RequestError, match="it has none"):
        Plan(SD, "epsilon", "lcm").start(first(), [10.0, 0.0], first, eta=1.0)


def test_a_sampler_is_one_file_and_one_entry_of_the_table() -> None:
    """Shown by the last that was added: nothing else in the package has heard of it."""
    package = ROOT / "sfumato"
    heard = {
        path.relative_to(package).as_posix() for path in package.rglob("*.py")
        if "gradient_estimation" in path.read_text(encoding="utf-8")
    }
    assert heard == {"sampling/__init__.py", "sampling/gradient_estimation.py"}
