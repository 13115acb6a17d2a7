"""LoRA files against diffusers and peft: the same file, merged there and here, layer by layer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.adapters.types import Wanted
from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.parts import our_names
from sfumato.families.adapt import adapt
from sfumato.families.load import open_model
from sfumato.families.types import Model
from sfumato.nn.conditioning import Conditioning
from tests.parity import lora_files, tiny
from tests.parity.peers import relative_error

peft: Any = pytest.importorskip("peft")
FAMILIES = ("sd1", "sd2", "sdxl")
STRENGTH = 0.7
FORMATS = {
    "kohya": lora_files.kohya, "peft": lora_files.peft, "diffusers": lora_files.diffusers,
    "peft with settings": lora_files.peft, "processors": lora_files.processors,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("lora")
    for family in FAMILIES:
        tiny.pipeline(family, place / family).save_pretrained(place / family / "model")
    return {family: place / family / "model" for family in FAMILIES}


def theirs_of(folder: Path) -> Any:
    import diffusers as untyped

    diffusers: Any = untyped
    made = diffusers.DiffusionPipeline.from_pretrained(folder)
    made.set_progress_bar_config(disable=True)
    return made


def states(pipeline: Any) -> dict[str, dict[str, Tensor]]:
    """Of all parts that a LoRA may change, by the names used here."""
    found = {}
    for name in ("unet", "text_encoder", "text_encoder_2"):
        module = getattr(pipeline, name, None)
        if module is not None:
            kind = "UNet2DConditionModel" if name == "unet" else "CLIPTextModel"
            named = our_names(kind, lazy_all(module.state_dict()))
            found[name] = {key: tensor.read().clone() for key, tensor in named.items()}
    return found


States = Mapping[str, Mapping[str, Tensor]]


def compare(model: Model, expected: States, before: States) -> int:
    """How many tensors differ from what they were; all of them are what the peer has."""
    changed = 0
    for part, tensors in expected.items():
        ours = model.parts[part].state_dict()
        for key, tensor in tensors.items():
            assert relative_error(ours[key], tensor) <= 1e-6, (part, key)
            changed += not torch.equal(tensor, before[part][key])
    return changed


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_merged_as_diffusers_merges_it(
    folders: dict[str, Path], family: str, name: str, tmp_path: Path
) -> None:
    theirs = theirs_of(folders[family])
    before = states(theirs)
    attention = name == "processors"
    endings = lora_files.ATTENTION + (() if attention else lora_files.OTHERS)
    parts = {"unet": lora_files.factors(before["unet"], endings)}
    if not attention:
        texts = [part for part in before if part != "unet"]
        parts |= {part: lora_files.factors(before[part], lora_files.TEXT, seed=i) for i, part in enumerate(texts)}
    settings = None
    if name == "peft with settings":
        kinds = {"r": lora_files.RANK, "lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 2.5}, "rank_pattern": {}}
        settings = {
            f"{part}.{key}": value for part, layers in parts.items()
            for key, value in {**kinds, "target_modules": [k.removeprefix("text_model.") for k in layers]}.items()
        }
    file = lora_files.save(tmp_path / "made.safetensors", FORMATS[name](parts), settings)
    theirs.load_lora_weights(tmp_path, weight_name=file.name)
    theirs.fuse_lora(lora_scale=STRENGTH)
    theirs.unload_lora_weights()
    model = open_model(folders[family])
    adapt(model, [Wanted(str(file), STRENGTH, STRENGTH)])
    assert compare(model, states(theirs), before) == sum(map(len, parts.values()))


def test_names_of_the_single_file_are_those_of_the_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    """kohya's files for XL; that they are read as the folder's names says ``test_ldm``, whose map this is."""
    model, again = (open_model(folders["sdxl"]) for _ in range(2))
    parts = {"unet": lora_files.factors(model.network.state_dict(), lora_files.ATTENTION + lora_files.OTHERS)}
    config: Any = model.network.config
    plain = lora_files.save(tmp_path / "plain.safetensors", lora_files.kohya(parts))
    single = lora_files.save(tmp_path / "single.safetensors", lora_files.kohya(parts, config))
    adapt(model, [Wanted(str(plain))])
    adapt(again, [Wanted(str(single))])
    assert any(key.startswith("lora_unet_input_blocks_") for key in lora_files.kohya(parts, config))
    for key, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[key])


@pytest.mark.parametrize("scaled", [False, True], ids=["alpha over rank", "alpha over its root"])
def test_a_folder_of_peft_answers_as_peft_does(folders: dict[str, Path], scaled: bool, tmp_path: Path) -> None:
    theirs = theirs_of(folders["sd1"]).unet.eval()
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_v", "conv1", "proj_in"], init_lora_weights=False,
        use_rslora=scaled, rank_pattern={"conv1": 2}, alpha_pattern={"conv1": 5},
    )
    torch.manual_seed(0)
    theirs = peft.get_peft_model(theirs, config)
    theirs.save_pretrained(tmp_path / "adapter")
    model = open_model(folders["sd1"])
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 768)
    with torch.no_grad():
        plain = model.network(x, 40, Conditioning(context=context))
        adapt(model, [Wanted(str(tmp_path / "adapter"))])
        expected = theirs(x, 40, context).sample
        found = model.network(x, 40, Conditioning(context=context))
    assert relative_error(found, expected) <= 1e-5
    assert relative_error(plain, expected) > 1e-2
