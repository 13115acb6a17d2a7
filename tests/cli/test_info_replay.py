"""``sfumato info`` and ``sfumato replay``, on pictures of a pipeline that paints its seed."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.cli import main
from sfumato.core.config import to_dict
from sfumato.core.request import Request
from sfumato.tasks.picture import Picture, grid


def paint(request: Request, version: str = "0.1.0") -> Picture:
    """Grey as bright as the seed says, with a recipe as the task writes it."""
    pixels = np.full((request.height or 8, request.width or 8, 3), request.seed, np.uint8)
    recipe = {
        "request": to_dict(request), "seed": request.seed, "dtype": "float32", "size": [request.width, request.height],
        "model": {"family": "latent", "name": "models/grey", "sha256": "ab" * 32}, "versions": {"sfumato": version},
    }  # fmt: skip
    return Picture.of(pixels, recipe)


@dataclass
class Result:
    pictures: list[Picture]


@dataclass
class Fake:
    loaded: dict[str, Any] = field(default_factory=dict)
    shift: int = 0
    version: str = "0.1.0"

    def load(self, source: str, **options: Any) -> "Fake":
        self.loaded = {"source": source, **options}
        return self

    def __call__(self, request: Request, on_step: Callable[[Any], None] | None = None) -> Result:
        drawn = paint(request, self.version)
        image = Image.fromarray(drawn.pixels + np.uint8(self.shift))
        return Result([Picture(image, drawn.recipe)])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    monkeypatch.chdir(tmp_path)
    module, pipeline = ModuleType("sfumato.tasks.pipeline"), Fake()
    module.load = pipeline.load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sfumato.tasks.pipeline", module)
    return pipeline


REQUEST = Request("a grey wall", width=16, height=8, seed=40, steps=5, cfg_scale=3.0, sampler="euler", spacing="karras")


@pytest.fixture
def file(tmp_path: Path) -> str:
    paint(REQUEST).save(tmp_path / "wall.png")
    return str(tmp_path / "wall.png")


def test_info_prints_the_parameters_and_the_recipe(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", file]) == 0
    out = capsys.readouterr().out
    assert out.startswith("a grey wall\n")
    assert "Steps: 5" in out
    assert '"name": "models/grey"' in out
    assert main(["info", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["request"]["seed"] == 40


def test_info_of_a_picture_that_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "mute.png")
    assert main(["info", str(tmp_path / "mute.png")]) == 1
    assert "does not say how it was made" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["info", "replay"])
def test_what_is_no_picture_is_refused_in_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.png").write_text("no picture")
    for name in ("x.png", "absent.png"):
        assert main([command, str(tmp_path / name)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert name in err
        assert len(err.splitlines()) == 1


def test_replay_verifies_every_pixel(fake: Fake, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", file, "--verify"]) == 0
    assert capsys.readouterr().out == "identical: every pixel\n"
    assert (fake.loaded["source"], fake.loaded["dtype"]) == ("models/grey", "float32")
    assert not Path("out").exists()


def test_replay_says_how_much_differs_and_what_has_changed(
    fake: Fake, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.shift, fake.version = 2, "0.2.0"
    assert main(["replay", file, "--verify", "--model", "models/other"]) == 1
    out, err = capsys.readouterr()
    assert out == "DIFFERENT: 100.00% of the pixels, by up to 2 of 255, 2.000 on average\n"
    assert err == "note: versions.sfumato was 0.1.0, is 0.2.0\n"
    assert fake.loaded["source"] == "models/other"


def test_replay_opens_the_model_as_it_was_opened(fake: Fake, tmp_path: Path) -> None:
    drawn = paint(REQUEST)
    told = {**drawn.recipe, "refiner": {"name": "models/refiner"}, "vae_tiny": {"name": "models/tiny"}}
    told["model"] = {**told["model"], "opened": {"vae": "soft", "variant": "fp16"}}
    Picture(drawn.image, told).save(tmp_path / "wall.png")
    assert main(["replay", "wall.png", "--verify"]) == 0
    assert {name: value for name, value in fake.loaded.items() if value is not None} == {
        "source": "models/grey", "dtype": "float32", "refiner": "models/refiner", "vae": "soft", "variant": "fp16",
        "vae_tiny": "models/tiny",
    }
    assert main(["replay", "wall.png", "--verify", "--model", "other", "--refiner", "another"]) == 0
    assert {name: value for name, value in fake.loaded.items() if value is not None} == {
        "source": "other", "dtype": "float32", "refiner": "another", "vae_tiny": "models/tiny",
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [({"dtype": "float8"}, "float16"), ({"model": {"opened": {"vea": "x"}}}, "did you mean 'vae'"),
     ({"model": [1]}, "Name a model")],
)  # fmt: skip
@pytest.mark.usefixtures("fake")
def test_a_recipe_that_names_what_there_is_not_is_refused(
    change: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = paint(REQUEST)
    Picture(drawn.image, {**drawn.recipe, **change}).save("wall.png")
    assert main(["replay", "wall.png", "--verify"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("fake")
def test_replay_draws_the_picture_again(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", file, "-o", "again.png"]) == 0
    assert capsys.readouterr().out == "again.png\n"
    assert (Picture.open("again.png").pixels == Picture.open(file).pixels).all()
    assert main(["replay", file]) == 0
    assert capsys.readouterr().out == "out/40-a-grey-wall.png\n"


@pytest.mark.usefixtures("fake")
def test_a_grid_and_a_strangers_picture_cannot_be_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid([paint(REQUEST), paint(REQUEST)]).save(tmp_path / "grid.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "mute.png")
    for name, said in (("grid.png", "is a grid"), ("mute.png", "does not hold a recipe")):
        assert main(["replay", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
