"""All three stages, tiny, from pictures to a model folder."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

import sfumato
from sfumato.checkpoints.diffusers import read_folder
from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.write import save_file
from sfumato.cli import main
from sfumato.core.config import from_dict, to_dict
from sfumato.core.errors import ConfigError, DataError, RequestError
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.clip_vision import preprocess
from sfumato.models.dit import DITS
from sfumato.models.perceptual import Perceptual, Vgg16
from sfumato.models.unet import UNetConfig
from sfumato.nn.conditioning import Conditioning
from sfumato.sampling.diffusers_config import from_diffusers
from sfumato.training import journal, shapes
from sfumato.training import material as materials
from sfumato.training import run as runs
from sfumato.training.evaluate.clip_folder import ClipFolder
from sfumato.training.export import tidy
from sfumato.training.framing import Framing
from sfumato.training.material import Material
from sfumato.training.order import Place
from sfumato.training.plain_drawing import draw
from sfumato.training.recipe import DataConfig, DiffusionStage, Recipe, ScheduleConfig, to_toml
from sfumato.training.run import run
from sfumato.training.stages.autoencoder import AutoencoderTraining, begin_certain, begin_linear
from sfumato.training.stages.diffusion import DiffusionTraining, scheduler_config
from tests.conftest import ROOT

TRAIN: dict[str, Any] = {"steps": 2, "batch": 4, "eval_every": 2, "trackers": [], "rate": {"learning_rate": 1e-3}}
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CODER = {
    "block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1, "mid_block_add_attention": False,
}
UNET = {
    "block_out_channels": [8, 8], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1, "attention_head_dim": 2,
    "cross_attention_dim": 16, "norm_num_groups": 4,
}
PIXEL_UNET = {
    "block_out_channels": [8, 8], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1, "norm_num_groups": 4,
}  # fmt: skip
TEXT = {**TOWER, "max_position_embeddings": 16}
CLIP = {
    "projection_dim": 8, "text_config": TEXT, "vision_config": {**TOWER, "image_size": 16, "patch_size": 8},
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    shapes.write(folder / "s", 20, 16)
    return folder / "s"


def recipe(pictures: Path, **tables: Any) -> Recipe:
    data = {"where": str(pictures), "resolution": 16, "held_out": 0.2, **tables.pop("data", {})}
    return from_dict(Recipe, {"data": data, **tables})


def stage(recipe: Recipe, root: Path) -> DiffusionTraining:
    return DiffusionTraining(recipe, Material(recipe.data, 0), root)


@pytest.fixture(scope="module")
def model(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all stages."""
    folder = tmp_path_factory.mktemp("run")
    whole = recipe(
        pictures, name="tiny", autoencoder={"model": CODER, "train": TRAIN},
        clip={"model": CLIP, "vocab_size": 530, "train": TRAIN},
        diffusion={
            "unet": UNET, "train": TRAIN, "loss": {"noise_offset": 0.1, "input_perturbation": 0.1},
            "prompts": ["a large red circle", "a small blue star"], "sample_steps": 2,
        },
    )
    (folder / "recipe.toml").write_text(to_toml(to_dict(whole)))
    assert main(["train", str(folder / "recipe.toml"), "-o", str(folder / "run")]) == 0
    return folder / "run"


def test_a_run_folder_is_a_model_folder(model: Path) -> None:
    folder = read_folder(model)
    assert folder.pipeline == "StableDiffusionPipeline"
    assert set(folder.parts) == {"unet", "vae", "text_encoder"}
    for part in folder.parts.values():
        assert all(torch.isfinite(p).all() for p in part.load().parameters())
    scale = folder.parts["vae"].config.scaling_factor
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    assert 0.2 < (folder.parts["vae"].load().encode(x).mean * scale).std() < 5
    assert folder.parts["unet"].config.sample_size == 8
    card = (model / "README.md").read_text()
    assert "autoencoder: held_out.psnr" in card
    assert "[diffusion.unet]" in card
    for name in ("autoencoder", "clip", "diffusion"):
        lines = journal.read(model / "training" / name / "curves.jsonl")
        assert "held_out.loss" in lines[-1]
    assert Image.open(model / "training/autoencoder/samples/00000002.png").size == (5 * 18, 2 * 18)
    assert Image.open(model / "training/diffusion/samples/00000002.png").size == (2 * 18, 18)


def test_a_finished_run_is_not_trained_again(model: Path, pictures: Path) -> None:
    before = (model / "training/diffusion/curves.jsonl").read_text()
    told: list[str] = []
    from sfumato.training.recipe import load

    assert run(load(model / "recipe.toml"), model, told.append)
    assert (model / "training/diffusion/curves.jsonl").read_text() == before
    assert sum("Going on from step 2" in text for text in told) == 3


def test_cached_latents_train_like_fresh_ones(model: Path, pictures: Path, tmp_path: Path) -> None:
    """The same places, with latents from the cache or encoded on the fly: the same losses."""
    found = []
    for cache in (True, False):
        made = stage(
            recipe(
                pictures, data={"framing": {"flip": 0.5}},
                diffusion={"unet": UNET, "cache": cache, "autoencoder": str(model / "vae"), "text_encoder": str(model)},
            ),
            tmp_path,
        )
        places = made.order(8).places(0)
        ((_, loss),) = made.losses(made.players, made.load(places), 0)
        found.append(loss.each)
    assert torch.allclose(found[0], found[1], rtol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_text_is_trained_with_the_denoiser(model: Path, pictures: Path, tmp_path: Path, checkpointing: bool) -> None:
    made = stage(
        recipe(
            pictures, diffusion={
                "unet": UNET, "text": TEXT, "vocab_size": 530, "autoencoder": str(model / "vae"),
                "train": {**TRAIN, "gradient_checkpointing": checkpointing},
            },
        ),
        tmp_path,
    )  # fmt: skip
    ((_, loss),) = made.losses(made.players, made.load(made.order(4).places(0)), 0)
    torch.autograd.backward(loss.total)
    assert made.network.text is not None
    gradients = [p.grad for p in made.network.text.parameters()]
    assert all(g is not None for g in gradients)
    made.export(made.network.state_dict(), {})
    assert set(read_folder(tmp_path).parts) == {"unet", "vae", "text_encoder"}


def test_dropped_captions_are_the_empty_one(model: Path, pictures: Path, tmp_path: Path) -> None:
    tables = {"unet": UNET, "autoencoder": str(model / "vae"), "text_encoder": str(model)}
    kept, dropped = (stage(recipe(pictures, diffusion={**tables, "drop": d}), tmp_path) for d in (0.0, 1.0))
    places = kept.order(4).places(0)
    assert not kept.load(places)["context"].equal(dropped.load(places)["context"])
    assert all(row.equal(dropped.states[""]) for row in dropped.load(places)["context"])
    part = stage(recipe(pictures, diffusion={**tables, "drop": 0.1}), tmp_path)
    shown = [part.load([p])["context"][0].equal(part.states[""]) for s in range(20) for p in part.order(8).places(s)]
    assert 4 <= sum(shown) <= 30


@pytest.mark.parametrize(
    "loss", [{"learned_variance": True}, {"weighting": "min_snr"}, {"timesteps": "logit_normal"}],
)  # fmt: skip
def test_unconditional_pixels(pictures: Path, tmp_path: Path, loss: dict[str, Any]) -> None:
    network = {**PIXEL_UNET, "out_channels": 6 if "learned_variance" in loss else 3}
    tables = {"conditioning": "none", "space": "pixel", "unconditional": network, "loss": loss, "train": TRAIN}
    assert run(recipe(pictures, diffusion=tables), tmp_path, lambda text: None)
    assert read_folder(tmp_path).pipeline == "DDPMPipeline"
    assert Image.open(tmp_path / "training/diffusion/samples/00000002.png").size == (8 * 18, 18)


def test_classes_in_pixels(pictures: Path, tmp_path: Path) -> None:
    for i, name in enumerate(("one", "two") * 3):
        (tmp_path / "c" / name).mkdir(parents=True, exist_ok=True)
        shapes.draw(shapes.scene(1, i), 1, i, 16).save(tmp_path / "c" / name / f"{i}.png")
    tables: dict[str, Any] = {"conditioning": "class", "space": "pixel", "train": TRAIN}
    wrong = recipe(tmp_path / "c", diffusion={**tables, "unconditional": PIXEL_UNET})
    with pytest.raises(ConfigError, match="num_class_embeds must be 3"):
        run(wrong, tmp_path / "run", lambda text: None)
    right = recipe(tmp_path / "c", diffusion={**tables, "unconditional": {**PIXEL_UNET, "num_class_embeds": 3}})
    assert run(right, tmp_path / "run", lambda text: None)
    grid = tmp_path / "run/training/diffusion/samples/00000002.png"
    assert Image.open(grid).size == (2 * 18, 18)
    changed = {**tables, "unconditional": {**PIXEL_UNET, "num_class_embeds": 3}, "prompts": ["two", "", "one", "three"]}
    with pytest.raises(RequestError, match="no class called 'three'"):
        run(recipe(tmp_path / "c", diffusion=changed), tmp_path / "other", lambda text: None)


def test_latents_and_texts_in_pixels_are_drawn_for_the_eye(model: Path, pictures: Path, tmp_path: Path) -> None:
    latents = {"conditioning": "none", "autoencoder": str(model / "vae"), "sample_steps": 2,
               "unconditional": {**PIXEL_UNET, "in_channels": 4, "out_channels": 4}}  # fmt: skip
    texts = {"space": "pixel", "unet": {**UNET, "in_channels": 3, "out_channels": 3}, "text": TEXT,
             "vocab_size": 530, "prompts": ["a red circle"] * 9, "sample_steps": 2}  # fmt: skip
    for name, tables, size in (("latents", latents, (8 * 18, 18)), ("texts", texts, (8 * 18, 2 * 18))):
        told: list[str] = []
        whole = recipe(pictures, diffusion={**tables, "train": TRAIN})
        assert run(whole, tmp_path / name, told.append)
        assert not any("No samples" in line for line in told)
        assert Image.open(tmp_path / name / "training/diffusion/samples/00000002.png").size == size
    with pytest.raises(RequestError, match="knows no classes"):
        stage(recipe(pictures, diffusion={**latents, "prompts": ["circle"]}), tmp_path)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_what_is_drawn_is_what_the_network_knows(prediction: Any) -> None:
    schedule = ScheduleConfig("flow") if prediction == "flow" else ScheduleConfig("scaled_linear")
    tables = {"unet": from_dict(UNetConfig, UNET), "schedule": schedule, "prediction": prediction, "space": "pixel"}
    plan = from_diffusers(scheduler_config(DiffusionStage(**tables)))

    def knows(x: torch.Tensor, t: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        """One picture a class, all of one value; positive and negative rows share the noisy pictures."""
        assert conditioning.labels is not None
        x, t = (part.repeat(len(conditioning.labels) // len(x), *[1] * (part.ndim - 1)) for part in (x, t))
        x0 = (conditioning.labels / 10)[:, None, None, None].expand_as(x)
        alpha, sigma = (m.float()[:, None, None, None] for m in plan.schedule.marginal(t.double()))
        return plan.meaning().target(x0, (x - alpha * x0) / sigma, alpha, sigma)

    labels = torch.arange(10) % 7
    told = {"positive": Conditioning(labels=labels), "negative": Conditioning(labels=torch.full((10,), 2))}
    made = draw(knows, plan, told, (3, 4, 4), range(10), 5, 1.5, torch.device("cpu"))
    # The discrete schedule ends above sigma = 0, with a little noise left.
    apart = made.mean((1, 2, 3)) - (0.2 + 1.5 * (labels / 10 - 0.2))
    assert apart.abs().max() < (1e-4 if prediction == "flow" else 0.02)
    alone = draw(knows, plan, {n: c.rows([9]) for n, c in told.items()}, (3, 4, 4), [9], 5, 1.5, torch.device("cpu"))
    assert torch.allclose(alone[0], made[9], atol=1e-6)


DIT: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "out_channels": 8}


def test_a_transformer_is_trained_on_classes_and_draws_them(model: Path, tmp_path: Path) -> None:
    for i, name in enumerate(("circle", "star") * 3):
        (tmp_path / "c" / name).mkdir(parents=True, exist_ok=True)
        shapes.draw(shapes.scene(1, i), 1, i, 16).save(tmp_path / "c" / name / f"{i}.png")
    tables: dict[str, Any] = {
        "conditioning": "class", "autoencoder": str(model / "vae"), "dit": {**DIT, "num_embeds_ada_norm": 2},
        "loss": {"learned_variance": True}, "train": {**TRAIN, "gradient_checkpointing": True},
        "prompts": ["circle", "1"], "sample_steps": 2,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="num_embeds_ada_norm must be 2"):
        stage(recipe(tmp_path / "c", diffusion={**tables, "dit": DIT}), tmp_path / "wrong")
    with pytest.raises(ConfigError, match="patches of 3 divide"):
        stage(recipe(tmp_path / "c", diffusion={**tables, "dit": {**DIT, "patch_size": 3, "sample_size": 9}}), tmp_path)
    whole = recipe(tmp_path / "c", diffusion={**tables, "cache": False})
    assert run(whole, tmp_path / "run", lambda text: None)
    assert Image.open(tmp_path / "run/training/diffusion/samples/00000002.png").size == (2 * 18, 18)
    folder = read_folder(tmp_path / "run")
    assert folder.pipeline == "DiTPipeline"
    assert folder.options["id2label"] == {"0": "circle", "1": "star"}
    weights = folder.parts["transformer"].load().state_dict()
    name = "norm1.emb.timestep_embedder.linear_1.weight"
    assert torch.equal(weights[f"transformer_blocks.0.{name}"], weights[f"transformer_blocks.1.{name}"])
    assert weights["proj_out_2.weight"].abs().max() > 0  # it began at nothing
    for sampler in (None, "DDPM"):
        drawn = sfumato.load(str(tmp_path / "run"))("star", steps=2, seed=0, sampler=sampler)
        assert drawn.images[0].size == (16, 16)


def test_a_transformer_is_trained_on_pictures_alone(model: Path, pictures: Path, tmp_path: Path) -> None:
    dit = {**DIT, "out_channels": None, "num_embeds_ada_norm": 0}
    shutil.copytree(model / "vae", tmp_path / "half")
    weights = tmp_path / "half" / "diffusion_pytorch_model.safetensors"
    save_file(weights, lazy_all(load_file(model / "vae" / weights.name)), dtype=torch.float16)
    tables: dict[str, Any] = {
        "conditioning": "none", "autoencoder": str(tmp_path / "half"), "dit": dit, "train": TRAIN,
        "schedule": {"kind": "flow"}, "prediction": "flow", "prompts": [""], "sample_steps": 2,
    }
    assert run(recipe(pictures, diffusion=tables), tmp_path, lambda text: None)
    assert sfumato.load(str(tmp_path))("", steps=2, seed=0).images[0].size == (16, 16)
    with pytest.raises(ConfigError, match="must be 0"):
        stage(recipe(pictures, diffusion={**tables, "dit": {**dit, "num_embeds_ada_norm": 2}}), tmp_path / "wrong")


@pytest.mark.parametrize("name", ["dit-s2", "dit-b2", "dit-l2", "dit-xl2"])
def test_the_recipes_of_transformers_are_the_papers(name: str) -> None:
    from sfumato.training.recipe import load

    stage = load(ROOT / "recipes" / f"{name}.toml").diffusion
    assert stage is not None
    assert stage.dit == DITS[name]


def test_a_shortcut_begins_as_the_best_linear_autoencoder() -> None:
    """Pictures made of three patterns come back whole through three channels, and not through two."""
    torch.manual_seed(0)
    patterns = torch.randn(3, 3, 4, 4)
    weights = torch.randn(6, 2, 2, 3) * torch.tensor([2.0, 1.0, 0.5])
    x = torch.einsum("bhwk,kcyx->bchywx", weights, patterns).reshape(6, 3, 8, 8) * 0.1 + 0.3
    errors, latents = [], []
    for channels in (2, 3):
        config = AutoencoderConfig(
            patch_size=2, shortcut=True, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
            latent_channels=channels,
        )
        net = Autoencoder(config)
        begin_certain(net, -6.0)
        begin_linear(net, [x[:4], x[4:]])
        with torch.no_grad():
            found = net.encode(x)
            errors.append((net.decode(found.mean) - x).abs().max().item())
        latents.append(found)
    assert errors[0] > 0.02 > 1e-4 > errors[1]
    assert torch.allclose(latents[1].log_variance, torch.tensor(-6.0), atol=0.1)
    assert latents[1].mean.var(correction=1, dim=(0, 2, 3)).mean().item() == pytest.approx(1.0, rel=1e-3)
    with pytest.raises(ConfigError, match="48 at most"):
        begin_linear(Autoencoder(replace(config, latent_channels=49)), [x])


def test_an_autoencoder_may_mirror_what_the_denoiser_does_not(pictures: Path, tmp_path: Path) -> None:
    told = recipe(pictures, autoencoder={"model": CODER, "flip": 1.0, "train": TRAIN})
    material = Material(told.data, 0)
    training = AutoencoderTraining(told, material, tmp_path)
    place = Place(0, 0, 0)
    mirrored, own = training.load([place])["pixels"][0], material.framed(material.training[0], place).pixels
    assert not torch.equal(mirrored, own)
    assert torch.equal(mirrored, own.flip(-1))


def test_vq_with_a_judge(pictures: Path, tmp_path: Path) -> None:
    whole = recipe(
        pictures, autoencoder={
            "vq": {**CODER, "num_vq_embeddings": 16, "latent_channels": 4}, "train": TRAIN,
            "loss": {"adversarial": 0.5, "l2": 1.0}, "discriminator": {"channels": 8, "layers": 1},
        },
    )  # fmt: skip
    made = AutoencoderTraining(whole, Material(whole.data, 0), tmp_path)
    batch = made.load(made.order(4).places(0))
    learned = []
    for name, loss in made.losses(made.players, batch, 0):
        torch.autograd.backward(loss.total)
        learned.append(name)
        own = [p.grad is not None for p in made.players["discriminator"].parameters()]
        assert any(own) == (name == "discriminator")
    assert learned == ["autoencoder", "discriminator"]
    assert {"codes", "adversarial"} <= set(next(iter(made.losses(made.players, batch, 0)))[1].parts)


def test_held_out_losses_are_always_the_same(pictures: Path, tmp_path: Path) -> None:
    tables = {"conditioning": "none", "space": "pixel", "unconditional": PIXEL_UNET}
    made = stage(recipe(pictures, diffusion=tables), tmp_path)
    assert made.evaluate() == made.evaluate()
    assert made.material.held_out
    assert not set(made.material.held_out) & set(made.material.training)


def test_what_does_not_fit_is_refused_before_training(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no autoencoder in"):
        stage(recipe(pictures, diffusion={"unet": UNET}), tmp_path)
    with pytest.raises(DataError, match="no classes"):
        stage(recipe(pictures, diffusion={"conditioning": "class", "unconditional": PIXEL_UNET}), tmp_path)
    odd = recipe(pictures, data={"resolution": 17}, autoencoder={"model": CODER})
    with pytest.raises(ConfigError, match="17 x 17"):
        AutoencoderTraining(odd, Material(odd.data, 0), tmp_path)
    cropped = recipe(pictures, data={"framing": {"crop": "random"}}, diffusion={"unet": UNET})
    with pytest.raises(ConfigError, match="cannot be cached"):
        stage(cropped, tmp_path)


def test_a_finished_model_is_uploaded(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Path, str]] = []

    def push(folder: Path, repository: str) -> str:
        sent.append((folder, repository))
        return "there"

    monkeypatch.setattr(runs, "push", push)
    whole = recipe(
        pictures, push_to_hub="org/mine",
        diffusion={"conditioning": "none", "space": "pixel", "unconditional": PIXEL_UNET, "train": TRAIN},
    )  # fmt: skip
    told: list[str] = []
    assert run(whole, tmp_path / "run", told.append)
    assert sent == [(tmp_path / "run", "org/mine")]
    assert told[-1] == "Uploaded to there"


def test_a_run_folder_is_one_commands_own_and_keeps_its_recipe(pictures: Path, tmp_path: Path) -> None:
    tables: dict[str, Any] = {"conditioning": "none", "space": "pixel", "unconditional": PIXEL_UNET, "train": TRAIN}
    whole = recipe(pictures, diffusion=tables)
    assert run(whole, tmp_path, lambda text: None)
    before = (tmp_path / "recipe.toml").read_bytes()
    with pytest.raises(ConfigError, match=r"diffusion\.train\.batch: was 4, is 2"):
        run(recipe(pictures, diffusion={**tables, "train": {**TRAIN, "batch": 2}}), tmp_path, lambda text: None)
    assert (tmp_path / "recipe.toml").read_bytes() == before
    # What kills at the worst moments leave: half a part, and one that was about to be replaced.
    (tmp_path / ".unet.abc.part").mkdir()
    (tmp_path / "unet").rename(tmp_path / ".unet.abc.old")
    (tmp_path / ".mine.abc.part").mkdir()
    tidy(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == [".mine.abc.part"]
    assert read_folder(tmp_path).pipeline == "DDPMPipeline"
    lock = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, 2); print('held', flush=True); input()"
    line = [sys.executable, "-c", lock, str(tmp_path / "training/.lock")]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="Another process is training"):
            run(whole, tmp_path, lambda text: None)
        other.communicate("\n")
    with pytest.raises(ConfigError, match=r"recipe\.toml cannot be the folder of a run: "):
        run(whole, tmp_path / "recipe.toml", lambda text: None)


def test_bad_data_stops_a_run_before_it_starts(pictures: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shapes.write(bad, 3, 16)
    (bad / "images/2.png").write_text("no picture")
    with pytest.raises(DataError, match=r"images/2\.png"):
        Material(DataConfig(str(bad), resolution=16), 0)
    accepted = Material(DataConfig(str(bad), resolution=16, accept=("unreadable",)), 0)
    assert [accepted.keys[i] for i in accepted.training] == ["images/1.png", "images/3.png"]


@pytest.mark.parametrize("limit", [0, 2**20])
def test_pictures_kept_in_memory_are_framed_alike(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(materials, "KEPT_BYTES", limit)
    config = DataConfig(str(pictures), resolution=12, framing=Framing(flip=0.5))
    material = Material(config, 0)
    flipped = set()
    for number in range(12):
        place = Place(0, number, 0)
        for _ in range(2):
            found = material.framed(3, place)
            expected = config.framing.frame(material.picture(3), (12, 12), 0, place)
            assert found.pixels.equal(expected.pixels)
            assert found[1:] == expected[1:]
            flipped.add(found.flipped)
    assert flipped == {True, False}
    assert bool(material._kept) == bool(limit)


def test_of_several_captions_one_is_drawn_at_each_showing(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "0.png")
    said = ["apple", "an apple", "fruit"]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": said}))
    material = Material(DataConfig(str(tmp_path), resolution=16, first_caption=0.5), 0)
    places = [Place(epoch, 0, 0) for epoch in range(2000)]
    drawn = [material.caption(0, place) for place in places]
    assert drawn == [material.caption(0, place) for place in places]  # by the place, not by what was asked before
    shares = {text: drawn.count(text) / len(drawn) for text in said}
    assert shares == pytest.approx({"apple": 0.5, "an apple": 0.25, "fruit": 0.25}, abs=0.05)
    alike = Material(DataConfig(str(tmp_path), resolution=16), 0)
    assert [alike.caption(0, place) for place in places].count("apple") / 2000 == pytest.approx(1 / 3, abs=0.05)
    assert material.caption(0) == "apple"  # where nothing is trained, always the first
    assert material.texts() == said
    with pytest.raises(ConfigError, match="first_caption = 2"):
        DataConfig(str(tmp_path), first_caption=2)


def test_buckets_make_batches_of_one_size(tmp_path: Path) -> None:
    for i, size in enumerate([(64, 64), (128, 64), (64, 128), (64, 60), (130, 64)]):
        shapes.draw(shapes.scene(0, i), 0, i, 64).resize(size).save(tmp_path / f"{i}.png")
    config = DataConfig(str(tmp_path), resolution=64, buckets=True, bucket_step=16)
    material = Material(config, 0)
    order = material.order(2)
    for step in range(order.steps_per_epoch):
        items = [material.training[p.item] for p in order.places(step)]
        assert len({material.framed(i, Place(0, 0, 0)).pixels.shape for i in items}) == 1
    assert len(material.by_size()) == 3


def test_lpips_weights_are_loaded_and_used(pictures: Path, tmp_path: Path) -> None:
    made = {**Vgg16().state_dict(), "classifier.0.weight": torch.zeros(1)}
    made |= {n: t for n, t in Perceptual(Vgg16()).state_dict().items() if n.startswith("lin")}
    save_file(tmp_path / "vgg.safetensors", lazy_all(made))
    tables = {"model": CODER, "loss": {"perceptual": 1.0}}
    whole = recipe(pictures, autoencoder={**tables, "perceptual_weights": str(tmp_path / "vgg.safetensors")})
    stage = AutoencoderTraining(whole, Material(whole.data, 0), tmp_path)
    ((_, loss),) = stage.losses(stage.players, stage.load(stage.order(2).places(0)), 0)
    assert loss.parts["perceptual"] > 0
    without = recipe(pictures, autoencoder=tables)
    with pytest.raises(ConfigError, match="perceptual_weights"):
        AutoencoderTraining(without, Material(without.data, 0), tmp_path)


def test_a_clip_trained_here_tells_how_pictures_look(model: Path, pictures: Path, tmp_path: Path) -> None:
    whole = recipe(pictures, autoencoder={
        "model": CODER, "loss": {"perceptual": 1.0, "l1": 0.0}, "perceptual_weights": str(model / "clip"),
    })  # fmt: skip
    stage = AutoencoderTraining(whole, Material(whole.data, 0), tmp_path)
    ((_, loss),) = stage.losses(stage.players, stage.load(stage.order(4).places(0)), 0)
    torch.autograd.backward(loss.total)
    weight = stage.network.net.decoder.conv_out.weight
    assert weight.grad is not None
    assert weight.grad.abs().max() > 0
    distance = stage.distance
    assert distance is not None
    assert not any(p.requires_grad for p in distance.parameters())
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    near, far = distance(x, x + 0.01 * torch.randn_like(x)), distance(x, -x)
    assert (near > 0).all()
    assert (near < 0.1 * far).all()
    assert torch.equal(distance(x, x), torch.zeros(2))
    wide = torch.rand(1, 3, 16, 48) * 2 - 1
    other = wide.clone()
    other[..., -4:] *= -1  # no part of a picture goes unseen
    assert distance(wide, other) > 0
    # The patches' states of CLIP's own tower, compared position by position.
    tower = ClipFolder(model / "clip", torch.device("cpu")).network.vision_model
    a, b = (F.normalize(tower(preprocess(y, 16)).hidden[1][:, 1:], dim=-1) for y in (x, -x))
    assert torch.allclose(far, (a - b).square().mean((1, 2)), atol=1e-6)


def test_curves_are_drawn_by_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with journal.Journal(tmp_path, 0, ("tensorboard",), "x") as told:
        told.write(0, {"loss": 1.0})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2", "zero_snr", "flow"])
def test_the_scheduler_that_is_written_is_the_schedule_that_was_trained(kind: str) -> None:
    schedule = ScheduleConfig("linear", zero_terminal_snr=True) if kind == "zero_snr" else from_dict(
        ScheduleConfig, {"kind": kind, "start": 0.001, "end": 0.015}
    )  # fmt: skip
    prediction = "flow" if kind == "flow" else "v_prediction"
    unet = from_dict(UNetConfig, UNET)
    config = from_dict(DiffusionStage, {"unet": unet, "schedule": schedule, "prediction": prediction})
    plan = from_diffusers(scheduler_config(config))
    time = torch.tensor([1.0, 250.0, 600.0, 998.0])
    assert torch.allclose(plan.schedule.sigma(time), schedule.build().sigma(time))
    assert plan.prediction == prediction
    assert plan.sigmas(5)[0] > plan.sigmas(5)[-2] > 0


@pytest.mark.slow
def test_diffusers_draws_with_a_run_folder(model: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(model)
    pictures = pipeline("a large red circle", num_inference_steps=2, output_type="np", height=16, width=16).images
    assert pictures.shape == (1, 16, 16, 3)
