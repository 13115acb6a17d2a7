"""`sfumato eval` on tiny runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.write import save_file
from sfumato.cli import main
from sfumato.core.config import to_dict
from sfumato.core.errors import CheckpointError, ConfigError
from sfumato.core.request import Request
from sfumato.families.load import open_model
from sfumato.models.dino import Dino, DinoConfig
from sfumato.models.inception import Inception
from sfumato.models.perceptual import Perceptual, Vgg16
from sfumato.tasks.picture import Picture
from sfumato.tasks.text_to_image import text_to_image
from sfumato.training import journal, shapes
from sfumato.training.evaluate.clip_folder import ClipFolder
from sfumato.training.evaluate.drawing import draw
from sfumato.training.evaluate.features import Given
from sfumato.training.evaluate.measures import MEASURES
from sfumato.training.evaluate.report import numbers
from sfumato.training.evaluate.scoring import check_all
from sfumato.training.evaluate.subject import EvaluateConfig, Subject
from sfumato.training.recipe import TrainConfig, to_toml
from sfumato.training.run import run
from tests.training.test_stages import CLIP, CODER, TEXT, TRAIN, UNET, recipe

SHORT = ["--steps", "1", "--pictures", "6", "--sweep", "ddim:1,ddim:2,dpmpp_2m:2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all stages on shapes of 16 pixels."""
    root = tmp_path_factory.mktemp("eval")
    shapes.write(root / "shapes", 24, 16)
    whole = recipe(
        root / "shapes", name="tiny", data={"held_out": 0.3}, autoencoder={"model": CODER, "train": TRAIN},
        clip={"model": CLIP, "vocab_size": 530, "train": TRAIN}, diffusion={"unet": UNET, "train": TRAIN},
    )
    (root / "recipe.toml").write_text(to_toml(to_dict(whole)))
    assert main(["train", str(root / "recipe.toml"), "-o", str(root / "run")]) == 0
    return root


def read(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def test_a_run_is_measured_with_what_it_has(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(folder / "run"), *SHORT, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["reconstruction", "retrieval", "drawn", "shapes"]
    written = folder / "run/training/eval"
    for name, figures in found.items():
        assert figures.items() <= read(written, name).items()
        assert read(written, name)["settings"]["pictures"] == 6
    subject = Subject(folder / "run", EvaluateConfig())
    assert found["reconstruction"]["pictures"] == len(subject.material.held_out) > 2
    before = subject.pixels(subject.material.held_out).double()
    after = subject.coder.back(before.byte()).double()
    error = (before - after).square().flatten(1).mean(1)
    assert found["reconstruction"]["psnr"] == pytest.approx((10 * (255**2 / error).log10()).mean().item())
    assert "lpips" not in found["reconstruction"]
    assert 0 < found["retrieval"]["chance_top1"] < found["retrieval"]["chance_top5"] <= 1
    assert found["shapes"]["of_real_pictures"]["colour"] > 0.9
    assert found["drawn"]["kid"] != 0
    assert Image.open(written / "shapes.png").size == (20 * 18, 18)


def test_a_run_is_measured_while_it_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes.write(tmp_path / "shapes", 24, 16)

    def train(name: str, **metrics: Any) -> list[dict[str, Any]]:
        told = {"coder": {"metrics": ["reconstruction"]}, "unet": {"metrics": ["shapes", "retrieval"]}}
        coder, unet = ({**TRAIN, "steps": 4, **(told[n] | metrics if metrics else {})} for n in told)
        whole = recipe(
            tmp_path / "shapes", data={"held_out": 0.3}, autoencoder={"model": CODER, "train": coder},
            diffusion={"unet": UNET, "text": TEXT, "vocab_size": 530, "sample_steps": 1, "train": unet},
        )
        (tmp_path / f"{name}.toml").write_text(to_toml(to_dict(whole)))
        assert main(["train", str(tmp_path / f"{name}.toml"), "-o", str(tmp_path / name)]) == 0
        return journal.read(tmp_path / name / "training/diffusion/curves.jsonl")

    plain, measured = train("plain"), train("run", metrics_every=2, metrics_pictures=6)
    assert "No retrieval of step 2" in capsys.readouterr().out  # which this run has no CLIP for
    assert [sorted(key for key in line if "shapes.colour" in key) for line in measured] == [
        [], ["metrics.shapes.colour"], [], ["metrics.shapes.colour"],
    ]
    without = [{key: value for key, value in line.items() if "metrics" not in key} for line in measured]
    assert without == plain  # bit for bit: to be measured changes nothing
    arguments = ["eval", str(tmp_path / "run"), "--pictures", "6", "--steps", "1", "--measures"]
    for stage, name in (("autoencoder", "reconstruction"), ("diffusion", "shapes")):
        figures = numbers(read(tmp_path / "run/training" / stage / "metrics/00000004", name))
        assert main([*arguments, name, "-o", str(tmp_path / "eval")]) == 0
        again = numbers(read(tmp_path / "eval", name))
        assert figures | {"seconds": 0.0} == again | {"seconds": 0.0}
        last = journal.read(tmp_path / "run/training" / stage / "curves.jsonl")[-1]
        assert last[f"metrics.{name}.pictures" if stage == "autoencoder" else f"metrics.{name}.captions"] > 0
    assert "metrics.reconstruction.psnr" in (tmp_path / "run/README.md").read_text()
    with pytest.raises(ConfigError, match="'recall'"):
        run(recipe(tmp_path, autoencoder={"model": CODER, "train": {**TRAIN, "metrics": ["recall"]}}), tmp_path / "no")
    with pytest.raises(ConfigError, match="nothing to measure"):
        TrainConfig(metrics_every=5)


def test_the_sweep_is_a_table_and_a_plot(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", str(folder / "run"), *SHORT, "--measures", "sweep", "--scales", "1,3", "-o", str(tmp_path)]
    assert main(arguments) == 0
    rows = read(tmp_path, "sweep")["rows"]
    assert [(r["sampler"], r["steps"], r["cfg_scale"]) for r in rows] == [
        (s, n, g) for g in (1, 3) for s, n in (("ddim", 1), ("ddim", 2), ("dpmpp_2m", 2))
    ]
    assert len({r["kid"] for r in rows}) == 6
    assert {"colour", "everything", "clip_score", "fid", "seconds_a_picture"} <= set(rows[0])
    assert (tmp_path / "sweep.md").read_text().count("\n") == 8
    assert Image.open(tmp_path / "sweep.png").width > 500
    assert "dpmpp_2m" in capsys.readouterr().out


def test_nearest_pictures_of_captions_that_name(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "things"
    (data / "images").mkdir(parents=True)
    names = [f"thing {i % 9}" for i in range(12)]
    for i in range(12):
        shapes.draw(shapes.scene(1, i), 1, i, 16).save(data / f"images/{i + 1}.png")
    (data / "captions.txt").write_text("\n".join(names))
    arguments = ["eval", str(folder / "run"), "--data", str(data), "--held-out", "0", *SHORT, "-o", str(tmp_path)]
    assert main([*arguments, "--measures", "nearest"]) == 0
    found = read(tmp_path, "nearest")
    assert (found["captions"], found["training_pictures"]) == (6, 12)
    assert 1 / 12 <= found["chance_top1"] <= 2 / 12
    (tmp_path / "list.txt").write_text("thing 3\nthing 40\n")
    assert main([*arguments, "--measures", "nearest", "--captions", str(tmp_path / "list.txt")]) == 2

    class Copier(Subject):
        """Draws every caption's own picture."""

        def draw(self, captions: Any, same_seed: bool = False, **fields: object) -> torch.Tensor:
            assert same_seed
            return self.pixels([self.material.captions.index(c) for c in captions])

    copier = Copier(folder / "run", EvaluateConfig(pictures=9))
    assert MEASURES["nearest"].run(copier, tmp_path)["top1"] == 1.0


def test_features_of_given_networks(folder: Path, tmp_path: Path) -> None:
    inception = {**Inception().state_dict(), "fc.bias": torch.zeros(1008), "Mixed_5b.branch1x1.bn.num_batches_tracked":
                 torch.tensor(0)}  # fmt: skip
    save_file(tmp_path / "inception.safetensors", lazy_all(inception))
    dino = DinoConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    (tmp_path / "dino").mkdir()
    (tmp_path / "dino/config.json").write_text(json.dumps({"model_type": "dinov2", **to_dict(dino), "qkv_bias": True}))
    save_file(tmp_path / "dino/model.safetensors", lazy_all(Dino(dino).state_dict()))
    for name in ("inception.safetensors", "dino"):
        told = ["--measures", "drawn", "--features", str(tmp_path / name), "-o", str(tmp_path)]
        assert main(["eval", str(folder / "run"), *SHORT, *told]) == 0
        assert str(tmp_path / name) in read(tmp_path, "drawn")["features"]
    (tmp_path / "dino/config.json").write_text(json.dumps({"model_type": "dinov2_with_registers", **to_dict(dino)}))
    with pytest.raises(CheckpointError, match="registers"):
        Given(tmp_path / "dino", torch.device("cpu"))


def test_lpips_where_weights_are_given(folder: Path, tmp_path: Path) -> None:
    made = {**Vgg16().state_dict()}
    made |= {n: t for n, t in Perceptual(Vgg16()).state_dict().items() if n.startswith("lin")}
    save_file(tmp_path / "vgg.safetensors", lazy_all(made))
    weights = ["--perceptual-weights", str(tmp_path / "vgg.safetensors")]
    assert main(["eval", str(folder / "run"), "--measures", "reconstruction", *weights, "-o", str(tmp_path)]) == 0
    assert read(tmp_path, "reconstruction")["lpips"] > 0


def test_pictures_drawn_together_are_those_drawn_alone(folder: Path) -> None:
    model = open_model(folder / "run", device="cpu")
    requests = [
        Request(prompt, seed=seed, steps=3, cfg_scale=3.0, sampler=sampler)
        for prompt, seed, sampler in (("a red circle", 0, "ddim"), ("a blue star", 7, "ddim"), ("x", 1, "euler_a"))
    ]
    together = draw(model, requests)
    for row, request in zip(together, requests, strict=True):
        alone = torch.from_numpy(text_to_image(model, request).pictures[0].pixels).permute(2, 0, 1)
        assert (row.int() - alone.int()).abs().max() <= 1
    assert not torch.equal(together[0], together[1])


def test_true_pictures_are_what_their_captions_say() -> None:
    scenes = [shapes.scene(3, i) for i in range(8)]
    arrays = [Picture(shapes.draw(s, 3, i, 32)).pixels for i, s in enumerate(scenes)]
    pixels = torch.stack([torch.from_numpy(a).permute(2, 0, 1) for a in arrays])
    assert check_all(pixels, [str(s) for s in scenes])["everything"] == 1.0
    assert check_all(pixels, [str(s) for s in scenes[::-1]])["everything"] < 0.5


def test_a_clip_of_transformers_is_read(tmp_path: Path, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    own = ClipFolder(folder / "run/clip", torch.device("cpu"))
    text = {**tower, "vocab_size": len(own.tokenizer), "eos_token_id": own.tokenizer.end, "bos_token_id": 0,
            "max_position_embeddings": 16}  # fmt: skip
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**tower, "image_size": 16, "patch_size": 8}, projection_dim=8
    )
    peer = transformers.CLIPModel(config).eval()
    peer.save_pretrained(tmp_path)
    own.tokenizer.save(tmp_path)
    found = ClipFolder(tmp_path, torch.device("cpu"))
    x = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    from sfumato.models.clip_vision import preprocess

    with torch.no_grad():
        expected = peer.visual_projection(peer.vision_model(preprocess(x / 127.5 - 1, 16)).pooler_output)
        ids = torch.tensor([found.tokenizer.frame(found.tokenizer.encode("a red star"))])
        said = peer.text_projection(peer.text_model(ids).pooler_output)
    assert torch.allclose(found.pictures(x), expected, atol=1e-5)
    assert torch.allclose(found.texts(["a red star"]), said, atol=1e-5)
    with pytest.raises(CheckpointError, match="both towers"):
        ClipFolder(folder / "run/unet", torch.device("cpu"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measures", "retreival"], "did you mean 'retrieval'"),
        (["--measures", "nearest"], "captions that name"),
        (["--data", "nowhere"], "nowhere"),
        (["--pictures", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["eval", str(folder / "run"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_model_that_is_no_run_needs_data(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "model"
    bare.mkdir()
    (bare / "vae").symlink_to(folder / "run/vae")
    assert main(["eval", str(bare)]) == 2
    assert "--data" in capsys.readouterr().err
    assert main(["eval", str(bare), "--data", str(folder / "shapes"), "--resolution", "16"]) == 0
    assert "psnr" in capsys.readouterr().out
    assert [p.name for p in (bare / "eval").iterdir()] == ["reconstruction.json"]
