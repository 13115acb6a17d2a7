"""What a prompt did: words and their tokens, maps that are shares, and a picture that is drawn as ever."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato
from sfumato.cli import main
from sfumato.core.errors import RequestError
from sfumato.core.request import Request
from sfumato.tasks.explain import words_of
from sfumato.tasks.picture import Picture
from sfumato.tasks.pipeline import Pipeline
from tests.parity import tiny

ASKED: dict[str, Any] = {"steps": 3, "seed": 7, "width": 64, "height": 72}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def pipe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    place = tmp_path_factory.mktemp(request.param)
    tiny.pipeline(request.param, place).save_pretrained(place / "model")
    return sfumato.load(str(place / "model"), device="cpu")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red apple", [("a", [1]), ("red", [2]), ("apple", [3])]),
        ("(red:1.3) apple, xy", [("red", [1]), ("apple", [2]), ("xy", [4, 5])]),
        ("a BREAK red", [("a", [1]), ("red", [78])]),
        ("A Zebra!", [("A", [1]), ("Zebra", [2, 3, 4, 5, 6])]),
    ],
)  # fmt: skip
def test_words_stand_where_their_tokens_do(pipe: Pipeline, prompt: str, expected: Any) -> None:
    assert words_of(pipe.model, Request(prompt)) == expected


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_the_picture_is_as_ever_and_maps_are_shares(pipe: Pipeline, scale: float) -> None:
    told = {**ASKED, "cfg_scale": scale, "negative_prompt": "blue"}
    found, plain = pipe.explain("a red apple", **told), pipe("a red apple", **told)
    assert np.array_equal(found.picture.pixels, plain.pictures[0].pixels)
    assert found.picture.recipe == plain.pictures[0].recipe
    assert [word.text for word in found.words] == ["a", "red", "apple"]
    for word in found.words:
        assert word.heat.shape == (9, 8)
        assert float(word.heat.min()) >= 0
    assert 0 < sum(word.share for word in found.words) < 1
    other = pipe.explain("a red apple", **{**told, "negative_prompt": "cat on the table"})
    if scale == 1.0:  # then nothing of the negative prompt is asked
        assert all(torch.equal(a.heat, b.heat) for a, b in zip(found.words, other.words, strict=True))


def test_long_prompts_and_words_that_are_cut(pipe: Pipeline) -> None:
    found = pipe.explain(" ".join(["apple"] * 80), **ASKED)
    assert len(found.words) == 80
    assert sum(word.share for word in found.words) < 1
    cut = pipe.explain(" ".join(["apple"] * 80), long_prompts="truncate", **ASKED)
    assert len(cut.words) == 75


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"count": 2}, "one picture"), ({"prompt": " ,!"}, "no words"), ({"cfg_scale": 0.0}, "negative prompt alone"),
        ({"width": 63}, "multiples"),
    ],
)  # fmt: skip
def test_what_cannot_be_explained(pipe: Pipeline, told: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        pipe.explain(**{"prompt": "a cat", **ASKED, **told})


def test_a_model_of_classes_has_no_words(tmp_path: Path) -> None:
    tiny.save_dit(tiny.dit(), tmp_path)
    with pytest.raises(RequestError, match="no words that this model looks at"):
        sfumato.load(str(tmp_path), device="cpu").explain("goldfish", steps=2)


def test_an_edit_and_lossy_ways_are_explained_too(pipe: Pipeline) -> None:
    [image] = pipe("a cat", **ASKED).images
    found = pipe.explain("a red apple", image=image, strength=0.7, steps=4, seed=1, lossy=("deepcache:2",))
    assert len(found.words) == 3


def test_in_little_memory_the_same_is_heard(pipe: Pipeline) -> None:
    limited = sfumato.load(pipe.model.source, device="cpu", max_memory="2GB")
    found, other = limited.explain("a red apple", **ASKED), pipe.explain("a red apple", **ASKED)
    for a, b in zip(found.words, other.words, strict=True):
        torch.testing.assert_close(a.heat, b.heat, rtol=1e-3, atol=1e-5)


def test_the_command_saves_the_picture_and_a_sheet(
    pipe: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", pipe.model.source, "--steps", "3", "--seed", "7", "--width", "64", "--height", "72"]
    assert main(["explain", "a red apple", *words, "--device", "cpu", "--json", "-o", str(tmp_path / "made.png")]) == 0
    said = json.loads(capsys.readouterr().out)
    picture, sheet = Picture.open(said["picture"]), Picture.open(said["sheet"])
    assert [word["word"] for word in said["words"]] == ["a", "red", "apple"]
    assert np.array_equal(picture.pixels, pipe("a red apple", **ASKED).pictures[0].pixels)
    assert [word["word"] for word in sheet.recipe["explained"]] == ["a", "red", "apple"]
    assert sheet.image.width == 2 * 256
    assert main(["replay", said["sheet"]]) == 2
    assert "replay the picture" in capsys.readouterr().err
    assert main(["replay", said["picture"], "--verify"]) == 0
