"""A Stable Diffusion 1.5 of true size with random weights, as a folder that all sides open; and a tiny one."""

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import torch

from benchmarks.peers import UNETS, VAES
from sfumato.checkpoints.diffusers import Folder, write_folder, write_part
from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.ldm import class_of
from sfumato.checkpoints.parts import Part
from sfumato.families.stable_diffusion import BETAS
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.clip_text import CLIP_L, ClipTextConfig
from sfumato.models.tiny_autoencoder import TinyConfig
from sfumato.models.unet import UNetConfig
from sfumato.text import tokenizer

PROMPT, NEGATIVE = "a red apple on a wooden table, soft light, photograph", "blurred, dark"
PLACE = Path(gettempdir())


def folder(name: str = "sd15") -> Path:
    """The folder of ``sd15`` (4.3 GB in float32) or ``tiny``, made when it is first asked for."""
    place = PLACE / f"sfumato-benchmark-{name}"
    if (place / "model_index.json").exists():
        return place
    print(f"making a model in {place} …", file=sys.stderr)
    torch.manual_seed(0)
    configs: dict[str, UNetConfig | AutoencoderConfig | ClipTextConfig] = {
        "unet": UNETS[name], "vae": VAES[name],
        "text_encoder": CLIP_L if name == "sd15" else replace(CLIP_L, num_hidden_layers=2),
    }
    parts = {}
    for part, config in configs.items():
        kind = class_of(config)
        parts[part] = Part(kind, config, lazy_all(Part(kind, config, {}, part).build().state_dict()), part)
    scheduler = {"_class_name": "DDIMScheduler", **BETAS, "steps_offset": 1, "clip_sample": False,
                 "set_alpha_to_one": False}  # fmt: skip
    with TemporaryDirectory() as words:
        tokenizer.builtin().save(Path(words))
        made = Folder("StableDiffusionPipeline", parts, {"scheduler": scheduler}, {"tokenizer": Path(words)})
        write_folder(place, made)
    return place


def tiny_decoder() -> Path:
    """A folder with a tiny autoencoder for the latents of both, random too."""
    place = PLACE / "sfumato-benchmark-taesd"
    if not place.exists():
        torch.manual_seed(0)
        kind, config = "AutoencoderTiny", TinyConfig()
        made = Part(kind, config, lazy_all(Part(kind, config, {}, "vae").build().state_dict()), "vae")
        place.mkdir()
        write_part(place, made)
    return place


def peer(name: str, **parts: Any) -> Any:
    """diffusers' pipeline on the folder; ``parts`` stand in for its own."""
    import diffusers

    made: Any = diffusers.StableDiffusionPipeline
    pipeline = made.from_pretrained(folder(name), safety_checker=None, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
