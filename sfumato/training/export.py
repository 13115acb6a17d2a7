"""A run's folder as a model folder, part by part: each appears whole, and replaces the one before."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.checkpoints.diffusers import write_part
from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.parts import KINDS, Part
from sfumato.checkpoints.write import atomic_file, atomic_folder, save_json
from sfumato.text.tokenizer import ClipTokenizer

PARTS = (
    "vae", "unet", "transformer", "text_encoder", "tokenizer", "scheduler", "clip", r"model_index\.json", r"README\.md",
    r"recipe\.toml", r"lora\.safetensors",
)
"""What a run folder has of a model folder, as patterns."""


def put_part(root: Path, name: str, kind: str, config: Any, weights: Mapping[str, Tensor]) -> None:
    """``root/name``: config.json and weights of one network."""
    tensors = lazy_all({key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()})
    with atomic_folder(root / name, overwrite=True) as made:
        write_part(made, Part(kind, config, tensors, str(root / name)))


def put_tokenizer(root: Path, tokenizer: ClipTokenizer) -> None:
    """``root/tokenizer``."""
    with atomic_folder(root / "tokenizer", overwrite=True) as made:
        tokenizer.save(made)


def put_scheduler(root: Path, settings: Mapping[str, Any]) -> None:
    """``root/scheduler``: how the model is sampled."""
    with atomic_folder(root / "scheduler", overwrite=True) as made:
        save_json(made / "scheduler_config.json", settings)


def put_index(
    root: Path, pipeline: str, parts: Mapping[str, str], scheduler: str, options: Mapping[str, Any] | None = None
) -> None:
    """``root/model_index.json``, last: from now on the folder is a model.

    Args:
        parts: subfolder to class.
        scheduler: its class.
        options: plain values, e.g. the names of classes.
    """
    index: dict[str, Any] = {"_class_name": pipeline, "scheduler": ["diffusers", scheduler], **(options or {})}
    for name, kind in parts.items():
        index[name] = ["transformers" if KINDS[kind].stem == "model" else "diffusers", kind]
    if pipeline == "StableDiffusionPipeline":
        index |= {"tokenizer": ["transformers", "CLIPTokenizer"], "safety_checker": [None, None],
                  "feature_extractor": [None, None], "requires_safety_checker": False}  # fmt: skip
    save_json(root / "model_index.json", index)


def tidy(root: Path) -> None:
    """Remove what a process that was killed while it put a part in place left behind; a part whose successor had not
    come yet is put back."""
    for leftover in sorted(root.glob(".*.part")) + sorted(root.glob(".*.old")):
        found = re.fullmatch(rf"\.({'|'.join(PARTS)})\..+\.(part|old)", leftover.name)
        if found is None:
            continue
        if found[2] == "old" and not (root / found[1]).exists():
            leftover.rename(root / found[1])
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink()


def put_card(root: Path, title: str, facts: Mapping[str, Any], recipe: str) -> None:
    """``root/README.md``, the model card: what it was trained on, how far, and the whole recipe."""
    rows = "\n".join(f"| {key} | {json.dumps(value, ensure_ascii=False)} |" for key, value in facts.items())
    head = f"---\ntags: [sfumato, latent-diffusion]\n---\n# {title}\n\nTrained with sfumato.\n\n"
    text = f"{head}| | |\n|---|---|\n{rows}\n\n## Recipe\n\n```toml\n{recipe}```\n"
    with atomic_file(root / "README.md") as file:
        file.write(text.encode())
