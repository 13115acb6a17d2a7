"""Drawing with a denoiser that multiplies in 8 bits: near the exact picture, and told."""

from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from sfumato.core.errors import ConfigError
from sfumato.engine.pack import Eight
from sfumato.nn.float8 import Float8Linear
from sfumato.training.evaluate.likeness import psnr

ASKED: dict[str, Any] = {"seed": 0, "steps": 6}


@pytest.mark.parametrize("eight", ["int8", "fp8"])
def test_a_picture_is_near_and_its_recipe_tells(eight: Eight, tmp_path: Path) -> None:
    exact, coarse = (
        sfumato.load(device="cpu", quantize=way)("a slice of pizza", **ASKED).pictures[0] for way in (None, eight)
    )
    pixels = [torch.from_numpy(picture.pixels).permute(2, 0, 1)[None] for picture in (exact, coarse)]
    assert 30 < float(psnr(*pixels)) < 80
    assert coarse.recipe["model"]["opened"]["quantize"] == eight
    assert "quantize" not in exact.recipe["model"].get("opened", {})


def test_what_was_done_and_what_it_costs_is_noted() -> None:
    pipe = sfumato.load(device="cpu", quantize="fp8", dtype="bfloat16")
    result = pipe("a slice of pizza", **ASKED)
    assert any(isinstance(layer, Float8Linear) for layer in pipe.model.network.modules())
    assert any("fp8" in note and "lossy" in note for note in result.notes)
    assert any("slower" in note and "no instructions" in note for note in result.notes)


def test_a_limit_leaves_it_in_8_bits() -> None:
    pipe = sfumato.load(device="cpu", quantize="fp8", max_memory="2GB")
    pipe("a slice of pizza", **ASKED)
    assert any(isinstance(layer, Float8Linear) for layer in pipe.model.network.modules())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"quantize": "int8", "dtype": "bfloat16"}, "in bfloat16"), ({"quantize": "int4"}, "int4"),
        ({"quantize": "fp8", "compile": "default"}, "for GPUs"), ({"quantize": "fp8", "optimize": False}, "optimize"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        sfumato.load(device="cpu", **asked)
