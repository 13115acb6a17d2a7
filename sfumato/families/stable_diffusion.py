"""Stable Diffusion 1, 2 and XL: what belongs together, and how their prompts become conditionings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sfumato.adapters.wanted import spoken
from sfumato.core.request import Request
from sfumato.families.text_states import PromptStates, Tower, encode
from sfumato.families.types import Family, Model, Prompts
from sfumato.nn.conditioning import Conditioning

SD_RGB = ((0.351, 0.230, 0.323), (0.325, 0.497, 0.235), (-0.283, 0.176, 0.272), (-0.212, -0.262, -0.718))
SDXL_RGB = ((0.365, 0.423, 0.434), (-0.253, -0.004, 0.107), (0.108, 0.111, -0.036), (-0.317, -0.249, -0.219))
"""Latent channels to colours, for previews: least-squares fits on decoded pictures."""


def tower(model: Model, suffix: str = "", **reading: Any) -> Tower:
    """A text encoder with its tokenizer; ``suffix`` is that of the parts' names."""
    return Tower(model.tokenizers["tokenizer" + suffix], model.parts["text_encoder" + suffix], **reading)


def read(model: Model, request: Request, names: Sequence[str], towers: Sequence[Tower]) -> PromptStates:
    """The text states of the named prompts, all equally long."""
    texts = {"positive": request.prompt, "negative": request.negative_prompt}
    prompts = [spoken(texts[name], request.prompt_weighting) for name in names]
    return encode(
        towers, prompts, request.prompt_weighting, request.long_prompts, request.clip_skip, model.device,
    )


def embedded_guidance(model: Model, request: Request) -> Tensor | None:
    """[1] the guidance scale, of networks that were taught to guide themselves (Luo et al., 2023); else None."""
    if not model.guides_itself:
        return None
    assert request.cfg_scale is not None  # the request was settled
    return torch.tensor([request.cfg_scale])


def condition_sd(model: Model, request: Request, names: Sequence[str]) -> Prompts:
    """One text encoder, its last layer's states (or an earlier one's) as context."""
    found = read(model, request, names, [tower(model)])
    scale = embedded_guidance(model, request)
    rows = {name: Conditioning(context=found.states[i : i + 1], guidance=scale) for i, name in enumerate(names)}
    return Prompts(rows, dict(zip(names, found.tokens, strict=True)), found.warnings)


def condition_upscaler(model: Model, request: Request, names: Sequence[str]) -> Prompts:
    """The prompt, and how noisy the small picture is."""
    assert request.noise_level is not None  # the request was settled
    found, level = condition_sd(model, request, names), torch.tensor([request.noise_level])
    return found._replace(conditionings={name: replace(c, labels=level) for name, c in found.conditionings.items()})


def condition_xl(model: Model, request: Request, names: Sequence[str]) -> Prompts:
    """Two encoders' last but one layers side by side, the second one's pooled text, and the picture's size and crop.

    Podell et al., "SDXL", 2023, sections 2.1 and 2.2. A negative prompt that is empty is all zeros where the
    checkpoint says so (``force_zeros_for_empty_prompt``), which is how the base model was trained.
    """
    towers = [
        tower(model, "", layers_skipped=1, normalised=False),
        tower(model, "_2", layers_skipped=1, normalised=False, pooled="projected"),
    ]
    found = read(model, request, names, towers)
    zeros = model.options.get("force_zeros_for_empty_prompt", True) and not request.negative_prompt
    scale = embedded_guidance(model, request)
    return _with_sizes(found, request, names, {}, "negative" if zeros else "", scale)


AESTHETIC = {"positive": 6.0, "negative": 2.5}
"""The scores that the refiner is told to aim at and to stay away from (Stability's own defaults)."""


def condition_refiner(model: Model, request: Request, names: Sequence[str]) -> Prompts:
    """XL's second encoder alone, the picture's size and crop, and an aesthetic score in place of the target size."""
    found = read(
        model, request, names, [tower(model, "_2", layers_skipped=1, normalised=False, pooled="projected")]
    )
    return _with_sizes(found, request, names, AESTHETIC)


def _with_sizes(
    found: PromptStates, request: Request, names: Sequence[str], scores: Mapping[str, float], zeroed: str = "",
    scale: Tensor | None = None,
) -> Prompts:
    """One row a name: context, pooled text, and original size, crop, and target size or score."""
    assert found.pooled is not None  # a tower was asked for it
    assert request.width is not None  # the request was settled
    assert request.height is not None
    target = (request.height, request.width)
    told = [*(request.original_size or target), *(request.crop or (0, 0))]
    rows = {}
    for i, name in enumerate(names):
        keep = 0.0 if name == zeroed else 1.0
        rows[name] = Conditioning(
            context=found.states[i : i + 1] * keep, pooled=found.pooled[i : i + 1] * keep, guidance=scale,
            sizes=torch.tensor([[*told, scores[name]] if scores else [*told, *target]]).float(),
        )
    return Prompts(rows, dict(zip(names, found.tokens, strict=True)), found.warnings)


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
"""Every Stable Diffusion up to XL was trained on this schedule."""

UPSCALER_BETAS = {**BETAS, "beta_start": 0.0001, "beta_end": 0.02}
"""The upscaler's, of its latents and of the small picture alike."""

SD1 = Family(
    name="sd1", title="Stable Diffusion 1", size=512, condition=condition_sd, rgb=SD_RGB, uses=("clip_skip",),
    defaults={"steps": 30, "cfg_scale": 7.5},
    scheduler={"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, **BETAS},
)
SD2 = replace(SD1, name="sd2", title="Stable Diffusion 2")
SDXL = replace(
    SD1, name="sdxl", title="Stable Diffusion XL", size=1024, condition=condition_xl, rgb=SDXL_RGB,
    uses=("clip_skip", "original_size", "crop", "refiner_start"), defaults={"steps": 30, "cfg_scale": 5.0},
    scheduler={"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": 1, **BETAS},
)
SDXL_REFINER = replace(
    SDXL, name="sdxl-refiner", title="Stable Diffusion XL refiner", condition=condition_refiner,
    uses=("clip_skip", "original_size", "crop"),
)
LATENT = replace(
    SD1, name="latent", title="a text-conditioned latent model", rgb=(), size=64,
    defaults={"steps": 25, "cfg_scale": 2.0},
)
"""The same recipe at any size: what one trains oneself."""

SD1_INPAINT = replace(SD1, name="sd1-inpaint", title="Stable Diffusion 1 inpainting", tasks=("inpaint",))
SD2_INPAINT = replace(SD2, name="sd2-inpaint", title="Stable Diffusion 2 inpainting", tasks=("inpaint",))
SD2_DEPTH = replace(SD2, name="sd2-depth", title="Stable Diffusion 2 depth", tasks=("depth_to_image",))
SD2_UPSCALE = replace(
    SD2, name="sd2-upscale", title="Stable Diffusion x4 upscaler", tasks=("upscale",), multiple=4, rgb=(),
    condition=condition_upscaler, defaults={"steps": 50, "cfg_scale": 9.0},
    scheduler={"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
               "prediction_type": "v_prediction", **UPSCALER_BETAS},
)  # fmt: skip
SDXL_INPAINT = replace(SDXL, name="sdxl-inpaint", title="Stable Diffusion XL inpainting", tasks=("inpaint",))
