"""Scenes of shapes: the caption says what is drawn, and the checker agrees on that and on nothing else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sfumato.core.errors import DataError
from sfumato.training import shapes
from sfumato.training.shapes_checker import UNCLEAR, check, look, mean

TWO = "two small red circles left of a large blue star"


@pytest.mark.parametrize("index", range(40))
def test_captions_are_read_back(index: int) -> None:
    scene = shapes.scene(3, index)
    assert shapes.parse(str(scene)) == scene


@pytest.mark.parametrize(
    ("caption", "word"),
    [("two small mauve circles", "mauve"), ("a red circle", "a red circle"), ("a tiny red circle", "tiny"),
     ("six small red circles", "six"), ("a small red circle near a small red star", "small red star")],
)  # fmt: skip
def test_other_captions_are_refused(caption: str, word: str) -> None:
    with pytest.raises(DataError, match=word):
        shapes.parse(caption)


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    first = [np.asarray(shapes.draw(shapes.scene(5, i), 5, i, 32)) for i in range(4)]
    again = [np.asarray(shapes.draw(shapes.scene(5, i), 5, i, 32)) for i in reversed(range(4))]
    assert all(np.array_equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert not np.array_equal(first[0], np.asarray(shapes.draw(shapes.scene(5, 0), 6, 0, 32)))


def test_every_word_of_the_language_occurs() -> None:
    words = set(" ".join(str(shapes.scene(0, i)) for i in range(300)).split())
    assert words >= {"a", "two", "three", *shapes.COLOURS, *shapes.SIZES, *shapes.SHAPES, "left", "right", "above"}


def exact(count: int, size: int) -> None:
    for i in range(count):
        scene = shapes.scene(1, i)
        score = check(shapes.draw(scene, 1, i, size), scene)
        assert score.everything == 1.0, (i, str(scene), score)


@pytest.mark.parametrize("size", [32, 64])
def test_the_checker_is_exact_on_its_own_drawings(size: int) -> None:
    exact(40, size)


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64, 128])
def test_the_checker_is_exact_on_a_thousand_drawings(size: int) -> None:
    exact(1000, size)


def blurred(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(1.5))


def noisy(picture: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 25, (*picture.size, 3))
    return Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))


def pale(picture: Image.Image) -> Image.Image:
    return Image.blend(Image.new("RGB", picture.size, (245, 245, 240)), picture, 0.7)


def coarse(picture: Image.Image) -> Image.Image:
    return picture.reduce(2).resize(picture.size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("damage", [blurred, noisy, pale, coarse])
def test_the_checker_sees_through_damage(damage: object) -> None:
    assert callable(damage)
    drawn = [(shapes.scene(2, i), damage(shapes.draw(shapes.scene(2, i), 2, i))) for i in range(25)]
    assert mean([check(picture, scene) for scene, picture in drawn])["everything"] == 1.0


def drawn(caption: str) -> list[shapes.Placed]:
    return shapes.place(shapes.parse(caption), 0, 0)


def test_a_wrong_colour_costs_colour_alone() -> None:
    items = [replace(p, colour="green") if p.colour == "blue" else p for p in drawn(TWO)]
    score = check(shapes.paint(items), TWO)
    assert (score.colour, score.shape, score.size, score.count, score.everything) == (2 / 3, 1, 1, 1, 0)


def test_a_wrong_shape_costs_shape_alone() -> None:
    items = [replace(p, shape="square") if p.shape == "circle" else p for p in drawn(TWO)]
    score = check(shapes.paint(items), TWO)
    assert (score.colour, score.shape, score.size, score.count, score.everything) == (1, 1 / 3, 1, 1, 0)


def test_a_wrong_size_costs_size_alone() -> None:
    items = [replace(p, diameter=0.22) for p in drawn(TWO)]
    score = check(shapes.paint(items), TWO)
    assert (score.colour, score.shape, score.size, score.count, score.relation) == (1, 1, 2 / 3, 1, 1)


def test_a_missing_shape_costs_count_and_its_own_share() -> None:
    score = check(shapes.paint(drawn(TWO)[1:]), TWO)
    assert (score.colour, score.shape, score.size, score.count, score.relation) == (2 / 3, 2 / 3, 2 / 3, 0, 1)


def test_the_mirrored_picture_breaks_the_relation_alone() -> None:
    mirrored = shapes.paint(drawn(TWO)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    score = check(mirrored, TWO)
    assert (score.colour, score.shape, score.size, score.count, score.relation) == (1, 1, 1, 1, 0)
    assert check(mirrored, TWO.replace("left", "right")).everything == 1


def test_properties_bound_to_the_wrong_shapes_are_seen() -> None:
    swapped = shapes.paint(drawn("two small blue circles left of a large red star"))
    assert check(swapped, TWO).everything == 0
    assert check(swapped, TWO).colour + check(swapped, TWO).shape < 2


def test_nothing_and_confetti_score_nothing() -> None:
    assert set(vars(check(Image.new("RGB", (64, 64), "white"), TWO)).values()) == {0.0}
    confetti = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    assert check(confetti, TWO).everything == 0


def test_a_blot_is_no_shape() -> None:
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste((215, 25, 30), (10, 20, 50, 28))
    assert [s.shape for s in look(picture)] == [UNCLEAR]


def test_touching_shapes_of_two_colours_are_two() -> None:
    first, second = shapes.Placed("circle", "red", 0.3, 0.5, 0.36), shapes.Placed("square", "blue", 0.63, 0.5, 0.36)
    assert [(s.colour, s.shape) for s in look(shapes.paint([first, second]))] == [("red", "circle"), ("blue", "square")]


def test_unseen_captions_were_not_trained_on() -> None:
    trained = {str(shapes.scene(0, i)) for i in range(200)}
    held_out = shapes.unseen(0, 50, trained)
    assert len(set(held_out)) == 50
    assert not trained & set(held_out)


def test_write_makes_a_data_set(tmp_path: Path) -> None:
    shapes.write(tmp_path / "a", 5, 32, seed=4)
    assert sorted(p.name for p in (tmp_path / "a/images").iterdir()) == [f"{i}.png" for i in range(1, 6)]
    captions = (tmp_path / "a/captions.txt").read_text().splitlines()
    assert captions == [str(shapes.scene(4, i)) for i in range(5)]
    assert check(Image.open(tmp_path / "a/images/5.png"), captions[4]).everything == 1
    with pytest.raises(DataError, match="already holds"):
        shapes.write(tmp_path / "a", 5)
