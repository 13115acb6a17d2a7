"""Training by low-rank adaptation: what learns, what stays, what the file does to the model that it was trained on."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import sfumato
from sfumato.adapters.file import open_adapter, recognise
from sfumato.adapters.types import Wanted
from sfumato.checkpoints.store import open_safetensors
from sfumato.cli import main
from sfumato.core.config import from_dict
from sfumato.core.errors import CheckpointError, ConfigError
from sfumato.families.adapt import adapt
from sfumato.families.load import open_model
from sfumato.nn.conditioning import Conditioning
from sfumato.training import journal, shapes
from sfumato.training.lora import LoraConfig, attach
from sfumato.training.material import Material
from sfumato.training.order import Place
from sfumato.training.recipe import Recipe
from sfumato.training.run import run
from sfumato.training.stages.diffusion import DiffusionTraining
from sfumato.training.state import Checkpoints
from tests.parity import tiny
from tests.training.test_stages import CLIP, CODER, DIT, PIXEL_UNET, TRAIN, UNET

LORA: dict[str, Any] = {"rank": 2, "alpha": 3.0}
ALL = ["attention", "linear", "convolution"]


def recipe(where: Path, train: Mapping[str, Any] | None = None, **diffusion: Any) -> Recipe:
    data = {"where": str(where), "resolution": 16, "held_out": 0.2}
    return from_dict(Recipe, {"data": data, "diffusion": {"train": {**TRAIN, **(train or {})}, **diffusion}})


def begun(recipe: Recipe, root: Path) -> DiffusionTraining:
    return DiffusionTraining(recipe, Material(recipe.data, 0), root)


def quiet(text: str) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    shapes.write(folder / "s", 20, 16)
    return folder / "s"


@pytest.fixture(scope="module")
def base(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all stages, which is a model."""
    folder = tmp_path_factory.mktemp("base")
    data = {"where": str(pictures), "resolution": 16}
    stages = {"autoencoder": {"model": CODER, "train": TRAIN},
              "clip": {"model": CLIP, "vocab_size": 530, "train": TRAIN}, "diffusion": {"unet": UNET, "train": TRAIN}}
    assert run(from_dict(Recipe, {"data": data, **stages}), folder, quiet)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of nearly everything, with dropout, texts and an average; killed by nobody."""
    folder = tmp_path_factory.mktemp("lora")
    assert run(whole(base, pictures), folder, quiet)
    return folder


def whole(base: Path, pictures: Path) -> Recipe:
    return recipe(
        pictures, {"steps": 6, "save_every": 2, "ema": {"kind": "power"}, "sample_every": 4, "accumulate": 2},
        start=str(base), lora={**LORA, "targets": ALL, "text": True, "text_rate": 0.5, "dropout": 0.2}, sample_steps=2,
        prompts=["a large red circle", "a small blue star"],
    )


def filled(made: DiffusionTraining) -> DiffusionTraining:
    """With factors that change something, as if it had been trained for long."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    made.network.eval()
    return made


def test_the_base_stays_bit_for_bit_and_the_loss_falls(base: Path, pictures: Path, tmp_path: Path) -> None:
    start = {"start": str(base), "lora": {**LORA, "rank": 4, "targets": ALL}, "drop": 0.0}
    train = {"steps": 60, "batch": 8, "save_every": 60, "rate": {"learning_rate": 2e-2, "schedule": "constant"},
             "gradient_checkpointing": True}
    made = recipe(pictures, train, **start)
    assert run(made, tmp_path, quiet)
    losses = [line["loss.denoiser"] for line in journal.read(tmp_path / "training/diffusion/curves.jsonl")]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    snapshot, _ = Checkpoints(tmp_path / "training/diffusion/checkpoints").load()
    assert all(".lora." in name for group in snapshot.groups.values() for name in group)
    stage = begun(made, tmp_path)
    stage.network.load_state_dict(snapshot.groups["denoiser"])
    ((_, loss),) = stage.losses(stage.players, stage.load(stage.order(8).places(0)), 0)
    torch.autograd.backward(loss.total)
    plain = open_model(base).network.state_dict()
    buffers = dict(stage.network.unet.named_buffers())
    assert buffers.keys() == plain.keys()
    assert all(tensor.equal(plain[name]) and tensor.grad is None for name, tensor in buffers.items())
    assert all(p.grad is not None and p.dtype == torch.float32 for p in stage.network.parameters())


def test_a_killed_run_ends_with_the_same_bits(
    trained: Path, base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = DiffusionTraining.load

    def stopping(self: DiffusionTraining, places: list[Place]) -> dict[str, Tensor]:
        if places[0].epoch * 1000 + places[0].number == 12:
            os.kill(os.getpid(), signal.SIGTERM)
        return load(self, places)

    monkeypatch.setattr(DiffusionTraining, "load", stopping)
    assert not run(whole(base, pictures), tmp_path, quiet)
    monkeypatch.setattr(DiffusionTraining, "load", load)
    assert run(whole(base, pictures), tmp_path, quiet)
    ours, theirs = (Checkpoints(place / "training/diffusion/checkpoints").load()[0] for place in (tmp_path, trained))
    assert ours.step == theirs.step == 6
    for name, group in theirs.groups.items():
        assert all(tensor.equal(ours.groups[name][key]) for key, tensor in group.items())
    assert (tmp_path / "lora.safetensors").read_bytes() == (trained / "lora.safetensors").read_bytes()


def test_the_run_leaves_a_lora_and_says_how_to_draw_with_it(
    trained: Path, base: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {path.name for path in trained.iterdir()} == {"README.md", "lora.safetensors", "recipe.toml", "training"}
    for step in (4, 6):
        assert Image.open(trained / f"training/diffusion/samples/{step:08}.png").size == (2 * 18, 18)
    assert "held_out.loss" in journal.read(trained / "training/diffusion/curves.jsonl")[-1]
    assert main(["generate", "a circle", "--model", str(trained), "--quiet"]) != 0
    assert f"--model {base} --lora {trained / 'lora.safetensors'}" in capsys.readouterr().err
    drawn = sfumato.load(str(base))("a circle", loras=(str(trained),), steps=2)  # the folder's name is enough
    assert any("layers of unet" in note and "4 layers of text_encoder" in note for note in drawn.notes)
    with pytest.raises(CheckpointError, match=f"changes {base}"):
        begun(recipe(pictures, start=str(trained)), tmp_path)
    header = open_safetensors(trained / "lora.safetensors").metadata
    assert header["ss_network_module"] == "networks.lora"
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("2", "3.0")
    said = json.loads(header["sfumato"])
    assert (said["base"], said["step"], said["recipe"]["diffusion"]["lora"]["rank"]) == (str(base), 6, 2)
    assert len(said["base_hashes"]["tensors"]) == 64


def test_a_run_is_measured_as_the_model_with_its_lora(trained: Path) -> None:
    from sfumato.training.evaluate.subject import EvaluateConfig, Subject

    subject = Subject(trained, EvaluateConfig(steps=2))
    plain = Subject(Path(subject.source), EvaluateConfig(steps=2), subject.material.config)
    assert subject.has("vae")
    assert [applied.path for applied in subject.model.adapters] == [trained / "lora.safetensors"]
    assert subject.draw(["a circle"]).shape == plain.draw(["a circle"]).shape


@pytest.mark.parametrize("form", ["kohya", "peft"])
@pytest.mark.parametrize("text", [False, True])
def test_the_file_does_what_the_trained_network_does(
    base: Path, pictures: Path, tmp_path: Path, form: str, text: bool
) -> None:
    tables = {**LORA, "targets": ALL, "text": text, "format": form}
    made = filled(begun(recipe(pictures, start=str(base), lora=tables, cache=False), tmp_path))
    made.export(made.network.state_dict(), {"step": 0})
    model = open_model(base)
    adapt(model, [Wanted(str(tmp_path / "lora.safetensors"))])
    x, time, ids = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 700.0]), torch.randint(0, 500, (2, 16))
    encoder = model.parts["text_encoder"]
    told = {"ids": ids} if text else {"context": encoder(ids).last}
    with torch.no_grad():
        ours = made.network(x, time, told)
        theirs = model.network(x, time, Conditioning(context=encoder(ids).last))
        plain = open_model(base).network(x, time, Conditioning(context=encoder(ids).last))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert (ours - plain).abs().max() > 0.1
    changes = recognise(open_adapter(tmp_path / "lora.safetensors"), model.whole)
    assert len(changes) == len(made.network.state_dict()) / 2
    assert {change.layer.part for change in changes} == ({"unet", "text_encoder"} if text else {"unet"})


@pytest.mark.parametrize("form", ["kohya", "peft"])
def test_diffusers_draws_with_the_file(pictures: Path, tmp_path: Path, form: str) -> None:
    pytest.importorskip("peft")
    tiny.pipeline("sd1", tmp_path).save_pretrained(tmp_path / "model")
    lora = {**LORA, "targets": ["attention", "*.conv1"], "text": True, "text_targets": ALL[:2], "format": form}
    made = filled(begun(recipe(pictures, start=str(tmp_path / "model"), lora=lora, cache=False), tmp_path))
    made.export(made.network.state_dict(), {"step": 0})
    header = open_safetensors(tmp_path / "lora.safetensors").metadata
    assert header["ss_base_model_version"] == "sd_v1"
    import diffusers as untyped

    diffusers: Any = untyped
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    theirs.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    x, time, ids = torch.randn(2, 4, 8, 8), torch.tensor([10, 700]), torch.randint(0, 300, (2, 77))
    with torch.no_grad():
        ours = made.network(x, time, {"ids": ids})
        found = theirs.unet(x, time, theirs.text_encoder(ids)[0]).sample
    torch.testing.assert_close(ours, found, rtol=1e-4, atol=1e-4)


def test_transformers_and_pixels_learn_too(base: Path, pictures: Path, tmp_path: Path) -> None:
    for i, name in enumerate(("circle", "star") * 3):
        (tmp_path / "c" / name).mkdir(parents=True, exist_ok=True)
        shapes.draw(shapes.scene(1, i), 1, i, 16).save(tmp_path / "c" / name / f"{i}.png")
    classes: dict[str, Any] = {"conditioning": "class", "loss": {"learned_variance": True}}
    first = {**classes, "autoencoder": str(base / "vae"), "dit": {**DIT, "num_embeds_ada_norm": 2}}
    assert run(recipe(tmp_path / "c", **first), tmp_path / "dit", quiet)
    lora = {**classes, "start": str(tmp_path / "dit"), "lora": {**LORA, "targets": ALL}, "sample_steps": 2}
    pixels: dict[str, Any] = {"conditioning": "none", "space": "pixel"}
    assert run(recipe(pictures, **pixels, unconditional=PIXEL_UNET), tmp_path / "pixels", quiet)
    more = {**pixels, "start": str(tmp_path / "pixels"), "lora": LORA, "sample_steps": 2}
    for name, whole in (("a", recipe(tmp_path / "c", **lora)), ("b", recipe(pictures, **more))):
        told: list[str] = []
        assert run(whole, tmp_path / name, told.append)
        assert not [line for line in told if "No samples" in line]
    made = filled(begun(recipe(tmp_path / "c", **lora), tmp_path / "a"))
    made.export(made.network.state_dict(), {"step": 0})
    model = open_model(tmp_path / "dit")
    adapt(model, [Wanted(str(tmp_path / "a"))])
    x, time, labels = torch.randn(2, 4, 8, 8), torch.tensor([10.0, 700.0]), torch.tensor([0, 2])
    with torch.no_grad():
        theirs = model.network(x, time, Conditioning(labels=labels))
        torch.testing.assert_close(made.network(x, time, {"labels": labels}), theirs, rtol=1e-4, atol=1e-4)


def test_the_base_is_not_copied(base: Path) -> None:
    part = open_model(base).files["unet"]
    network = part.load(torch.float32)
    attach(network, LoraConfig(rank=2), ["mid_block.*"], "denoiser")
    for name, tensor in network.named_buffers():
        assert tensor.data_ptr() == part.tensors[name].read().data_ptr(), name
    learned = {name.split(".")[0] for name, _ in network.named_parameters()}
    assert learned == {"mid_block"}
    assert {name.rpartition(".lora.")[1] for name in network.state_dict()} == {".lora."}


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"start": None, "lora": {}}, "name it with diffusion.start"),
        ({"lora": {"rank": 0}}, "rank = 0"), ({"lora": {"alpha": 0}}, "alpha = 0"),
        ({"lora": {"dropout": 1}}, "dropout = 1"),
        ({"lora": {"text_rate": 0}}, "text = false"), ({"lora": {"format": "webui"}}, "'kohya', 'peft'"),
        ({"lora": {"targets": ["atention"]}}, "did you mean 'attention'"), ({"lora": {"targets": []}}, "learn nothing"),
        ({"lora": {"targets": ["down_blocks.9.*"]}}, "names no layer of the denoiser.*conv_in"),
        ({"lora": {"text": True, "text_targets": ["mid_block.*"]}}, "no layer of the text encoder"),
        ({"lora": {}, "text_encoder": "x", "autoencoder": "y"}, "leave autoencoder and text_encoder out"),
        ({"lora": {}, "text": {}}, "lora.text = true"),
        ({"lora": {}, "start": "unet"}, "a network alone"),
        ({"lora": {}, "start": "sfumato/emoji"}, "was trained otherwise"),
    ],
)
def test_what_cannot_be_trained(
    base: Path, pictures: Path, tmp_path: Path, tables: dict[str, Any], said: str
) -> None:
    start = tables.get("start", "")
    tables = {**tables, "start": start if start is None or "/" in start else str(base / start)}
    with pytest.raises(ConfigError, match=said):
        begun(recipe(pictures, **tables), tmp_path)


def test_other_stages_do_not_go_with_it(base: Path, pictures: Path) -> None:
    tables = {"autoencoder": {"model": CODER}, "diffusion": {"start": str(base), "lora": {}}}
    with pytest.raises(ConfigError, match="leave the tables autoencoder out"):
        from_dict(Recipe, {"data": {"where": str(pictures)}, **tables})
