"""Training on a CUDA device; `make test-cuda`."""

from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from sfumato.cli import main
from sfumato.core.config import to_dict
from sfumato.training import journal, shapes
from sfumato.training.recipe import to_toml
from tests.training.test_stages import CLIP, CODER, TRAIN, UNET, recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

DIT = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_every_stage_learns(precision: str, tmp_path: Path) -> None:
    shapes.write(tmp_path / "pictures", 20, 16)
    train: dict[str, Any] = {**TRAIN, "steps": 6, "eval_every": 3, "precision": precision}
    whole = recipe(
        tmp_path / "pictures", name="tiny", autoencoder={"model": CODER, "train": train},
        clip={"model": CLIP, "vocab_size": 530, "train": train},
        diffusion={"unet": UNET, "train": train, "prompts": ["a large red circle"], "sample_steps": 2},
    )
    (tmp_path / "recipe.toml").write_text(to_toml(to_dict(whole)))
    assert main(["train", str(tmp_path / "recipe.toml"), "-o", str(tmp_path / "run")]) == 0
    for name in ("autoencoder", "clip", "diffusion"):
        assert len(journal.read(tmp_path / "run/training" / name / "curves.jsonl")) == 6
    result = sfumato.load(str(tmp_path / "run"), device="cuda")("a large red circle", steps=2)
    assert result.latents.isfinite().all()
