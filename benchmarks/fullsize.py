"""A Stable Diffusion 1.5 of true size with random weights, as a folder that both sides open."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import torch

from sfumato.checkpoints.diffusers import Folder, write_folder
from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.ldm import Layout, class_of
from sfumato.checkpoints.parts import Part
from sfumato.families.single_file import VARIANTS
from sfumato.families.stable_diffusion import BETAS
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.unet import UNetConfig
from sfumato.text import tokenizer

PLACE = Path(gettempdir()) / "sfumato-benchmark-sd15"


def folder() -> Path:
    """The folder, made when it is first asked for: 4.3 GB in float32."""
    if (PLACE / "model_index.json").exists():
        return PLACE
    print(f"making a model of 4.3 GB in {PLACE} …", file=sys.stderr)
    torch.manual_seed(0)
    layout = VARIANTS["sd1"].layout
    assert isinstance(layout, Layout)
    configs: dict[str, UNetConfig | AutoencoderConfig | ClipTextConfig] = {
        "unet": layout.unet, "vae": layout.vae, "text_encoder": layout.text["text_encoder"].config,
    }
    parts = {}
    for name, config in configs.items():
        kind = class_of(config)
        parts[name] = Part(kind, config, lazy_all(Part(kind, config, {}, name).build().state_dict()), name)
    scheduler = {"_class_name": "DDIMScheduler", **BETAS, "steps_offset": 1, "clip_sample": False,
                 "set_alpha_to_one": False}  # fmt: skip
    with TemporaryDirectory() as words:
        tokenizer.builtin().save(Path(words))
        made = Folder("StableDiffusionPipeline", parts, {"scheduler": scheduler}, {"tokenizer": Path(words)})
        write_folder(PLACE, made)
    return PLACE


def peer(place: Path) -> Any:
    """diffusers' pipeline on that folder."""
    import diffusers

    made: Any = diffusers.StableDiffusionPipeline
    pipeline = made.from_pretrained(place, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
