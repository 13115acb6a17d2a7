"""Every solver against the scheduler class of diffusers that it answers to, each read from the other's own config."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.noise.schedule import Discrete, RectifiedFlow
from sfumato.sampling.diffusers_config import from_diffusers, to_diffusers
from sfumato.sampling.plan import Plan
from sfumato.sampling.types import Estimate, Query
from tests.sampling.configs import SD15, SD21, SDXL
from tests.sampling.driving import Network, drive, generator_noise, smooth

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = torch.Size((2, 4, 4, 4))
TRAILING: dict[str, Any] = {"timestep_spacing": "trailing"}
LEADING: dict[str, Any] = {"timestep_spacing": "leading", "steps_offset": 1}
TAKES_GENERATOR = {
    "DDPMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LCMScheduler",
    "DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler",
}


def timeless(x: Tensor, time: float) -> Tensor:
    """A stand-in for a network that does not look at the time."""
    return smooth(x, 500.0)


def theirs(name: str, config: dict[str, Any], steps: int, network: Network) -> tuple[dict[str, Any], Tensor]:
    """(the class's whole config, what it ends with)."""
    scheduler = getattr(pytest.importorskip("diffusers"), name).from_config(config)
    whole = {"_class_name": name, **{k: v for k, v in scheduler.config.items() if not k.startswith("_")}}
    scheduler.set_timesteps(steps)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma
    generator = torch.Generator().manual_seed(5)
    extra = {"generator": generator} if name in TAKES_GENERATOR else {}
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, float(t)), t, x, **extra).prev_sample
    return whole, x


def ours(plan: Plan, steps: int, network: Network, own_frame: bool) -> Tensor:
    """What the plan's sampler ends with, in the model's own frame or in the variance-exploding one."""

    def denoise(query: Query) -> Estimate:
        alpha = plan.alpha(query.sigma)
        x = query.x * alpha
        return Estimate(plan.meaning().to_x0(x, network(x, plan.time(query.sigma)), alpha, alpha * query.sigma))

    sigmas = plan.sigmas(steps)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * plan.initial_scale(sigmas[0])
    found = drive(plan.start(x, sigmas, generator_noise(SHAPE, 5)), denoise)
    return found * plan.alpha(sigmas[-1]) if own_frame else found


K_DIFFUSION = ["LMSDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"]
LAMBDA = ["DPMSolverMultistepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler"]
SINGLE = "DPMSolverSinglestepScheduler"
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, spacing) for name in (*K_DIFFUSION, *LAMBDA) for spacing in ({}, LEADING, TRAILING)),
    *((name, {"use_karras_sigmas": True}) for name in (*K_DIFFUSION[:3], *LAMBDA, SINGLE)),
    ("HeunDiscreteScheduler", {"use_exponential_sigmas": True}),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
    *((name, {"solver_order": order}) for name in (*LAMBDA, SINGLE) for order in (1, 3)),
    ("EulerDiscreteScheduler", {**LEADING, "use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}),
    ("DDPMScheduler", {"clip_sample": False}),
    ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}),
    ("DDPMScheduler", {"clip_sample": False, **TRAILING}),
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    ("DDIMScheduler", {"clip_sample": False, **TRAILING}),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
    ("PNDMScheduler", {"skip_prk_steps": False, "steps_offset": 1}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("EulerAncestralDiscreteScheduler", LEADING),
    ("KDPM2AncestralDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "euler_at_final": True}),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
    ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -1.5}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    ("UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "sigma_min", "solver_order": 3}),
    ("UniPCMultistepScheduler", {"disable_corrector": [0, 1]}),
    (SINGLE, {"solver_type": "heun", "solver_order": 3}),
    ("LCMScheduler", {}),
]


def label(case: tuple[str, dict[str, Any]]) -> str:
    return "-".join([case[0].removesuffix("Scheduler"), *(f"{k}={v}" for k, v in case[1].items())])


PREDICTED = [*((case, "epsilon") for case in CASES), *((case, "v_prediction") for case in CASES if len(case[1]) != 1)]


@pytest.mark.parametrize(("case", "prediction"), PREDICTED, ids=lambda v: v if isinstance(v, str) else label(v))
def test_twenty_steps_end_where_diffusers_ends(case: tuple[str, dict[str, Any]], prediction: str) -> None:
    name, settings = case
    config, expected = theirs(name, {**SD, **settings, "prediction_type": prediction}, 20, smooth)
    plan = from_diffusers(config)
    found = ours(plan, 20, smooth, own_frame=name not in (*K_DIFFUSION, "LCMScheduler"))
    assert float((found - expected).abs().max()) < 1e-4
    assert from_diffusers(to_diffusers(plan)).sigmas(20) == pytest.approx(plan.sigmas(20), rel=1e-9)


SWITCHED = {
    "ddim": "DDIMScheduler", "plms": "PNDMScheduler", "lms": "LMSDiscreteScheduler", "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler", "heun": "HeunDiscreteScheduler",
    "dpm_2": "KDPM2DiscreteScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler", "dpmpp_2s": SINGLE,
    "deis": "DEISMultistepScheduler", "uni_pc_bh2": "UniPCMultistepScheduler", "lcm": "LCMScheduler",
}


@pytest.mark.parametrize("sampler", SWITCHED)
@pytest.mark.parametrize("own", [SD15, SD21, SDXL], ids=["sd15", "sd21", "sdxl"])
def test_a_sampler_chosen_for_a_model_is_what_from_config_makes_of_it(sampler: str, own: dict[str, Any]) -> None:
    name = SWITCHED[sampler]
    settings = {"skip_prk_steps": True} if sampler == "plms" else {}  # a class of its own here, a setting there
    _, expected = theirs(name, {**own, **settings}, 20, smooth)
    own_frame = name not in (*K_DIFFUSION, "LCMScheduler")
    assert float((ours(from_diffusers(own, sampler), 20, smooth, own_frame) - expected).abs().max()) < 1e-4


@pytest.mark.parametrize("name", [*LAMBDA, SINGLE])
@pytest.mark.parametrize("settings", [{}, {"solver_order": 3}])
def test_fewer_than_fifteen_steps_end_in_lower_orders(name: str, settings: dict[str, Any]) -> None:
    config, expected = theirs(name, {**SD, **settings}, 8, smooth)
    assert float((ours(from_diffusers(config), 8, smooth, own_frame=True) - expected).abs().max()) < 1e-4


@pytest.mark.parametrize("shape", ["use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("name", [*LAMBDA, SINGLE])
def test_times_that_diffusers_truncates_aside(name: str, shape: str) -> None:
    """There int64 turns times such as 998.9999 into 998; with a network that does not look, all else is equal."""
    config, expected = theirs(name, {**SD, shape: True}, 20, timeless)
    assert float((ours(from_diffusers(config), 20, timeless, own_frame=True) - expected).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("EulerDiscreteScheduler", 1e-4),
        ("EulerAncestralDiscreteScheduler", 1e-4),
        ("DPMSolverMultistepScheduler", 1e-4),
        ("UniPCMultistepScheduler", 1e-4),
        # These have alpha = 0 at the last step, where the others and we have 2^-12.
        ("DDIMScheduler", 5e-4),
        ("DDPMScheduler", 5e-4),
    ],
)
def test_zero_terminal_snr(name: str, tolerance: float) -> None:
    settings = {**SD, **TRAILING, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    if name.startswith("DD"):
        settings["clip_sample"] = False
    config, expected = theirs(name, settings, 20, smooth)
    found = ours(from_diffusers(config), 20, smooth, own_frame=True)
    assert float((found - expected).abs().max()) < tolerance


def nearer_to_one(plan: Plan) -> Plan:
    """The plan of a flow that starts at t = 1 - 1e-6."""
    assert isinstance(plan.schedule, RectifiedFlow)
    return replace(plan, schedule=replace(plan.schedule, sigma_max=1e6 - 1.0))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(shift: float) -> None:
    """Their first time is 1, ours is the schedule's sigma_max: with that at a million, the ends agree."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(20)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for t in scheduler.timesteps:
        x = scheduler.step(smooth(x, float(t)), t, x).prev_sample
    plan = from_diffusers({"_class_name": "FlowMatchEulerDiscreteScheduler", **scheduler.config})
    plan = nearer_to_one(plan)
    assert float((ours(plan, 20, smooth, own_frame=True) - x).abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", SINGLE, "UniPCMultistepScheduler"])
def test_flow_sigmas_of_other_solvers(name: str) -> None:
    settings = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    config, expected = theirs(name, settings, 20, timeless)
    plan = from_diffusers(config)
    plan = nearer_to_one(plan)
    assert float((ours(plan, 20, timeless, own_frame=True) - expected).abs().max()) < 2e-4


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm(name: str) -> None:
    config, expected = theirs(name, {}, 20, smooth)
    found = ours(from_diffusers(config), 20, smooth, own_frame=False)
    # Theirs starts from noise * sqrt(sigma^2 + 1), 80.006 in place of 80.
    assert float((found - expected).abs().max()) < 2e-3


def test_stochastic_solver_of_k_diffusion(monkeypatch: pytest.MonkeyPatch) -> None:
    """DPMSolverSDEScheduler with a Brownian path made of the increments that ours draws, in place of its tree."""
    module = pytest.importorskip("diffusers.schedulers.scheduling_dpmsolver_sde")
    draw = generator_noise(SHAPE, 5)

    class Path:
        def __init__(self, *unused: Any) -> None:
            self.early = torch.empty(())

        def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
            if (sigma * sigma_next).sqrt() not in halves:  # to the middle of a step
                self.early = draw() * (sigma - sigma_next).sqrt()
                return self.early / (sigma - sigma_next).sqrt()
            between = (sigma * sigma_next).sqrt()
            return (self.early + draw() * (between - sigma_next).sqrt()) / (sigma - sigma_next).sqrt()

    monkeypatch.setattr(module, "BrownianTreeNoiseSampler", Path)
    scheduler = module.DPMSolverSDEScheduler(**SD)
    scheduler.set_timesteps(20)
    halves: Any = _Near([float((a * b).sqrt()) for a, b in zip(scheduler.sigmas, scheduler.sigmas[1:], strict=False)])
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(smooth(scheduler.scale_model_input(x, t), float(t)), t, x).prev_sample
    plan = from_diffusers({"_class_name": "DPMSolverSDEScheduler", **SD})
    assert float((ours(plan, 20, smooth, own_frame=False) - x).abs().max()) < 1e-4


class _Near:
    def __init__(self, values: list[float]) -> None:
        self.values = [v for v in values if v > 0]

    def __contains__(self, value: Tensor) -> bool:
        return any(abs(float(value) / v - 1.0) < 1e-5 for v in self.values)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize(
    "settings",
    [
        SD, {}, {"beta_schedule": "squaredcos_cap_v2"}, {**SD, "rescale_betas_zero_snr": True},
        {"trained_betas": [0.1, 0.2]},
    ],
)
def test_schedules(name: str, settings: dict[str, Any]) -> None:
    scheduler = getattr(pytest.importorskip("diffusers"), name)(**settings)
    schedule = from_diffusers({"_class_name": name, **settings}).schedule
    assert isinstance(schedule, Discrete)
    torch.testing.assert_close(torch.tensor(schedule.betas), scheduler.betas, rtol=1e-3, atol=1e-7)
    bar = schedule.alphas_bar.clamp(min=2**-24 if name.startswith("Euler") else 0)
    torch.testing.assert_close(bar.float(), scheduler.alphas_cumprod, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_training_steps_at_every_count(name: str, spacing: str) -> None:
    """At some counts a step lies half-way between two training steps; which one is taken is a matter of rounding."""
    scheduler = getattr(pytest.importorskip("diffusers"), name)(**SD, timestep_spacing=spacing)
    plan = from_diffusers({"_class_name": name, **SD, "timestep_spacing": spacing})
    for steps in (7, 20, 25, 26, 27, 30, 31, 46, 47, 48, 50, 61):
        scheduler.set_timesteps(steps)
        expected = scheduler.timesteps.tolist()[:steps]  # at 61, theirs trails on to a step of -1
        assert [plan.time(sigma) for sigma in plan.sigmas(steps)[:-1]] == expected
