"""Single files: recognised, converted each way, and refused where they do not say what they are."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from sfumato.checkpoints.diffusers import read_folder
from sfumato.checkpoints.dit import DiTLayout
from sfumato.checkpoints.fingerprint import Fingerprint
from sfumato.checkpoints.lazy import Tensors, lazy_all
from sfumato.checkpoints.ldm import Layout, Tower, class_of, put_together, write_single_file
from sfumato.checkpoints.parts import Part
from sfumato.checkpoints.store import open_file
from sfumato.cli import main
from sfumato.core.errors import CheckpointError
from sfumato.families import single_file
from sfumato.families.convert import convert
from sfumato.families.load import find, judge
from sfumato.families.single_file import VARIANTS, recognise
from sfumato.models.dit import DITS, DiT
from tests.checkpoints.models import TRUE, random_parts, small
from tests.parity import tiny


def of_true_size(layout: Layout | DiTLayout) -> Tensors:
    """Names and shapes of the single file of a published model, without its numbers."""
    if isinstance(layout, DiTLayout):
        return dit_of_true_size()
    towers = {name: tower.config for name, tower in layout.text.items()}
    configs: dict[str, Any] = {"unet": layout.unet, "vae": layout.vae, **towers}
    parts = {}
    for name, config in configs.items():
        empty = Part(class_of(config), config, {}, name)
        with torch.device("meta"):
            parts[name] = Part(empty.kind, config, lazy_all(empty.build().state_dict()), name)
    return put_together(parts, layout)


def dit_of_true_size() -> Tensors:
    """Those of DiT-XL-2-256x256.pt."""
    config = replace(DITS["dit-xl2"], freq_shift=0, norm_eps=1e-6)
    with torch.device("meta"):
        weights = lazy_all(DiT(config).state_dict())
    return DiTLayout().put_together({"transformer": Part("DiTTransformer2DModel", config, weights, "dit")})


@pytest.mark.parametrize("name", VARIANTS)
def test_every_published_file_is_recognised(name: str) -> None:
    variant = VARIANTS[name]
    header = of_true_size(variant.layout)
    ambiguous = variant.family == "sd2"
    if ambiguous:
        with pytest.raises(CheckpointError, match="--prediction"):
            recognise(header, "file")
    found, prediction = recognise(header, "file", prediction=variant.prediction if ambiguous else None)
    assert found == variant
    assert prediction == variant.prediction


def test_a_fine_tune_that_predicts_something_else_says_so_itself() -> None:
    header = {**of_true_size(VARIANTS["sdxl"].layout), **lazy_all({"v_pred": torch.empty(0), "ztsnr": torch.empty(0)})}
    variant, prediction = recognise(header, "file")
    assert (variant.family, prediction) == ("sdxl", "v_prediction")
    from sfumato.families.stable_diffusion import SDXL

    config = single_file.scheduler_of(SDXL, prediction, header)
    assert config["rescale_betas_zero_snr"]
    assert config["prediction_type"] == "v_prediction"


def test_a_lora_is_named_for_what_it_is(tmp_path: Path) -> None:
    header = lazy_all({"lora_unet_down_blocks_0.lora_down.weight": torch.zeros(4, 8)})
    with pytest.raises(CheckpointError, match="LoRA"):
        recognise(header, "style.safetensors")


def test_another_family_is_not_believed() -> None:
    with pytest.raises(CheckpointError, match="sd1"):
        recognise(of_true_size(VARIANTS["sd1"].layout), "file", family="sdxl")


@pytest.fixture
def tiny_variants(monkeypatch: pytest.MonkeyPatch) -> dict[str, Layout]:
    """The published variants, a few channels wide."""
    layouts = {name: small(TRUE[name]) for name in ("sd1", "sd2", "sdxl", "sdxl-refiner")}
    for name, layout in layouts.items():
        monkeypatch.setitem(VARIANTS, name, VARIANTS[name]._replace(layout=layout, shows={
            key: shape and (None, *shape[1:]) if key.endswith("0.0.weight") else shape and (None, None)
            for key, shape in VARIANTS[name].shows.items()
        }))  # fmt: skip
    rows = [Fingerprint(VARIANTS[name].family, name, VARIANTS[name].shows) for name in layouts]
    monkeypatch.setattr(single_file, "FINGERPRINTS", rows)
    return layouts


@pytest.mark.parametrize(("name", "prediction"), [("sd1", None), ("sd2", "v_prediction"), ("sdxl", None)])
def test_file_to_folder_and_back_is_the_same_file(
    tiny_variants: dict[str, Layout], tmp_path: Path, name: str, prediction: str | None
) -> None:
    layout, family = tiny_variants[name], VARIANTS[name].family
    first, folder, last = tmp_path / "a.safetensors", tmp_path / "folder", tmp_path / "b.safetensors"
    write_single_file(first, random_parts(layout), layout)
    done = convert(first, folder, family=family, prediction=prediction)
    assert done.family == family
    assert done.exact
    convert(folder, last, family=family)
    one, other = open_file(first).tensors, open_file(last).tensors
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key].read(), other[key].read(), rtol=0, atol=0)
    assert find(folder, family=family).scheduler["prediction_type"] == (prediction or "epsilon")


def test_precision_is_converted_and_verified(tiny_variants: dict[str, Layout], tmp_path: Path) -> None:
    layout = tiny_variants["sd1"]
    write_single_file(tmp_path / "a.safetensors", random_parts(layout), layout)
    assert not convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype=torch.float16, family="sd1").exact
    halves = {tensor.dtype for tensor in open_file(tmp_path / "b.safetensors").tensors.values()}
    assert halves == {torch.float16}
    with pytest.raises(CheckpointError, match="exists already"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", family="sd1")
    with pytest.raises(CheckpointError, match=r"b\.safetensors"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.ckpt", family="sd1")


def test_a_pickled_file_becomes_a_folder_with_the_same_tensors(
    tiny_variants: dict[str, Layout], tmp_path: Path
) -> None:
    layout = tiny_variants["sd1"]
    weights = {name: tensor.read() for name, tensor in put_together(random_parts(layout), layout).items()}
    torch.save({"state_dict": weights, "global_step": 3}, tmp_path / "a.ckpt")
    done = convert(tmp_path / "a.ckpt", tmp_path / "folder", family="sd1")
    assert (done.exact, done.tensors) == (True, len(weights))
    convert(tmp_path / "folder", tmp_path / "b.safetensors", family="sd1")
    back = open_file(tmp_path / "b.safetensors").tensors
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name].read(), weight) for name, weight in weights.items())


def test_a_folder_of_halves_in_shards_is_what_the_peer_opens(tmp_path: Path) -> None:
    import diffusers

    tiny.pipeline("sd1", tmp_path).save_pretrained(tmp_path / "model")
    line = ["convert", str(tmp_path / "model"), str(tmp_path / "halves"), "--dtype", "float16", "--as-variant", "fp16"]
    assert main([*line, "--shard-size", "1MB"]) == 0
    names = {path.name for path in (tmp_path / "halves" / "unet").iterdir()}
    assert "diffusion_pytorch_model.safetensors.index.fp16.json" in names
    assert "diffusion_pytorch_model.fp16-00001-of-00003.safetensors" in names
    made: Any = diffusers.UNet2DConditionModel
    peer = made.from_pretrained(tmp_path / "halves", subfolder="unet", variant="fp16").state_dict()
    ours = find(tmp_path / "halves", variant="fp16").parts["unet"].tensors
    assert peer.keys() == ours.keys()
    assert all(torch.equal(peer[name].half(), tensor.read()) for name, tensor in ours.items())
    with pytest.raises(CheckpointError, match="say which variant: fp16"):
        find(tmp_path / "halves")
    with pytest.raises(CheckpointError, match="single file"):
        convert(tmp_path / "model", tmp_path / "x.safetensors", as_variant="fp16")


def test_a_folder_is_judged_without_its_weights(tmp_path: Path) -> None:
    peer = tiny.pipeline("sd1", tmp_path)
    peer.save_pretrained(tmp_path / "model")
    assert judge(read_folder(tmp_path / "model")) == ("sd1", ())
    tiny.autoencoder(0.13025).save_pretrained(tmp_path / "model" / "vae")
    family, (problem,) = judge(read_folder(tmp_path / "model"))
    assert family == "sd1"
    assert "Stable Diffusion XL" in problem


def test_a_single_file_draws_what_its_folder_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CLIP's own vocabulary, since a single file brings no tokenizer."""
    from diffusers import DPMSolverMultistepScheduler

    from sfumato.families.stable_diffusion import BETAS
    from sfumato.text import tokenizer

    peer = tiny.pipeline("sd1", tmp_path)
    peer.text_encoder = tiny.text_encoder(49408, 768)
    tiny.randomise(peer.text_encoder, seed=2)
    peer.scheduler = DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True)  # type: ignore[no-untyped-call]
    peer.save_pretrained(tmp_path / "folder")
    tokenizer.builtin().save(tmp_path / "folder" / "tokenizer")
    found = find(tmp_path / "folder")
    config = found.parts["text_encoder"].config
    text = {"text_encoder": Tower("cond_stage_model.transformer.", "transformers", config)}
    layout = Layout(found.parts["unet"].config, found.parts["vae"].config, text)
    monkeypatch.setitem(VARIANTS, "sd1", VARIANTS["sd1"]._replace(layout=layout, shows={}))
    monkeypatch.setattr(single_file, "FINGERPRINTS", [Fingerprint("sd1", "sd1", {})])
    convert(tmp_path / "folder", tmp_path / "file.safetensors")
    request: dict[str, Any] = {"steps": 3, "width": 64, "height": 64, "seed": 1}
    one, other = (sfumato.load(str(tmp_path / n))("a red apple", **request) for n in ("folder", "file.safetensors"))
    short = hashlib.sha256((tmp_path / "file.safetensors").read_bytes()).hexdigest()[:10]  # as A1111 knows it
    assert f"Model: file, Model hash: {short}" in other.pictures[0].parameters
    assert one.pictures[0].recipe["model"]["sha256"] == other.pictures[0].recipe["model"]["sha256"]
    torch.testing.assert_close(one.latents, other.latents, rtol=1e-4, atol=1e-4 * float(one.latents.abs().max()))
