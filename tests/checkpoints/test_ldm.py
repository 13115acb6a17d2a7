"""Single-file models: the names agree with diffusers' converters at true size, and come back unchanged."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils
from torch import Tensor

from sfumato.checkpoints import openclip
from sfumato.checkpoints.diffusers import write_part
from sfumato.checkpoints.keymap import KeyMap, prefixed
from sfumato.checkpoints.lazy import Lazy, lazy_all
from sfumato.checkpoints.ldm import (
    IGNORABLE,
    Layout,
    ema_name,
    names_of,
    part_maps,
    put_together,
    read_single_file,
    unet_rows,
    vae_rows,
    write_single_file,
)
from sfumato.checkpoints.parts import write_config
from sfumato.checkpoints.store import open_file
from sfumato.checkpoints.write import save_file
from sfumato.core.errors import CheckpointError
from tests.checkpoints.models import TRUE, random_parts, small

peer: Any = single_file_utils
SMALL = {name: small(layout) for name, layout in TRUE.items()}


def equal(a: Mapping[str, Lazy], b: Mapping[str, Lazy]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n].read(), b[n].read()) for n in a)


def pairs(found: KeyMap) -> dict[str, str]:
    """Our name -> theirs."""
    return {cast(str, row.ours): cast(str, row.theirs) for row in found.rows}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sdxl-refiner", "x4-upscaler"])
def test_unet_names_are_those_that_the_peer_converts(family: str) -> None:
    """Every name stands for itself: the peer's converter says which of its names each becomes."""
    config = TRUE[family].unet
    found = KeyMap(prefixed(unet_rows(config), "model.diffusion_model.", "")).only(names_of(config))
    ours = pairs(found)
    assert ours.keys() == names_of(config)
    settings = write_config("UNet2DConditionModel", config, None)
    theirs = peer.convert_ldm_unet_checkpoint({name: name for name in ours.values()}, settings)
    assert theirs == ours


@pytest.mark.parametrize("family", ["sd1", "x4-upscaler"])
def test_vae_names_are_those_that_the_peer_converts(family: str) -> None:
    config = TRUE[family].vae
    found = KeyMap(prefixed(vae_rows(config), "first_stage_model.", "")).only(names_of(config))
    ours = pairs(found)
    assert ours.keys() == names_of(config)
    numbers = {name: i for i, name in enumerate(ours.values())}
    marked = {name: torch.full((1, 1, 1, 1), float(i)) for name, i in numbers.items()}
    marked = {name: t.reshape(1) if name.endswith(".bias") else t for name, t in marked.items()}
    theirs = peer.convert_ldm_vae_checkpoint(marked, write_config("AutoencoderKL", config, None))
    found_numbers = {name: int(tensor.reshape(-1)[0]) for name, tensor in theirs.items()}
    assert found_numbers == {name: numbers[other] for name, other in ours.items()}


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_openclip_is_converted_as_the_peer_converts_it(family: str) -> None:
    layout = SMALL[family]
    name = "text_encoder_2" if family == "sdxl" else "text_encoder"
    tower, part = layout.text[name], random_parts(layout)[name]
    rows = KeyMap(prefixed(openclip.text_rows(tower.config), tower.prefix, ""))
    file = {key: tensor.read() for key, tensor in rows.to_theirs(part.tensors, "x").items()}

    class Model:
        config = tower.config

    converted = peer.convert_open_clip_checkpoint(Model, file, prefix=tower.prefix)
    assert converted.keys() == part.tensors.keys()
    assert all(torch.equal(converted[key], part.tensors[key].read()) for key in converted)


def test_numbers_of_names_of_the_published_files() -> None:
    """Of v1-5-pruned-emaonly 686 + 248 + 196 (and position_ids), and places whose numbers are easily mistaken."""
    maps = part_maps(TRUE["sd1"])
    assert {name: len(found.rows) for name, found in maps.items()} == {"unet": 686, "vae": 248, "text_encoder": 196}
    unet = pairs(maps["unet"])
    assert unet["up_blocks.0.upsamplers.0.conv.weight"] == "model.diffusion_model.output_blocks.2.1.conv.weight"
    assert unet["up_blocks.1.upsamplers.0.conv.weight"] == "model.diffusion_model.output_blocks.5.2.conv.weight"
    assert unet["up_blocks.3.resnets.2.conv_shortcut.weight"] == peer.CHECKPOINT_KEY_NAMES["v1"]
    xl = part_maps(TRUE["sdxl"])
    assert len(xl["unet"].rows) == 1680
    assert pairs(xl["unet"])["add_embedding.linear_2.bias"] == "model.diffusion_model.label_emb.0.2.bias"
    theirs = [row.theirs for row in xl["text_encoder_2"].rows]
    assert peer.CHECKPOINT_KEY_NAMES["xl_base"] in theirs
    assert peer.CHECKPOINT_KEY_NAMES["open_clip_sdxl"] in theirs
    up = [row.theirs for row in part_maps(TRUE["x4-upscaler"])["unet"].rows]
    assert peer.CHECKPOINT_KEY_NAMES["upscale"] in up


@pytest.mark.parametrize("family", ["sd1", "sd1-inpaint", "sd2", "sdxl", "sdxl-refiner", "x4-upscaler"])
def test_there_and_back_with_identical_tensors(tmp_path: Path, family: str) -> None:
    layout = SMALL[family]
    parts = random_parts(layout)
    write_single_file(tmp_path / "a", parts, layout, metadata={"made": "here"})
    single = read_single_file(tmp_path / "a", layout)
    assert single.left_behind == ()
    assert single.metadata["made"] == "here"
    assert not single.has_ema
    assert single.parts.keys() == parts.keys()
    assert all(equal(single.parts[name].tensors, parts[name].tensors) for name in parts)
    write_single_file(tmp_path / "b", single.parts, layout, metadata={"made": "here"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    net = single.parts["unet"].load()
    assert torch.equal(net.conv_in.weight, parts["unet"].tensors["conv_in.weight"].read())


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_peer_loads_what_is_written(tmp_path: Path, family: str) -> None:
    layout = SMALL[family]
    parts = random_parts(layout)
    path = tmp_path / "x.safetensors"
    write_single_file(path, parts, layout)
    for name, kind in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        loading: Any = kind
        (tmp_path / name).mkdir()
        write_part(tmp_path / name, parts[name])
        theirs = loading.from_single_file(str(path), config=str(tmp_path), subfolder=name, local_files_only=True)
        found = theirs.state_dict()
        assert found.keys() == parts[name].tensors.keys()
        assert all(torch.equal(found[key], tensor.read()) for key, tensor in parts[name].tensors.items())


def single_file(layout: Layout) -> dict[str, Tensor]:
    return {name: tensor.read() for name, tensor in put_together(random_parts(layout), layout).items()}


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(path, lazy_all(tensors))
    return path


BESIDE = (
    "betas", "alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_mean_coef2", "logvar", "lvlb_weights",
    "low_scale_model.betas", "denoiser.sigmas", "first_stage_model.loss.discriminator.main.0.weight", "scale_factor",
    "model_ema.decay", "model_ema.num_updates", "depth_model.model.pretrained.cls_token",
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
)  # fmt: skip


def test_what_stands_beside_the_networks_is_left_and_listed(tmp_path: Path) -> None:
    tensors = single_file(SMALL["sd1"])
    single = read_single_file(saved(tmp_path / "x", tensors | {n: torch.zeros(1) for n in BESIDE}), SMALL["sd1"])
    assert sorted(single.left_behind) == sorted(BESIDE)
    with pytest.raises(CheckpointError, match=r"unknown 1 \(betas_2\)"):
        read_single_file(saved(tmp_path / "y", {**tensors, "betas_2": torch.zeros(1)}), SMALL["sd1"])
    assert not any("betas_2" in pattern for pattern in IGNORABLE)


def test_an_openclip_file_keeps_its_last_layer_to_itself(tmp_path: Path) -> None:
    layout = SMALL["sd2"]
    prefix = layout.text["text_encoder"].prefix
    extra = [f"{prefix}transformer.resblocks.2.ln_1.weight", f"{prefix}text_projection", f"{prefix}logit_scale"]
    tensors = single_file(layout)
    single = read_single_file(saved(tmp_path / "x", tensors | {n: torch.zeros(1) for n in extra}), layout)
    assert sorted(single.left_behind) == sorted(extra)
    further = f"{prefix}transformer.resblocks.3.ln_1.weight"
    with pytest.raises(CheckpointError, match=r"unknown 1"):
        read_single_file(saved(tmp_path / "y", {**tensors, further: torch.zeros(1)}), layout)


def test_averaged_weights_are_a_choice(tmp_path: Path) -> None:
    tensors = single_file(SMALL["sd1"])
    plain = {n: t for n, t in tensors.items() if n.startswith("model.diffusion_model.")}
    averaged = {ema_name(n): t + 1 for n, t in plain.items()}
    assert "model_ema.diffusion_modelinput_blocks00weight" in averaged
    path = saved(tmp_path / "x", tensors | averaged)
    without, with_ema = read_single_file(path, SMALL["sd1"]), read_single_file(path, SMALL["sd1"], ema=True)
    assert without.has_ema
    assert set(without.left_behind) == set(averaged)
    assert set(with_ema.left_behind) == set(plain)
    for name, tensor in without.parts["unet"].tensors.items():
        assert torch.equal(with_ema.parts["unet"].tensors[name].read(), tensor.read() + 1)
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        read_single_file(saved(tmp_path / "y", tensors), SMALL["sd1"], ema=True)


def test_markers_are_told(tmp_path: Path) -> None:
    tensors = single_file(SMALL["sdxl"]) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    single = read_single_file(saved(tmp_path / "x", tensors), SMALL["sdxl"])
    assert single.markers == ("v_pred", "ztsnr")
    assert single.left_behind == ()


def test_older_text_names_and_matrices_for_convolutions(tmp_path: Path) -> None:
    """Merging tools drop ``text_model.`` and squeeze the autoencoder's attention."""
    tensors = single_file(SMALL["sd1"])
    bare = {n.replace(".transformer.text_model.", ".transformer."): t for n, t in tensors.items()}
    bare = {n: t[:, :, 0, 0] if ".attn_1." in n and t.dim() == 4 else t for n, t in bare.items()}
    assert bare.keys() != tensors.keys()
    single = read_single_file(saved(tmp_path / "x", bare), SMALL["sd1"])
    reference = random_parts(SMALL["sd1"])
    assert all(equal(single.parts[name].tensors, reference[name].tensors) for name in reference)


def test_a_file_without_an_autoencoder(tmp_path: Path) -> None:
    tensors = {n: t for n, t in single_file(SMALL["sd1"]).items() if not n.startswith("first_stage_model.")}
    path = saved(tmp_path / "x", tensors)
    with pytest.raises(CheckpointError, match=r"holds no vae\. It seems to be a whole latent-diffusion model"):
        read_single_file(path, SMALL["sd1"])
    single = read_single_file(path, SMALL["sd1"], without=("vae",))
    assert single.parts.keys() == {"unet", "text_encoder"}
    with pytest.raises(CheckpointError, match="needs vae too"):
        write_single_file(tmp_path / "y", single.parts, SMALL["sd1"])
    assert not (tmp_path / "y").exists()


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    lora = {"lora_unet_a.lora_down.weight": torch.zeros(1), "lora_unet_a.lora_up.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"holds no unet and no vae and no text_encoder\. It seems to be a LoRA"):
        read_single_file(saved(tmp_path / "x", lora), SMALL["sd1"])
    tensors = single_file(SMALL["sd1"])
    name = next(iter(tensors))
    del tensors[name]
    with pytest.raises(CheckpointError, match="missing 1"):
        read_single_file(saved(tmp_path / "y", tensors), SMALL["sd1"])
    wide = replace(SMALL["sd1"], unet=replace(SMALL["sd1"].unet, in_channels=9))
    single = read_single_file(saved(tmp_path / "z", single_file(wide)), SMALL["sd1"])
    with pytest.raises(CheckpointError, match=r"conv_in.weight is \[8, 9, 3, 3\], not \[8, 4, 3, 3\]"):
        single.parts["unet"].load()


def test_pickled_single_files(tmp_path: Path) -> None:
    content: dict[str, Any] = {"state_dict": single_file(SMALL["sd1"]), "global_step": 470000, "epoch": 3}
    torch.save(content, tmp_path / "x.ckpt")
    single = read_single_file(tmp_path / "x.ckpt", SMALL["sd1"])
    reference = random_parts(SMALL["sd1"])
    assert all(equal(single.parts[name].tensors, reference[name].tensors) for name in reference)
    assert open_file(tmp_path / "x.ckpt").metadata["global_step"] == "470000"
