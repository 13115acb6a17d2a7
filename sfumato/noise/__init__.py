"""Noise: how much of it there is at each time, what networks say about it, and which sigmas a run visits."""

from sfumato.core.registry import Registry

SPACINGS = Registry(
    kind="spacing",
    targets={
        "leading": "sfumato.noise.spacing:leading",
        "trailing": "sfumato.noise.spacing:trailing",
        "linspace": "sfumato.noise.spacing:linspace",
        "normal": "sfumato.noise.spacing:normal",
        "simple": "sfumato.noise.spacing:simple",
        "sgm_uniform": "sfumato.noise.spacing:sgm_uniform",
        "ddim": "sfumato.noise.spacing:ddim",
        "karras": "sfumato.noise.spacing:karras",
        "exponential": "sfumato.noise.spacing:exponential",
        "polyexponential": "sfumato.noise.spacing:polyexponential",
        "beta": "sfumato.noise.spacing:beta",
        "kl_optimal": "sfumato.noise.spacing:kl_optimal",
        "align_your_steps": "sfumato.noise.spacing:align_your_steps",
        "align_your_steps_xl": "sfumato.noise.spacing:align_your_steps_xl",
        "flow": "sfumato.noise.spacing:flow",
        "lcm": "sfumato.noise.spacing:lcm",
    },
    aliases={"Uniform": "normal", "AYS": "align_your_steps", "DDIM uniform": "ddim", "lu": "exponential"},
)
"""How the sigmas of a run are chosen. A1111's schedule types fold onto these names ("SGM Uniform", "KL Optimal", …)."""
