"""diffusers' ``scheduler_config.json``, read and written as a plan."""

import math
from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from typing import Any, NamedTuple

from sfumato.core.errors import ConfigError, nearest
from sfumato.noise.schedule import EDM, Discrete, RectifiedFlow, Schedule, discrete
from sfumato.sampling import SAMPLERS, TABLE
from sfumato.sampling.plan import Plan, Times

_BETAS = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None, "prediction_type": "epsilon",
}
_K_BETAS = {**_BETAS, "beta_start": 0.00085, "beta_end": 0.012}
_STEPS = {"timestep_spacing": "linspace", "steps_offset": 0}
_SHAPES = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0, "use_dynamic_shifting": False, "time_shift_type": "exponential"}
_EDM = {
    "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "rho": 7.0, "final_sigmas_type": "zero",
}

CLASSES: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {
        **_BETAS, **_CLIP, **_THRESHOLD, "variance_type": "fixed_small", "timestep_spacing": "leading",
        "steps_offset": 0, "rescale_betas_zero_snr": False,
    },
    "DDIMScheduler": {
        **_BETAS, **_CLIP, **_THRESHOLD, "set_alpha_to_one": True, "timestep_spacing": "leading", "steps_offset": 0,
        "rescale_betas_zero_snr": False,
    },
    "PNDMScheduler": {
        **_BETAS, "skip_prk_steps": False, "set_alpha_to_one": False, "timestep_spacing": "leading", "steps_offset": 0,
    },
    "LMSDiscreteScheduler": {**_BETAS, **_SHAPES, **_STEPS},
    "EulerDiscreteScheduler": {
        **_BETAS, **_SHAPES, **_STEPS, "interpolation_type": "linear", "sigma_min": None, "sigma_max": None,
        "timestep_type": "discrete", "rescale_betas_zero_snr": False, "final_sigmas_type": "zero",
    },
    "EulerAncestralDiscreteScheduler": {**_BETAS, **_STEPS, "rescale_betas_zero_snr": False},
    "HeunDiscreteScheduler": {**_K_BETAS, **_SHAPES, **_STEPS, **_CLIP, "clip_sample": False},
    "KDPM2DiscreteScheduler": {**_K_BETAS, **_SHAPES, **_STEPS},
    "KDPM2AncestralDiscreteScheduler": {**_K_BETAS, **_SHAPES, **_STEPS},
    "DPMSolverSDEScheduler": {**_K_BETAS, **_SHAPES, **_STEPS, "noise_sampler_seed": None},
    "DPMSolverMultistepScheduler": {
        **_BETAS, **_SHAPES, **_STEPS, **_THRESHOLD, **_FLOW, "solver_order": 2, "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint", "lower_order_final": True, "euler_at_final": False, "use_lu_lambdas": False,
        "final_sigmas_type": "zero", "lambda_min_clipped": -math.inf, "variance_type": None,
        "rescale_betas_zero_snr": False,
    },
    "DPMSolverSinglestepScheduler": {
        **_BETAS, **_SHAPES, **_THRESHOLD, **_FLOW, "solver_order": 2, "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint", "lower_order_final": False, "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf, "variance_type": None,
    },
    "DEISMultistepScheduler": {
        **_BETAS, **_SHAPES, **_STEPS, **_THRESHOLD, **_FLOW, "solver_order": 2, "algorithm_type": "deis",
        "solver_type": "logrho", "lower_order_final": True,
    },
    "UniPCMultistepScheduler": {
        **_BETAS, **_SHAPES, **_STEPS, **_THRESHOLD, **_FLOW, "solver_order": 2, "predict_x0": True,
        "solver_type": "bh2", "lower_order_final": True, "disable_corrector": [], "solver_p": None,
        "final_sigmas_type": "zero", "rescale_betas_zero_snr": False, "sigma_min": None, "sigma_max": None,
        "shift_terminal": None,
    },
    "LCMScheduler": {
        **_K_BETAS, **_CLIP, **_THRESHOLD, "clip_sample": False, "beta_schedule": "scaled_linear",
        "original_inference_steps": 50, "set_alpha_to_one": True, "steps_offset": 0, "timestep_spacing": "leading",
        "timestep_scaling": 10.0, "rescale_betas_zero_snr": False,
    },
    "FlowMatchEulerDiscreteScheduler": {
        "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False, "base_shift": 0.5, "max_shift": 1.15,
        "base_image_seq_len": 256, "max_image_seq_len": 4096, "invert_sigmas": False, "shift_terminal": None,
        "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
        "time_shift_type": "exponential", "stochastic_sampling": False,
    },
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": {
        **_EDM, **_THRESHOLD, "solver_order": 2, "algorithm_type": "dpmsolver++", "solver_type": "midpoint",
        "lower_order_final": True, "euler_at_final": False,
    },
}
"""Every class that is read, with its keys and their defaults. A key of another class is inert, as it is there."""

NOTES = {"_class_name", "_diffusers_version", "_name_or_path", "_use_default_values"}
"""Keys that say where the file comes from."""

PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": False}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {}),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "dpmpp_3m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 3}),
    "dpmpp_2m_sde": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "solver_type": "midpoint"},
    ),
    "dpmpp_2m_sde_heun": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "solver_type": "heun"},
    ),
    "deis": ("DEISMultistepScheduler", {"algorithm_type": "deis"}),
    "uni_pc": ("UniPCMultistepScheduler", {"solver_type": "bh1"}),
    "uni_pc_bh2": ("UniPCMultistepScheduler", {"solver_type": "bh2"}),
    "lcm": ("LCMScheduler", {}),
}
"""For each sampler, the class whose reading of a config is followed, and the settings that make it that sampler."""

_HOMES = {name for name in CLASSES if name.startswith(("FlowMatch", "EDM"))}
"""Classes of a schedule that others do not know: their configs are read by themselves for every sampler."""

_FLOWING = {name for name, keys in CLASSES.items() if "use_flow_sigmas" in keys} - {"DEISMultistepScheduler"}
"""Classes that read the config of a flow-matching model which is not of ``_HOMES``."""

_SHAPE_KEYS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}


def from_diffusers(config: Mapping[str, Any], sampler: str | None = None, spacing: str | None = None) -> Plan:
    """The plan that a ``scheduler_config.json`` stands for.

    To name what the config would be read as without a name changes nothing: the plan of ``plan.sampler`` and
    ``plan.spacing`` is ``plan``. What belongs to the network (noise schedule, prediction, clipping) stays as the
    config's own class reads it, whatever is named.

    Args:
        sampler: a canonical sampler to use in place of the config's own. What the config says of steps and solvers is
            then read as diffusers' ``SomeScheduler.from_config(config)`` reads it, defaults of the other class
            included.
        spacing: a canonical spacing to use in place of the config's own.

    Raises:
        ConfigError: an unknown class or key, or a setting that no sampler here has.
    """
    name = config.get("_class_name")
    if name not in CLASSES:
        raise ConfigError(f"scheduler_config.json: there is no scheduler class {name!r}{nearest(str(name), CLASSES)}")
    known = NOTES.union(*CLASSES.values())
    for key in config:
        if key not in known:
            raise ConfigError(f"scheduler_config.json: unknown key {key!r}{nearest(key, known)}")
    said = {key: value for key, value in config.items() if key not in NOTES}
    own = _all(name, said)
    trained = _trained(name, own)
    if sampler is None or sampler == _sampler(name, own):
        plan = _read(name, own, trained)
    else:
        name, settings = _reader(name, sampler, trained.schedule)
        said |= settings
        plan = _with(sampler, name, _read(name, _all(name, said), trained))
    if spacing is None or spacing == plan.spacing:
        return plan
    if name not in _HOMES:
        said |= {key: key == _SHAPE_KEYS.get(spacing) for key in _SHAPES}
        said |= {"timestep_spacing": spacing} if spacing in ("leading", "trailing", "linspace") else {}
        plan = _with(plan.sampler, name, _read(name, _all(name, said), trained))
    if spacing != plan.spacing:
        plan = replace(plan, spacing=spacing, spacing_options={}, within=None, times="exact")
    return plan


class _Trained(NamedTuple):
    """What belongs to the network, whichever sampler asks it."""

    schedule: Schedule
    prediction: str
    guidance: dict[str, Any]


def _all(name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of class ``name``."""
    return {**CLASSES[name], **{key: value for key, value in said.items() if key in CLASSES[name]}}


def _sampler(name: str, c: dict[str, Any]) -> str | None:
    """The sampler that class ``name`` is with these settings; None where there is none here."""
    try:
        _refuse(name, c)
    except ConfigError:
        return None
    return _solver(name, c)[0]


def _reader(name: str, sampler: str, schedule: Schedule) -> tuple[str, dict[str, Any]]:
    """The class by which the config of class ``name`` is read for ``sampler``, and the settings that make it that."""
    reader, settings = PEERS.get(sampler, PEERS["dpmpp_2m" if TABLE[sampler].unit else "euler"])
    flowing = isinstance(schedule, RectifiedFlow)
    if name in _HOMES or (flowing and reader not in _FLOWING):
        return name, {}
    return reader, settings


def _with(sampler: str, name: str, plan: Plan) -> Plan:
    """The plan of class ``name``, with this sampler in place of its own."""
    if sampler == plan.sampler:
        return plan
    # The options of a class are those of the samplers that are settings of it, and of no others.
    its = TABLE[sampler].options if PEERS.get(sampler, ("", {}))[0] == name else ()
    return replace(plan, sampler=sampler, options={k: v for k, v in plan.options.items() if k in its})


def _trained(name: str, c: dict[str, Any]) -> _Trained:
    """What class ``name`` with all its settings says of the network."""
    prediction = {"flow_prediction": "flow"}.get(c.get("prediction_type", "flow"), c.get("prediction_type", "flow"))
    guidance = {}
    if c.get("thresholding"):
        guidance = {"dynamic_threshold": c["dynamic_thresholding_ratio"], "threshold_maximum": c["sample_max_value"]}
    elif c.get("clip_sample"):
        guidance = {"clip": c["clip_sample_range"]}
    return _Trained(_schedule(name, c), "edm" if "EDM" in name else prediction, guidance)


def _read(name: str, c: dict[str, Any], trained: _Trained) -> Plan:
    """The plan of class ``name`` with all its settings, for this network."""
    _refuse(name, c)
    sampler, options = _solver(name, c)
    schedule, prediction, guidance = trained
    spacing, spacing_options, within, times = _spacing(name, c, schedule)
    home = isinstance(schedule, RectifiedFlow) or TABLE[sampler].unit
    return Plan(
        schedule, prediction, sampler, options, spacing, spacing_options, within,
        unit=(home or c.get("timestep_spacing") == "leading") and "EDM" not in name, times=times, guidance=guidance,
    )


def _refuse(name: str, c: dict[str, Any]) -> None:
    """Settings that no sampler here has."""
    only: dict[str, tuple[Any, ...]] = {
        "use_dynamic_shifting": (False,), "invert_sigmas": (False,), "shift_terminal": (None,),
        "stochastic_sampling": (False,), "solver_p": (None,), "predict_x0": (True,), "interpolation_type": ("linear",),
        "prediction_type": ("epsilon",) if "EDM" in name else
        ("epsilon", "v_prediction", "sample", "flow_prediction"),
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis") if "Multistep" in name else ("dpmsolver++",),
        "noise_sampler_seed": (None,), "timestep_spacing": ("linspace", "leading", "trailing"),
        "final_sigmas_type": ("zero", "sigma_min"), "timestep_type": ("discrete", "continuous"),
        "sigma_schedule": ("karras", "exponential"),
    }
    if name == "DDPMScheduler":
        only["variance_type"] = ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")
    if name == "DEISMultistepScheduler":
        only["use_flow_sigmas"] = (False,)
    if name == "FlowMatchEulerDiscreteScheduler":
        only |= dict.fromkeys(_SHAPES, (False,))
    for key, allowed in only.items():
        if key in c and c[key] not in allowed:
            offer = ", ".join(repr(value) for value in allowed)
            raise ConfigError(f"scheduler_config.json: {name} with {key} = {c[key]!r} is not supported, only {offer}.")
    if c.get("algorithm_type") == "sde-dpmsolver++" and c["solver_order"] == 3:
        raise ConfigError("scheduler_config.json: sde-dpmsolver++ with solver_order = 3 is not supported; use 2.")
    if sum(bool(c.get(key)) for key in _SHAPES) > 1:
        raise ConfigError("scheduler_config.json: only one of karras, exponential and beta sigmas can be used.")


def _schedule(name: str, c: dict[str, Any]) -> Schedule:
    if name == "FlowMatchEulerDiscreteScheduler" or c.get("use_flow_sigmas"):
        return RectifiedFlow(shift=c.get("shift", c.get("flow_shift", 1.0)), scale=float(c["num_train_timesteps"]))
    if "EDM" in name:
        return EDM(c["sigma_min"], c["sigma_max"], c["sigma_data"])
    if c.get("timestep_type") == "continuous" and c["prediction_type"] == "v_prediction":
        if c["sigma_min"] is None or c["sigma_max"] is None or not c["use_karras_sigmas"]:
            raise ConfigError("scheduler_config.json: continuous times need sigma_min, sigma_max and Karras sigmas.")
        return EDM(c["sigma_min"], c["sigma_max"], data=1.0)
    if c["trained_betas"] is not None:
        return Discrete(tuple(float(beta) for beta in c["trained_betas"]))
    return discrete(
        c["beta_schedule"], c["num_train_timesteps"], c["beta_start"], c["beta_end"],
        bool(c.get("rescale_betas_zero_snr")),
    )


def _solver(name: str, c: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The sampler and its options."""
    ends: dict[str, Any] = {key: c[key] for key in ("lower_order_final", "euler_at_final") if key in c}
    if "DPMSolverMultistep" in name:
        solver = {"solver": c["solver_type"] if c["solver_type"] in ("midpoint", "heun") else "midpoint"}
        if c["algorithm_type"] == "sde-dpmsolver++":
            return "dpmpp_2m_sde", {**solver, **ends}
        if c["solver_order"] == 3:
            return "dpmpp_3m", {**solver, **ends}
        return "dpmpp_2m", {"order": c["solver_order"], **solver, **ends}
    if name == "DPMSolverSinglestepScheduler":
        solver = {"solver": c["solver_type"] if c["solver_type"] in ("midpoint", "heun") else "midpoint"}
        return "dpmpp_2s", {"order": c["solver_order"], **solver, **ends}
    if name == "DEISMultistepScheduler":
        return "deis", {"order": c["solver_order"], **ends}
    if name == "UniPCMultistepScheduler":
        options = {"order": c["solver_order"], **ends, "skip_corrector": tuple(c["disable_corrector"])}
        return "uni_pc" if c["solver_type"] == "bh1" else "uni_pc_bh2", options
    if name == "PNDMScheduler":
        return "plms" if c["skip_prk_steps"] else "pndm", {"average": c["prediction_type"]}
    if name == "DDPMScheduler":
        return "ddpm", {"variance": c["variance_type"].removesuffix("_log")}
    return next(n for n, (peer, _) in PEERS.items() if peer == name) if name in _PEER_CLASSES else "euler", {}


_PEER_CLASSES = {peer for peer, _ in PEERS.values()}


def _spacing(
    name: str, c: dict[str, Any], schedule: Schedule
) -> tuple[str, dict[str, Any], tuple[str, Mapping[str, Any]] | None, Times]:
    """(spacing, its options, the spacing whose ends are its range, how times are told)."""
    final: dict[str, Any] = {}
    if c.get("final_sigmas_type") == "sigma_min" or c.get("set_alpha_to_one") is False or name.startswith("DEIS"):
        final = {"final": "sigma_min"}
    shape = next((s for s, key in _SHAPE_KEYS.items() if c.get(key)), None)
    if "EDM" in name:
        rho = {"rho": c["rho"]} if c["sigma_schedule"] == "karras" else {}
        return c["sigma_schedule"], rho | final, None, "exact"
    if isinstance(schedule, EDM):
        return "karras", final, None, "exact"
    if isinstance(schedule, RectifiedFlow):
        whole = 1.0 / schedule.scale
        if name.startswith("FlowMatch"):
            # Its own table is shifted once when it is made; the end of that is shifted again when it is spaced.
            last = schedule.shift * whole / (1.0 + (schedule.shift - 1.0) * whole)
            return "flow", {"last_time": last}, None, "exact"
        if name.startswith("UniPC"):
            return "flow", {"last_time": whole, "open_end": True, **final}, None, "floor"
        return "flow", {"first_time": 1.0 - whole, "last_time": 0.0, "open_end": True, **final}, None, "floor"
    if name == "LCMScheduler":
        return "lcm", {"original_steps": c["original_inference_steps"]}, None, "exact"
    steps, options = c.get("timestep_spacing", "linspace"), dict(final)
    if steps == "leading" and c["steps_offset"]:
        options["offset"] = c["steps_offset"]
    if name in ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler"):
        return steps, options | ({"whole": True} if steps == "linspace" else {}), None, "exact"
    if name.startswith(("DPMSolverMultistep", "DPMSolverSinglestep", "DEIS", "UniPC")):
        if shape is not None or c.get("use_lu_lambdas"):
            rounded = shape == "karras" or c.get("use_lu_lambdas")
            cosine = name == "DPMSolverMultistepScheduler" and c["beta_schedule"] == "squaredcos_cap_v2"
            return shape or "exponential", final, None, "round" if rounded and not cosine else "floor"
        if c.get("lambda_min_clipped", -math.inf) > -math.inf and isinstance(schedule, Discrete):
            least = math.exp(-c["lambda_min_clipped"])  # the sigma above which nothing is asked
            options["limit"] = int((schedule.sigmas <= least).sum())
        return steps, options | ({"open_end": True} if steps != "trailing" else {}), None, "exact"
    if shape is not None:
        ends = {key: c[key] for key in ("sigma_min", "sigma_max") if c.get(key) is not None}
        base = {key: value for key, value in options.items() if key != "final"}
        return shape, {**ends, **final}, None if len(ends) == 2 else (steps, base), "exact"
    return steps, options, None, "exact"


def to_diffusers(plan: Plan) -> dict[str, Any]:
    """The ``scheduler_config.json`` that ``from_diffusers`` reads as a plan that does the same.

    Raises:
        ConfigError: no class of diffusers can be set so.
    """
    said = _settings(plan)
    own = PEERS.get(plan.sampler, ("EulerDiscreteScheduler", {}))[0]
    for name in (own, *CLASSES):
        config = {**CLASSES[name], **{k: v for k, v in said.items() if k in CLASSES[name]}}
        try:
            if _same(_read(name, config, _trained(name, config)), plan):
                return {"_class_name": name, **{k: v for k, v in config.items() if v != -math.inf}}
        except ConfigError:
            continue
    raise ConfigError(f"{plan.sampler} with {plan.spacing} spacing cannot be said in a scheduler_config.json.")


def _same(a: Plan, b: Plan) -> bool:
    """Whether two plans make the same runs."""
    return (
        (a.schedule, a.prediction, a.sampler, a.unit, a.times) == (b.schedule, b.prediction, b.sampler, b.unit, b.times)
        and dict(a.guidance) == dict(b.guidance)
        and {**_defaults(a.sampler), **a.options} == {**_defaults(b.sampler), **b.options}
        and all(math.isclose(x, y, rel_tol=1e-9) for n in (7, 20)
                for x, y in zip(a.sigmas(n), b.sigmas(n), strict=True))
    )


def _defaults(sampler: str) -> dict[str, Any]:
    parameters = signature(SAMPLERS.get(sampler)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _settings(plan: Plan) -> dict[str, Any]:
    """Everything that a plan says, under the keys of all classes."""
    schedule, options, spacing = plan.schedule, dict(plan.options), dict(plan.spacing_options)
    said: dict[str, Any] = dict(PEERS.get(plan.sampler, ("", {}))[1])
    if isinstance(schedule, Discrete):
        said |= _betas(schedule)
    elif isinstance(schedule, RectifiedFlow):
        said |= {"num_train_timesteps": int(schedule.scale), "use_flow_sigmas": True}
        said |= {"shift": schedule.shift, "flow_shift": schedule.shift}
    elif isinstance(schedule, EDM):
        said |= {"sigma_min": schedule.sigma_min, "sigma_max": schedule.sigma_max, "sigma_data": schedule.data}
        said |= {"timestep_type": "continuous"} if plan.prediction == "v_prediction" else {}
    said["prediction_type"] = {"flow": "flow_prediction", "edm": "epsilon"}.get(plan.prediction, plan.prediction)
    names = {
        "order": "solver_order", "solver": "solver_type", "variance": "variance_type",
        "skip_corrector": "disable_corrector",
    }
    said |= {names.get(k, k): list(v) if isinstance(v, tuple) else v for k, v in options.items() if k != "average"}
    if plan.sampler == "dpmpp_3m":
        said["solver_order"] = 3
    steps, its = plan.within or (plan.spacing, spacing)
    said |= {"timestep_spacing": steps} if steps in ("leading", "trailing", "linspace") else {}
    said |= {"steps_offset": its.get("offset", 0)}
    said |= {key: key == _SHAPE_KEYS.get(plan.spacing) for key in _SHAPES}
    if plan.spacing == "exponential" and plan.times == "round":
        said |= {"use_lu_lambdas": True, "use_exponential_sigmas": False}
    said |= {"final_sigmas_type": spacing.get("final", "zero"), "set_alpha_to_one": "final" not in spacing}
    said |= {"sigma_schedule": plan.spacing, "rho": spacing.get("rho", 7.0)}
    said |= {key: spacing[key] for key in ("sigma_min", "sigma_max") if key in spacing}
    said |= {"original_inference_steps": spacing.get("original_steps", 50)}
    if "limit" in spacing and isinstance(schedule, Discrete):
        edge = schedule.sigmas[spacing["limit"] - 1 : spacing["limit"] + 1].log().mean()
        said["lambda_min_clipped"] = -float(edge)
    guidance = plan.guidance
    said |= {"clip_sample": "clip" in guidance, "clip_sample_range": guidance.get("clip", 1.0)}
    said |= {"thresholding": "dynamic_threshold" in guidance}
    said |= {"dynamic_thresholding_ratio": guidance.get("dynamic_threshold", 0.995)}
    return said | {"sample_max_value": guidance.get("threshold_maximum", 1.0)}


def _betas(schedule: Discrete) -> dict[str, Any]:
    """The named shape that gives exactly these betas, or the betas themselves."""
    count, first, last = schedule.steps, schedule.betas[0], schedule.betas[-1]
    for zero in (False, True):
        for shape in ("scaled_linear", "linear", "squaredcos_cap_v2"):
            for start, end in ((first, last), (0.00085, 0.012), (0.0001, 0.02)):
                start, end = float(f"{start:.12g}"), float(f"{end:.12g}")  # as a person has written them
                if discrete(shape, count, start, end, zero) == schedule:
                    return {
                        "num_train_timesteps": count, "beta_schedule": shape, "beta_start": start, "beta_end": end,
                        "rescale_betas_zero_snr": zero,
                    }
    return {"num_train_timesteps": count, "trained_betas": list(schedule.betas)}
