"""scheduler_config.json, read and written."""

import inspect
import json
from dataclasses import replace
from typing import Any

import pytest

from sfumato.core.errors import ConfigError
from sfumato.noise.schedule import EDM, Discrete, RectifiedFlow, discrete
from sfumato.sampling import TABLE
from sfumato.sampling.diffusers_config import CLASSES, PEERS, from_diffusers, to_diffusers
from sfumato.sampling.plan import usual
from tests.sampling.configs import FLOW, PIXELS, SD15, SD21, SDXL, VIDEO


def test_stable_diffusion_1() -> None:
    plan = from_diffusers(SD15)
    assert (plan.sampler, plan.prediction, plan.spacing, plan.unit) == ("plms", "epsilon", "leading", True)
    assert plan.schedule == discrete()
    sigmas = plan.sigmas(20)
    assert [plan.time(s) for s in sigmas[:-1]] == [951.0 - 50 * i for i in range(20)]
    assert sigmas[-1] == plan.schedule.sigma_min
    assert plan.guidance == {}


def test_stable_diffusion_2() -> None:
    plan = from_diffusers(SD21)
    assert (plan.sampler, plan.prediction) == ("ddim", "v_prediction")


def test_stable_diffusion_xl_ignores_what_other_classes_left_behind() -> None:
    plan = from_diffusers(SDXL)
    assert (plan.sampler, plan.spacing, plan.unit) == ("euler", "leading", True)
    assert plan.sigmas(20)[-1] == 0.0


def test_continuous_times() -> None:
    plan = from_diffusers(VIDEO)
    assert plan.schedule == EDM(0.002, 700.0, data=1.0)
    assert (plan.sigmas(5)[0], plan.spacing) == (700.0, "karras")


def test_learned_variance_and_thresholding() -> None:
    plan = from_diffusers(PIXELS)
    assert plan.options == {"variance": "learned_range"}
    assert plan.guidance == {"dynamic_threshold": 0.95, "threshold_maximum": 1.5}
    assert from_diffusers({"_class_name": "DDIMScheduler"}).guidance == {"clip": 1.0}


def test_flow() -> None:
    plan = from_diffusers({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    assert plan.schedule == RectifiedFlow(shift=3.0)
    assert (plan.prediction, plan.spacing, plan.unit) == ("flow", "flow", True)


def test_another_sampler_reads_the_config_as_its_own_class_would() -> None:
    euler = from_diffusers(SD15, sampler="euler")
    assert (euler.spacing, euler.unit, euler.options) == ("linspace", False, {})  # Euler's own defaults
    multistep = from_diffusers(SD15, sampler="dpmpp_2m", spacing="karras")
    assert (multistep.spacing, multistep.times, multistep.unit) == ("karras", "round", True)
    assert from_diffusers(SDXL, sampler="ddim").sigmas(10)[-1] == discrete().sigma_min
    assert from_diffusers(SD15, sampler="euler", spacing="kl_optimal").spacing == "kl_optimal"
    assert from_diffusers({**SDXL, "use_karras_sigmas": True}, sampler="heun", spacing="beta").spacing == "beta"
    assert from_diffusers(SD15, sampler="ipndm").options == {}  # nothing of the class that was read in its place
    heun = from_diffusers(SD15, sampler="dpmpp_2m_sde_heun").options
    assert heun == {"lower_order_final": True, "euler_at_final": False}
    leading = from_diffusers(SD15, sampler="euler", spacing="leading")
    assert (leading.spacing_options, leading.unit) == ({"offset": 1}, True)
    assert from_diffusers(SDXL, spacing="trailing").unit is False
    assert from_diffusers({**SDXL, "use_karras_sigmas": True}, spacing="leading").spacing == "leading"


@pytest.mark.parametrize("sampler", TABLE)
def test_every_sampler_runs_on_every_kind_of_model(sampler: str) -> None:
    for config in (SD15, SDXL, VIDEO, FLOW, {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}):
        plan = from_diffusers(config, sampler=sampler)
        assert plan.sampler == sampler
        assert len(plan.sigmas(8)) == 9
        assert set(plan.options) <= set(TABLE[sampler].options)


MULTISTEP: dict[str, Any] = {**SD15, "_class_name": "DPMSolverMultistepScheduler"}


@pytest.mark.parametrize("config", [
    SD15, {**SDXL, "use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}, VIDEO, PIXELS, FLOW,
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, {"_class_name": "EDMDPMSolverMultistepScheduler"},
    {**MULTISTEP, "solver_order": 1}, {**MULTISTEP, "solver_type": "heun", "lower_order_final": False},
    {**MULTISTEP, "use_lu_lambdas": True, "euler_at_final": True},
    {**MULTISTEP, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "use_karras_sigmas": True},
    {**SD15, "_class_name": "UniPCMultistepScheduler", "solver_order": 3, "disable_corrector": [0]},
])
def test_naming_what_is_there_already_changes_nothing(config: dict[str, Any]) -> None:
    for sampler in (None, "euler", "ddim", "dpmpp_2m", "dpmpp_2m_sde"):
        for spacing in (None, "karras", "exponential", "trailing"):
            plan = from_diffusers(config, sampler, spacing)
            assert from_diffusers(config, plan.sampler, plan.spacing) == plan
    own = from_diffusers(config)
    assert from_diffusers(config, own.sampler) == from_diffusers(config, spacing=own.spacing) == own


@pytest.mark.parametrize("sampler", TABLE)
def test_what_belongs_to_the_network_stays_when_the_sampler_changes(sampler: str) -> None:
    snr = {**SDXL, "rescale_betas_zero_snr": True}
    silent = {key: value for key, value in SDXL.items() if key != "clip_sample"}
    for config in (snr, silent, VIDEO, PIXELS, FLOW):
        own, other = from_diffusers(config), from_diffusers(config, sampler)
        assert (other.schedule, other.prediction, other.guidance) == (own.schedule, own.prediction, own.guidance)


def test_a_solver_that_is_not_supported_can_be_replaced() -> None:
    older = {**MULTISTEP, "algorithm_type": "dpmsolver"}
    assert from_diffusers(older, "dpmpp_2m") == from_diffusers(MULTISTEP)
    assert from_diffusers(older, "euler") == from_diffusers(SD15, "euler")


@pytest.mark.parametrize("name", CLASSES)
def test_defaults_of_every_class_come_back(name: str) -> None:
    plan = from_diffusers({"_class_name": name})
    config = to_diffusers(plan)
    assert config["_class_name"] == name
    assert from_diffusers(json.loads(json.dumps(config))) == plan


@pytest.mark.parametrize("config", [SD15, SD21, SDXL, VIDEO, PIXELS])
def test_configs_of_the_world_come_back(config: dict[str, Any]) -> None:
    plan = from_diffusers(config)
    written = json.loads(json.dumps(to_diffusers(plan)))
    assert from_diffusers(written) == plan
    assert written["_class_name"] == config["_class_name"]


def test_the_keys_of_every_class_are_those_of_the_class() -> None:
    diffusers = pytest.importorskip("diffusers")
    for name, keys in CLASSES.items():
        if name == "DPMSolverSDEScheduler":
            pytest.importorskip("torchsde")
        theirs = inspect.signature(getattr(diffusers, name).__init__).parameters
        for key, value in keys.items():
            assert theirs[key].default == value, (name, key)
        assert set(theirs) - {"self"} == set(keys), name


def test_peers_are_classes() -> None:
    assert {name for name, _ in PEERS.values()} < set(CLASSES)


def test_betas_that_have_no_name_are_written_out() -> None:
    plan = replace(from_diffusers(SD15), schedule=Discrete(tuple(0.001 * (1 + i % 7) for i in range(100))))
    written = to_diffusers(plan)
    assert len(written["trained_betas"]) == 100
    assert from_diffusers(written).schedule == plan.schedule


def test_usual_plans_are_written_where_diffusers_has_them() -> None:
    assert to_diffusers(usual(discrete(), "epsilon", "ddpm"))["_class_name"] == "DDPMScheduler"
    with pytest.raises(ConfigError, match="cannot be said"):
        to_diffusers(usual(discrete(), "epsilon", "restart"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "EulerDiscretScheduler"}, "EulerDiscreteScheduler"),
        ({}, "no scheduler class None"),
        ({**SD15, "beta_strat": 1}, "beta_start"),
        ({**SD15, "beta_schedule": "sigmoid"}, "sigmoid"),
        ({**SDXL, "interpolation_type": "log_linear"}, "interpolation_type"),
        ({**SDXL, "use_karras_sigmas": True, "use_beta_sigmas": True}, "only one"),
        ({**SDXL, "timestep_type": "continuous", "prediction_type": "v_prediction"}, "continuous times need"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver"}, "algorithm_type"),
        ({"_class_name": "UniPCMultistepScheduler", "predict_x0": False}, "predict_x0"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, "variance_type"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "use_dynamic_shifting"),
    ],
)
def test_what_cannot_be_read_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_diffusers(config)
