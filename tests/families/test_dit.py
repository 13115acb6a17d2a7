"""DiT drawn by class: names, numbers, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato
from sfumato.cli import main
from sfumato.core.errors import CheckpointError, RequestError
from sfumato.engine.timetable import Timetable
from sfumato.families.dit import class_of
from sfumato.tasks.picture import Picture
from sfumato.tasks.pipeline import Pipeline
from tests.parity import tiny

TITLES = {int(number): title for number, title in tiny.LABELS.items()}
FEW: dict[str, Any] = {"steps": 3, "seed": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("dit")
    tiny.save_dit(tiny.dit(), place)
    return place


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return sfumato.load(str(folder))


@pytest.mark.parametrize(
    ("text", "label"), [("goldfish", 1), (" Tinca Tinca ", 0), ("tench, Tinca tinca", 0), ("7", 7), ("", 10)]
)
def test_a_class_has_a_number_and_names(text: str, label: int) -> None:
    assert class_of(text.strip(), 10, TITLES) == label


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("goldfsh", "did you mean 'goldfish'"),
        ("crane", r"2 \(crane\) or 3 \(crane, hoist\)"),
        ("10", "from 0 to 9"),
        ("a photograph of nothing at all", "a number from 0 to 9"),
    ],
)
def test_what_is_no_class_is_refused(text: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        class_of(text, 10, TITLES)


def test_models_without_names_or_classes_say_so() -> None:
    with pytest.raises(RequestError, match="no names for its classes; give a number from 0 to 9"):
        class_of("goldfish", 10, {})
    with pytest.raises(RequestError, match="knows no classes"):
        class_of("goldfish", 0, {})
    assert class_of("", 0, {}) == 0


def test_name_number_and_diffusers_words_draw_the_same(pipe: Pipeline) -> None:
    one, two, three = pipe("goldfish", **FEW), pipe("1", **FEW), pipe(class_labels=[1], **FEW)
    assert any("Class 1 (goldfish)" in note for note in one.notes)
    for other in (two, three):
        torch.testing.assert_close(other.latents, one.latents, rtol=0, atol=0)
    assert (pipe("tench", **FEW).latents - one.latents).abs().max() > 0.01
    with pytest.raises(RequestError, match="one class a call"):
        pipe(class_labels=[1, 2], **FEW)


def test_another_class_can_be_stayed_away_from(pipe: Pipeline) -> None:
    plain, away = (pipe("goldfish", negative_prompt=text, **FEW).latents for text in ("", "tench"))
    assert (plain - away).abs().max() > 0.01


def test_fewer_channels_can_be_guided(pipe: Pipeline) -> None:
    all_four, three, none = (
        pipe("goldfish", steps=1, seed=4, **told).latents for told in ({}, {"guidance_channels": 3}, {"cfg_scale": 1.0})
    )
    torch.testing.assert_close(three[:, :3], all_four[:, :3])
    torch.testing.assert_close(three[:, 3], none[:, 3])
    assert (all_four[:, 3] - none[:, 3]).abs().max() > 0.01
    with pytest.raises(RequestError, match="4 channels"):
        pipe("goldfish", guidance_channels=5, **FEW)


def test_the_learned_variance_can_be_sampled(folder: Path) -> None:
    drawn = []
    for variance in ("learned_range", "fixed_small"):
        pipe = sfumato.load(str(folder), optimize=False)
        pipe.model.scheduler = {"_class_name": "DDPMScheduler", "variance_type": variance, "clip_sample": False}
        drawn.append(pipe("goldfish", **FEW).latents)
    assert torch.isfinite(drawn[0]).all()
    assert (drawn[0] - drawn[1]).abs().max() > 0.01


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"width": 72}, "multiples of 16 pixels"),
        ({"clip_skip": 2}, "clip_skip means nothing"),
        ({"prompt_weighting": "comfy"}, "whose prompt is a class"),
        ({"refiner_start": 0.5}, "means nothing"),
    ],
)
def test_what_means_nothing_here_is_refused(pipe: Pipeline, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        pipe("goldfish", **FEW, **fields)


def test_other_sizes_and_batches(pipe: Pipeline) -> None:
    batch = pipe("goldfish", count=2, width=96, height=64, **FEW)
    [alone] = pipe("goldfish", width=96, height=64, steps=3, seed=5).pictures
    assert batch.pictures[1].image.size == (96, 64)
    assert np.abs(batch.pictures[1].pixels.astype(int) - alone.pixels.astype(int)).max() <= 1


def test_what_depends_on_the_times_alone_is_computed_once(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the timetable and without it the same picture; with it, the embedding runs for no step."""
    first = pipe("goldfish", **FEW).latents
    counted: list[int] = []
    embedding = next(pipe.model.network.blocks()).norm1.emb  # type: ignore[operator]
    hook = embedding.register_forward_hook(lambda *_: counted.append(1))
    again = pipe("goldfish", **FEW).latents
    assert len(counted) == 2  # a schedule for each of the two conditionings
    monkeypatch.setattr(Timetable, "at", lambda *_: None)
    without = pipe("goldfish", **FEW).latents
    hook.remove()
    assert len(counted) == 2 + 2 + 3
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    torch.testing.assert_close(without, first, rtol=1e-4, atol=1e-4)


def test_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(folder), "--steps", "2", "--seed", "1", "-o"]
    assert main(["generate", "goldfish", *words, str(tmp_path / "a.png")]) == 0
    assert main(["generate", "--class-label", "1", *words, str(tmp_path / "b.png")]) == 0
    a, b = (Picture.open(tmp_path / name) for name in ("a.png", "b.png"))
    assert (a.pixels == b.pixels).all()
    assert a.recipe["model"]["family"] == "dit"
    assert "Class 1 (goldfish)." in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "a.png"), "--verify"]) == 0
    assert main(["plan", "goldfish", "--model", str(folder)]) == 0
    assert main(["generate", "goldfsh", *words, str(tmp_path / "c.png")]) == 2
    assert not (tmp_path / "c.png").exists()


def test_it_can_be_drawn_within_a_limit(folder: Path, pipe: Pipeline) -> None:
    tight = sfumato.load(str(folder), max_memory="4GB")
    torch.testing.assert_close(tight("goldfish", **FEW).latents, pipe("goldfish", **FEW).latents, rtol=1e-3, atol=1e-3)


def test_an_autoencoder_of_other_latents_is_refused(tmp_path: Path) -> None:
    tiny.save_dit(tiny.dit(in_channels=8, out_channels=16), tmp_path)
    with pytest.raises(CheckpointError, match="4 channels, the denoiser's 8"):
        sfumato.load(str(tmp_path))
