"""Which files hold a control network, and for which model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.checkpoints.controlnet import CLASS, PART, ControlLayout
from sfumato.checkpoints.fingerprint import candidates
from sfumato.checkpoints.lazy import Tensors, lazy_all
from sfumato.checkpoints.parts import Part
from sfumato.checkpoints.write import save_file
from sfumato.cli import main
from sfumato.core.errors import CheckpointError
from sfumato.families import control, single_file
from sfumato.families.convert import convert
from sfumato.families.load import find, open_model
from sfumato.families.types import CONTROL
from sfumato.models.controlnet import ControlNet
from tests.parity import tiny


def of_true_size(layout: ControlLayout) -> Tensors:
    with torch.device("meta"):
        weights = lazy_all(ControlNet(layout.config).state_dict())
    return layout.put_together({PART: Part(CLASS, layout.config, weights, "control")})


@pytest.mark.parametrize("name", control.LAYOUTS)
def test_every_published_file_is_recognised(name: tuple[str, str]) -> None:
    header = of_true_size(control.LAYOUTS[name])
    assert [(row.family, row.variant) for row in candidates(header, control.FINGERPRINTS)] == [name]
    assert not candidates(header, single_file.FINGERPRINTS)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models, and control networks for them."""
    found: dict[str, Path] = {}
    for family in ("sd1", "sdxl"):
        place = tmp_path_factory.mktemp(family)
        peer = tiny.pipeline(family, place)
        peer.save_pretrained(place / "model")
        tiny.controlnet(peer.unet).save_pretrained(place / "control")
        found |= {family: place / "model", f"{family}-control": place / "control"}
    return found


@pytest.mark.parametrize(
    ("model", "guide", "said"),
    [
        ("sdxl", "sd1-control", r"control network for Stable Diffusion 1, and this is Stable Diffusion XL: cross_att"),
        ("sd1", "sdxl-control", r"control network for Stable Diffusion XL, and this is Stable Diffusion 1"),
        ("sd1", "sd1", "model without a control network"), ("sd1", "unet", "its class is UNet2DConditionModel"),
        ("sd1", "lora", r"holds no control network .* it seems to be a LoRA"),
    ],
)
def test_what_does_not_control_it_is_refused(
    places: dict[str, Path], tmp_path: Path, model: str, guide: str, said: str
) -> None:
    save_file(tmp_path / "lora", lazy_all({"lora_unet_x.lora_down.weight": torch.zeros(4, 4)}))
    others = {"unet": places["sd1"] / "unet", "lora": tmp_path / "lora"}
    with pytest.raises(CheckpointError, match=said):
        open_model(places[model], device="cpu", control={**places, **others}[guide])


def test_levels_and_latents_have_to_agree(places: dict[str, Path], tmp_path: Path) -> None:
    peer = tiny.pipeline("sd1", tmp_path)
    for changes, said in (
        ({"layers_per_block": 2}, r"another model than this Stable Diffusion 1: layers_per_block is \(2, 2\), not"),
        ({"in_channels": 8}, "in_channels is 8, not 4"),
    ):
        tiny.controlnet(tiny.unet(**{**peer.unet.config, **changes})).save_pretrained(tmp_path / said[:5])
        config = json.loads((tmp_path / said[:5] / "config.json").read_text())
        assert config["_class_name"] == CLASS
        with pytest.raises(CheckpointError, match=said):
            open_model(places["sd1"], device="cpu", control=tmp_path / said[:5])


def test_what_a_report_says(places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(places["sd1-control"])]) == 0
    assert "ControlNetModel" in capsys.readouterr().out
    layout = control.LAYOUTS["sd2", "control"]
    header = of_true_size(layout)
    few = {name: torch.zeros(header[name].shape, dtype=torch.bfloat16) for name in control.FINGERPRINTS[1].shows}
    save_file(tmp_path / "control.safetensors", lazy_all(few))
    assert main(["inspect", str(tmp_path / "control.safetensors")]) == 1
    said = capsys.readouterr().out
    assert "a ControlNet (single file)" in said
    assert "sd2 control" in said
    assert "missing" in said


def test_a_pipeline_that_has_one_brings_it_along(tmp_path: Path) -> None:
    import diffusers as untyped

    diffusers: Any = untyped
    peer = tiny.pipeline("sd1", tmp_path)
    theirs = diffusers.StableDiffusionControlNetPipeline(**peer.components, controlnet=tiny.controlnet(peer.unet))
    theirs.save_pretrained(tmp_path / "both")
    peer.save_pretrained(tmp_path / "plain")
    model, plain = (open_model(tmp_path / name, device="cpu") for name in ("both", "plain"))
    assert model.family.name == "sd1"
    assert CONTROL in model.parts
    assert model.control is not None
    assert model.control[0] == str(tmp_path / "both")
    assert model.digest() == plain.digest()
    named = open_model(tmp_path / "plain", device="cpu", control=tmp_path / "both")
    assert named.control is not None
    assert named.control[1]() == model.control[1]()
    convert(tmp_path / "both", tmp_path / "again")
    assert find(tmp_path / "again").parts.keys() == find(tmp_path / "both").parts.keys()
    diffusers.StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "again")
