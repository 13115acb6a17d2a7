"""The command line on a real pipeline with random weights: draw, tell, repeat; and what cannot be drawn."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.cli import main
from sfumato.engine import decode
from sfumato.models.clip_text import ClipText
from tests.conftest import ROOT
from tests.parity import tiny

SMALL = ["--steps", "3", "--width", "64", "--height", "64", "--quiet"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("sd1")
    tiny.pipeline("sd1", place).save_pretrained(place / "model")
    return str(place / "model")


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_a_picture_is_drawn_tells_how_and_is_drawn_again(
    model: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["a red apple", "-m", model, "--seed", "7", "--sampler", "DPM++ 2M Karras", "-o", f"apple.{suffix}", *SMALL]
    assert main(line) == 0
    assert capsys.readouterr() == (f"apple.{suffix}\n", "")
    assert main(["info", f"apple.{suffix}", "--json"]) == 0
    request = json.loads(capsys.readouterr().out)["request"]
    assert (request["prompt"], request["seed"], request["steps"]) == ("a red apple", 7, 3)
    code = main(["replay", f"apple.{suffix}", "--verify", "--quiet"])
    out = capsys.readouterr().out
    assert (code, out) == (0, "identical: every pixel\n") if suffix == "png" else "only a PNG" in out


def test_several_pictures_and_their_grid(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a cat", "-m", model, "--seed", "1", "--count", "3", "--grid", "-o", "cat.png", *SMALL]) == 0
    assert capsys.readouterr().out.split() == ["cat-1.png", "cat-2.png", "cat-3.png", "cat-grid.png"]
    assert Image.open("cat-grid.png").size == (192, 64)
    assert main(["a cat", "-m", model, "--seed", "2", "-o", "alone.png", *SMALL]) == 0
    alone, second = (np.asarray(Image.open(name)).astype(int) for name in ("alone.png", "cat-2.png"))
    assert np.abs(alone - second).max() <= 1


def test_a_picture_of_two_models_is_drawn_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for family in ("sdxl", "sdxl-refiner"):
        tiny.pipeline(family, tmp_path / family).save_pretrained(tmp_path / family / "model")
    line = ["-m", "sdxl/model", "--refiner", "sdxl-refiner/model", "--refiner-start", "0.5", "-o", "two.png", *SMALL]
    assert main(["a red apple", "--schedule", "Automatic", *line]) == 0
    assert main(["replay", "two.png", "--verify", "--quiet"]) == 0
    assert capsys.readouterr().out.endswith("identical: every pixel\n")


def test_what_a_tiny_decoder_decoded_is_drawn_again_with_it(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.tiny_autoencoder().save_pretrained("tiny")
    line = ["a red apple", "-m", model, "--vae-tiny", "tiny", "--lossy", "tiny_decoder", "-o", "tiny.png", *SMALL]
    assert main(line) == 0
    assert main(["replay", "tiny.png", "--verify", "--quiet"]) == 0
    assert capsys.readouterr().out.endswith("identical: every pixel\n")


def test_a_prompt_becomes_a_picture_in_the_files_that_the_readme_names(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose functions are at work, from the command on, when the text is encoded and when latents become pixels."""
    way: list[str] = []

    def watched(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            stack, package = [Path(frame.filename) for frame in inspect.stack()[1:]], ROOT / "sfumato"
            files = [path.relative_to(package).as_posix() for path in stack if package in path.parents]
            way.extend(file for file in reversed(files) if file not in way and not file.startswith(("cli/__", "nn/")))
            return function(*arguments)

        return call

    monkeypatch.setattr(decode, "to_pixels", watched(decode.to_pixels))
    monkeypatch.setattr(ClipText, "forward", watched(ClipText.forward))
    assert main(["a cat", "-m", model, "-o", "cat.png", *SMALL]) == 0
    sentence = (ROOT / "README.md").read_text(encoding="utf-8").split("in six files: ")[1].split("\n\n")[0]
    assert way == re.findall(r"`([a-z_/]+\.py)`", sentence)
    assert len(way) == 6


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--width", "513"], "512 and 520"), (["--sampler", "eulr a"], "did you mean"), (["--model", "absent"], "absent"),
     (["x" * 100_000], "100,000 characters"), (["--refiner-start", "0.8"], "refiner"), (["--device", "cudda"], "cudda"),
     (["--spacing", "karas"], "karras"), (["--dtype", "float8"], "float16")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_said_in_one_paragraph_and_leaves_nothing(
    model: str, words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [] if "--model" in words else ["--model", model]
    assert main(["generate", *words, *given, "--steps", "2", "-o", "never.png"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "\n\n" not in err.strip()
    assert len(err) < 1000
    assert not list(tmp_path.iterdir())
