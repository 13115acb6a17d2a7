"""Families: what belongs together in a model, declared once."""

from sfumato.core.errors import CheckpointError
from sfumato.core.registry import Registry

_SD = "sfumato.families.stable_diffusion"

FAMILIES = Registry(
    kind="family",
    targets={
        "sd1": f"{_SD}:SD1",
        "sd1-inpaint": f"{_SD}:SD1_INPAINT",
        "sd2": f"{_SD}:SD2",
        "sd2-inpaint": f"{_SD}:SD2_INPAINT",
        "sd2-depth": f"{_SD}:SD2_DEPTH",
        "sd2-upscale": f"{_SD}:SD2_UPSCALE",
        "sdxl": f"{_SD}:SDXL",
        "sdxl-refiner": f"{_SD}:SDXL_REFINER",
        "sdxl-inpaint": f"{_SD}:SDXL_INPAINT",
        "latent": f"{_SD}:LATENT",
        "dit": "sfumato.families.dit:DIT",
        "unconditional": "sfumato.families.unconditional:UNCONDITIONAL",
    },
    error=CheckpointError,
)
"""Every family by its name."""
