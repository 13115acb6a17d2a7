"""Stages that go on from a model: every weight of it, or an error that says what does not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.checkpoints.diffusers import read_folder, read_part, write_part
from sfumato.checkpoints.fingerprint import Fingerprint
from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.ldm import write_single_file
from sfumato.core.config import from_dict
from sfumato.core.errors import CheckpointError, ConfigError
from sfumato.families import single_file
from sfumato.families.single_file import VARIANTS
from sfumato.training import shapes
from sfumato.training.material import Material
from sfumato.training.recipe import Recipe
from sfumato.training.run import run
from sfumato.training.stages.autoencoder import AutoencoderTraining
from sfumato.training.stages.diffusion import DiffusionTraining
from tests.checkpoints.models import TRUE, random_parts, small
from tests.training.test_stages import CODER, DIT, PIXEL_UNET, TEXT, TRAIN, UNET


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    shapes.write(folder / "s", 12, 16)
    for i, name in enumerate(("circle", "star") * 3):
        (folder / "c" / name).mkdir(parents=True, exist_ok=True)
        shapes.draw(shapes.scene(1, i), 1, i, 16).save(folder / "c" / name / f"{i}.png")
    return folder


def recipe(where: Path, **tables: Any) -> Recipe:
    return from_dict(Recipe, {"data": {"where": str(where), "resolution": 16}, **tables})


def begun(recipe: Recipe, root: Path) -> DiffusionTraining:
    return DiffusionTraining(recipe, Material(recipe.data, 0), root)


FLOW: dict[str, Any] = {"prediction": "flow", "schedule": {"kind": "flow"}}


@pytest.fixture(scope="module")
def first(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run: straight paths, a text encoder trained with the denoiser."""
    folder = tmp_path_factory.mktemp("first")
    whole = recipe(
        pictures / "s", autoencoder={"model": CODER, "train": TRAIN},
        diffusion={"unet": UNET, "text": TEXT, "vocab_size": 530, "train": TRAIN, **FLOW},
    )
    assert run(whole, folder, lambda text: None)
    return folder


def equal(network: torch.nn.Module, folder: Path) -> bool:
    stored = read_part(folder).load().state_dict()
    return all(tensor.equal(stored[name]) for name, tensor in network.state_dict().items())


def test_a_run_is_gone_on_from_with_its_encoders_frozen(first: Path, pictures: Path, tmp_path: Path) -> None:
    tables = {"start": str(first), "train": TRAIN, **FLOW}
    made = begun(recipe(pictures / "s", diffusion=tables), tmp_path)
    assert equal(made.network.unet, first / "unet")
    assert made.network.text is None
    assert made.frozen is not None
    assert equal(made.frozen, first / "text_encoder")
    stored = read_folder(first)
    assert made.scale == stored.parts["vae"].config.scaling_factor
    assert run(recipe(pictures / "s", diffusion=tables), tmp_path / "run", lambda text: None)
    for part in ("vae", "text_encoder"):
        assert equal(read_part(first / part).load(), tmp_path / "run" / part)
    assert not equal(read_part(first / "unet").load(), tmp_path / "run/unet")
    assert (tmp_path / "run/tokenizer/merges.txt").read_bytes() == (first / "tokenizer/merges.txt").read_bytes()
    assert run(recipe(pictures / "s", diffusion=tables), tmp_path / "run", lambda text: None)
    (tmp_path / "other").symlink_to(first)
    elsewhere = recipe(pictures / "s", diffusion={**tables, "start": str(tmp_path / "other")})
    with pytest.raises(ConfigError, match=r"diffusion\.start: was .*, is .*other"):
        run(elsewhere, tmp_path / "run", lambda text: None)


def test_its_text_encoder_may_be_trained_on(first: Path, pictures: Path, tmp_path: Path) -> None:
    made = begun(recipe(pictures / "s", diffusion={"start": str(first), "text": TEXT, **FLOW}), tmp_path)
    assert made.network.text is not None
    assert equal(made.network.text, first / "text_encoder")
    assert all(p.requires_grad for p in made.network.text.parameters())
    with pytest.raises(ConfigError, match=r"num_hidden_layers: 1 there, 2 in the recipe"):
        begun(recipe(pictures / "s", diffusion={"start": str(first), "text": {**TEXT, "num_hidden_layers": 2}, **FLOW}),
              tmp_path)  # fmt: skip


def test_a_table_that_is_the_models_own_is_taken_and_another_is_refused(
    first: Path, pictures: Path, tmp_path: Path
) -> None:
    tables = {"start": str(first), "unet": {**UNET, "sample_size": 99}, **FLOW}
    assert equal(begun(recipe(pictures / "s", diffusion=tables), tmp_path).network.unet, first / "unet")
    wider = {**tables, "unet": {**UNET, "block_out_channels": [8, 16], "layers_per_block": 2}}
    with pytest.raises(ConfigError, match=r"(?s)block_out_channels: \[8, 8\] there.*layers_per_block: 1 there, 2 in"):
        begun(recipe(pictures / "s", diffusion=wider), tmp_path)
    with pytest.raises(ConfigError, match="UNet2DConditionModel"):
        begun(recipe(pictures / "s", diffusion={"start": str(first), "conditioning": "none", **FLOW}), tmp_path)


def test_what_the_network_was_taught_to_say_has_to_be_asked_for(first: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prediction was 'flow' there and is 'epsilon' here; its schedule"):
        begun(recipe(pictures / "s", diffusion={"start": str(first)}), tmp_path)
    alone = {"start": str(first / "unet"), "autoencoder": str(first / "vae"), "text_encoder": str(first)}
    assert equal(begun(recipe(pictures / "s", diffusion=alone), tmp_path).network.unet, first / "unet")


def test_weights_that_are_missing_or_misshapen_are_named(first: Path, pictures: Path, tmp_path: Path) -> None:
    part = read_part(first / "unet")
    tensors = {n: t.read().clone() for n, t in part.tensors.items() if n != "conv_in.bias"}
    tensors["conv_out.weight"] = torch.zeros(4, 8, 1, 1)
    (tmp_path / "unet").mkdir()
    write_part(tmp_path / "unet", replace(part, tensors=lazy_all(tensors)))
    tables = {"start": str(tmp_path / "unet"), "autoencoder": str(first / "vae"), "text_encoder": str(first)}
    with pytest.raises(CheckpointError, match=r"conv_in\.bias.*conv_out\.weight is \[4, 8, 1, 1\], not"):
        begun(recipe(pictures / "s", diffusion=tables), tmp_path)
    with pytest.raises(CheckpointError, match="no model and no network"):
        begun(recipe(pictures / "s", diffusion={"start": str(tmp_path)}), tmp_path)


def test_half_precision_is_gone_on_from_in_float32(first: Path, pictures: Path, tmp_path: Path) -> None:
    part = read_part(first / "unet")
    (tmp_path / "unet").mkdir()
    write_part(tmp_path / "unet", part, dtype=torch.float16)
    tables = {"start": str(tmp_path / "unet"), "autoencoder": str(first / "vae"), "text_encoder": str(first)}
    made = begun(recipe(pictures / "s", diffusion=tables), tmp_path)
    for name, tensor in made.network.unet.state_dict().items():
        assert tensor.equal(part.tensors[name].read().half().float())


def test_a_single_file_is_gone_on_from(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, shows = small(TRUE["sd1"]), {"model.diffusion_model.input_blocks.0.0.weight": (None, 4, 3, 3)}
    monkeypatch.setitem(VARIANTS, "sd1", VARIANTS["sd1"]._replace(layout=layout, shows=shows))
    monkeypatch.setattr(single_file, "FINGERPRINTS", [Fingerprint("sd1", "sd1", shows)])
    parts = random_parts(layout)
    write_single_file(tmp_path / "a.safetensors", parts, layout)
    tables: dict[str, Any] = {"start": str(tmp_path / "a.safetensors"), "cache": False}
    made = begun(recipe(pictures / "s", diffusion=tables), tmp_path)
    for name, tensor in made.network.unet.state_dict().items():
        assert tensor.equal(parts["unet"].tensors[name].read())
    assert made.scale == 0.18215
    assert made.frozen is not None
    assert made.tokenizer.length == 77
    with pytest.raises(ConfigError, match="prediction was 'epsilon' there and is 'v_prediction' here"):
        begun(recipe(pictures / "s", diffusion={**tables, "prediction": "v_prediction"}), tmp_path)


def test_autoencoders_are_gone_on_from(first: Path, pictures: Path, tmp_path: Path) -> None:
    for source in (first, first / "vae"):
        whole = recipe(pictures / "s", autoencoder={"start": str(source), "train": TRAIN})
        assert equal(AutoencoderTraining(whole, Material(whole.data, 0), tmp_path).network.net, first / "vae")
    other = recipe(pictures / "s", autoencoder={"start": str(first), "model": {**CODER, "latent_channels": 3}})
    with pytest.raises(ConfigError, match="latent_channels: 4 there, 3 in the recipe"):
        AutoencoderTraining(other, Material(other.data, 0), tmp_path)
    with pytest.raises(ConfigError, match="first_log_variance"):
        recipe(pictures / "s", autoencoder={"start": str(first), "first_log_variance": -6.0})


def test_pixels_and_transformers_are_gone_on_from(first: Path, pictures: Path, tmp_path: Path) -> None:
    pixels: dict[str, Any] = {"conditioning": "none", "space": "pixel", "train": TRAIN}
    whole = recipe(pictures / "s", diffusion={**pixels, "unconditional": PIXEL_UNET})
    assert run(whole, tmp_path / "p", lambda text: None)
    made = begun(recipe(pictures / "s", diffusion={**pixels, "start": str(tmp_path / "p")}), tmp_path)
    assert equal(made.network.unet, tmp_path / "p/unet")
    classes: dict[str, Any] = {
        "conditioning": "class", "autoencoder": str(first / "vae"), "loss": {"learned_variance": True}, "train": TRAIN,
    }
    dit = {"dit": {**DIT, "num_embeds_ada_norm": 2}}
    assert run(recipe(pictures / "c", diffusion={**classes, **dit}), tmp_path / "d", lambda text: None)
    del classes["autoencoder"]
    made = begun(recipe(pictures / "c", diffusion={**classes, "start": str(tmp_path / "d")}), tmp_path)
    assert equal(made.network.unet, tmp_path / "d/transformer")
    part = read_part(tmp_path / "d/transformer")
    tensors = {n: t.read().clone() for n, t in part.tensors.items()}
    tensors["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"] += 1
    (tmp_path / "t").mkdir()
    write_part(tmp_path / "t", replace(part, tensors=lazy_all(tensors)))
    classes |= {"start": str(tmp_path / "t"), "autoencoder": str(first / "vae")}
    with pytest.raises(CheckpointError, match="not the first block's"):
        begun(recipe(pictures / "c", diffusion=classes), tmp_path)
