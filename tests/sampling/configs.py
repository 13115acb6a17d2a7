"""What the scheduler_config.json of well-known models say."""

from typing import Any

SD15: dict[str, Any] = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}
SD21: dict[str, Any] = {
    **SD15, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction",
}
SDXL: dict[str, Any] = {
    **SD15, "_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear", "prediction_type": "epsilon",
    "sample_max_value": 1.0, "timestep_spacing": "leading", "use_karras_sigmas": False,
}
VIDEO: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous", "prediction_type": "v_prediction",
    "sigma_min": 0.002, "sigma_max": 700.0, "use_karras_sigmas": True,
}
FLOW: dict[str, Any] = {
    "_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 3.0,
    "prediction_type": "flow_prediction",
}
PIXELS: dict[str, Any] = {
    "_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range",
    "thresholding": True, "dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5,
}
