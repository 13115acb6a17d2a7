"""What is said of a file or folder."""

from pathlib import Path

import pytest
import torch

from sfumato.checkpoints.diffusers import Folder, write_folder
from sfumato.checkpoints.fingerprint import Fingerprint
from sfumato.checkpoints.inspect import inspect
from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.ldm import put_together, write_single_file
from sfumato.checkpoints.write import save_file
from sfumato.core.errors import CheckpointError
from tests.checkpoints.models import TRUE, random_parts, small

LAYOUT = small(TRUE["sd1"])
TABLE = [
    Fingerprint("sd1", "plain", {"model.diffusion_model.input_blocks.0.0.weight": (None, 4, 3, 3)}),
]
LAYOUTS = {("sd1", "plain"): LAYOUT}


def test_a_single_file(tmp_path: Path) -> None:
    parts = random_parts(LAYOUT)
    digest = write_single_file(tmp_path / "x.safetensors", parts, LAYOUT, metadata={"title": "small"})
    report = inspect(tmp_path / "x.safetensors", TABLE, LAYOUTS)
    assert report.families == (("sd1", "plain"),)
    assert report.problems == ()
    assert report.content == {"": digest}
    assert report.precisions == {"float32": sum(len(p.tensors) for p in parts.values())}
    assert report.parts["unet"].parameters == sum(t.numel for t in parts["unet"].tensors.values())
    assert report.parts.keys() == {"unet", "vae", "text_encoder"}
    text = report.text()
    for line in ("family:      sd1 plain", "metadata:    title = small", f"content:     {digest}", "sha256:"):
        assert line in text
    assert inspect(tmp_path / "x.safetensors", hashes=False).hashes is None


def test_what_is_missing_and_what_is_unused(tmp_path: Path) -> None:
    tensors = put_together(random_parts(LAYOUT), LAYOUT)
    save_file(tmp_path / "y", {**tensors, **lazy_all({"betas": torch.zeros(3)})})
    assert inspect(tmp_path / "y", TABLE, LAYOUTS).left_behind == ("betas",)
    tensors.pop("first_stage_model.encoder.conv_in.bias")
    save_file(tmp_path / "x", tensors)
    (problem,) = inspect(tmp_path / "x", TABLE, LAYOUTS).problems
    assert "missing 1 (first_stage_model.encoder.conv_in.bias)" in problem


def test_a_changed_byte(tmp_path: Path) -> None:
    write_single_file(tmp_path / "x", random_parts(LAYOUT), LAYOUT)
    data = bytearray((tmp_path / "x").read_bytes())
    data[-3] ^= 8
    (tmp_path / "x").write_bytes(data)
    report = inspect(tmp_path / "x")
    assert report.damaged == ("",)
    assert "DAMAGED:     the file" in report.text()


def test_a_folder(tmp_path: Path) -> None:
    parts = random_parts(LAYOUT)
    write_folder(tmp_path / "m", Folder("StableDiffusionPipeline", parts), max_bytes=50_000)
    report = inspect(tmp_path / "m", judge=lambda folder: (f"of {folder.pipeline}", ("an odd scale",)))
    assert report.seems == "StableDiffusionPipeline"
    assert report.families == (("of StableDiffusionPipeline", ""),)
    assert report.problems == ("an odd scale",)
    report = inspect(tmp_path / "m")
    assert report.families == ()
    assert report.content.keys() == parts.keys()
    assert report.damaged == ()
    assert report.problems == ()
    shard = sorted((tmp_path / "m/unet").glob("*-of-*.safetensors"))[-1]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert inspect(tmp_path / "m").damaged == ("unet",)
    alone = inspect(tmp_path / "m" / "vae")
    assert alone.seems == "AutoencoderKL"
    assert alone.families == ()


def test_a_lora_is_called_one(tmp_path: Path) -> None:
    lora = lazy_all({"lora_unet_a.lora_up.weight": torch.zeros(2, 1).half()})
    save_file(tmp_path / "x", lora, {"ss_network_dim": "1"})
    report = inspect(tmp_path / "x", TABLE, LAYOUTS)
    assert report.seems == "a LoRA (kohya naming)"
    assert report.families == ()
    assert "float16 (1 tensors)" in report.text()
    with pytest.raises(CheckpointError, match="no file or folder"):
        inspect(tmp_path / "absent")
