"""Captioned scenes of coloured shapes: "two small red circles left of a large blue star".

A scene is what its caption says and nothing more, so that a program can decide whether a picture shows it. Scene i of
a seed is a function of (seed, i): a data set of any length and size can be made again from two numbers.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sfumato.core import rng
from sfumato.core.errors import DataError, nearest

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 25, 30), "orange": (250, 130, 0), "yellow": (245, 215, 0), "green": (30, 160, 60),
    "blue": (40, 80, 220), "purple": (140, 50, 180),
}
"""sRGB. As light taken away from white, their directions lie at least 15 degrees apart."""

SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES: dict[str, tuple[float, float]] = {"small": (0.20, 0.23), "large": (0.34, 0.38)}
"""The range of the diameter, as a share of the picture's side."""

RELATIONS: dict[str, tuple[int, int]] = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
"""Of the first group to the second: (axis, sign), x to the right and y down."""

BACKGROUND = (255, 255, 255)
MOST = {"small": 3, "large": 2}
"""How many of a size fit beside another group."""

GAP = 0.07
"""Least distance between two shapes, and twice that from a shape to the edge, as a share of the side."""

_COUNTS = ("a", "two", "three")
_OVERSAMPLING = 8


@dataclass(frozen=True)
class Group:
    """Some equal shapes."""

    count: int
    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        plural = "" if self.count == 1 else "es" if self.shape.endswith("s") else "s"
        article = "an" if self.count == 1 and self.size[0] in "aeiou" else _COUNTS[self.count - 1]
        return f"{article} {self.size} {self.colour} {self.shape}{plural}"


@dataclass(frozen=True)
class Scene:
    """One group, or two of which the first stands in ``relation`` to the second."""

    groups: tuple[Group, ...]
    relation: str | None = None

    def __str__(self) -> str:
        """The caption."""
        return str(self.groups[0]) if self.relation is None else f"{self.groups[0]} {self.relation} {self.groups[1]}"


@dataclass(frozen=True)
class Placed:
    """One shape of a scene in its place; all lengths are shares of the picture's side."""

    shape: str
    colour: str
    x: float
    y: float
    diameter: float


def outline(shape: str) -> NDArray[np.float64]:
    """[points, 2] the polygon of a shape of diameter 1 about its centroid."""
    if shape == "square":
        return 0.43 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64)
    if shape == "cross":
        long, short = 0.5, 0.16
        corner = [(short, short), (short, long), (-short, long), (-short, short)]
        return np.array([(x * c - y * s, x * s + y * c) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))
                         for x, y in corner], np.float64)  # fmt: skip
    corners, radii = {"circle": (64, (0.5,)), "triangle": (3, (0.56,)), "star": (10, (0.56, 0.25))}[shape]
    angle = 2 * math.pi * np.arange(corners) / corners - math.pi / 2  # the first corner points up
    radius = np.resize(radii, corners)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def parse(caption: str) -> Scene:
    """The scene that a caption describes: the inverse of ``str(scene)``.

    Raises:
        DataError: the caption is not of this language; the message names the word.
    """
    text = " ".join(caption.casefold().split())
    for relation in RELATIONS:
        first, found, second = text.partition(f" {relation} ")
        if found:
            return Scene((_parse_group(first, caption), _parse_group(second, caption)), relation)
    return Scene((_parse_group(text, caption),))


def _parse_group(text: str, caption: str) -> Group:
    words = text.split()
    if len(words) != 4:
        raise DataError(
            f"{caption!r} is not a caption of shapes: {text!r} should read like 'two small red circles', and groups "
            f"are joined by one of {', '.join(RELATIONS)}."
        )
    count, size, colour, shape = words
    count = "a" if count in ("an", "one") else count
    singular = next((s for s in SHAPES if shape in (s, s + "s", s + "es")), shape)
    for word, known in ((count, _COUNTS), (size, SIZES), (colour, COLOURS), (singular, SHAPES)):
        if word not in known:
            raise DataError(f"{caption!r} is not a caption of shapes: there is no {word!r}{nearest(word, known)}")
    return Group(_COUNTS.index(count) + 1, size, colour, singular)


def scene(seed: int, index: int) -> Scene:
    """Scene ``index`` of a seed. A quarter have one group, the others two that differ in colour or in shape."""
    draw = iter(rng.uniform(rng.key(seed, "shapes", "scene"), 64, stream=index))

    def group() -> Group:
        size = _pick(next(draw), tuple(SIZES))
        count = 1 + int(next(draw) * MOST[size])
        return Group(count, size, _pick(next(draw), tuple(COLOURS)), _pick(next(draw), SHAPES))

    alone, relation = next(draw) < 0.25, _pick(next(draw), tuple(RELATIONS))
    first = group()
    if alone:
        return Scene((first,))
    second = group()
    while (first.colour, first.shape) == (second.colour, second.shape):
        second = replace(second, colour=_pick(next(draw), tuple(COLOURS)), shape=_pick(next(draw), SHAPES))
    return Scene((first, second), relation)


def _pick(share: float, options: tuple[str, ...]) -> str:
    return options[int(share * len(options))]


def unseen(seed: int, count: int, trained: set[str], start: int = 0) -> list[str]:
    """``count`` different captions of a seed that are not among those ``trained`` on.

    Args:
        start: the first index to look at; a data set made of indices below it is never repeated picture by picture.
    """
    found: dict[str, None] = {}
    index = start
    while len(found) < count:
        caption = str(scene(seed, index))
        if caption not in trained:
            found[caption] = None
        index += 1
    return list(found)


def place(scene: Scene, seed: int, index: int) -> list[Placed]:
    """Where the shapes of a scene stand: at random, apart from one another, and as the relation says."""
    draws = _uniforms(rng.key(seed, "shapes", "place"), index)
    while True:
        placed: list[Placed] = []
        for number, group in enumerate(scene.groups):
            low, high = [0.0, 0.0], [1.0, 1.0]
            if scene.relation is not None:
                axis, sign = RELATIONS[scene.relation]
                if (sign < 0) == (number == 0):
                    high[axis] = 0.5
                else:
                    low[axis] = 0.5
            for _ in range(group.count):
                found = _place_one(group, placed, low, high, draws)
                if found is not None:
                    placed.append(found)
        if len(placed) == sum(group.count for group in scene.groups):
            return placed


def _place_one(
    group: Group, others: list[Placed], low: list[float], high: list[float], draws: Iterator[float]
) -> Placed | None:
    """A place for one more shape within [low, high], or None after 50 attempts: the scene starts anew."""
    least, most = SIZES[group.size]
    for _ in range(50):
        diameter = least + (most - least) * next(draws)
        reach = 0.56 * diameter + GAP / 2
        x, y = (a + reach + (b - a - 2 * reach) * next(draws) for a, b in zip(low, high, strict=True))
        apart = all(math.hypot(x - o.x, y - o.y) >= reach + 0.56 * o.diameter + GAP / 2 for o in others)
        if apart:
            return Placed(group.shape, group.colour, x, y, diameter)
    return None


def _uniforms(seed: int, stream: int) -> Iterator[float]:
    """The numbers of a stream one after the other, without end."""
    count = 64
    start = 0
    while True:
        yield from rng.uniform(seed, count, stream)[start:]
        start, count = count, 4 * count


def paint(placed: list[Placed], size: int = 64) -> Image.Image:
    """The picture, ``size`` x ``size`` RGB, every edge anti-aliased by averaging 8 x 8 samples a pixel."""
    canvas = Image.new("RGB", (size * _OVERSAMPLING,) * 2, BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    for item in placed:
        points = (outline(item.shape) * item.diameter + (item.x, item.y)) * canvas.width
        # Pillow's polygons cover the pixels that their corners lie in: half a sample less is the true outline.
        pen.polygon([(float(x) - 0.5, float(y) - 0.5) for x, y in points], fill=COLOURS[item.colour])
    return canvas.reduce(_OVERSAMPLING)


def draw(scene: Scene, seed: int, index: int, size: int = 64) -> Image.Image:
    """Picture ``index`` of a seed, showing ``scene``."""
    return paint(place(scene, seed, index), size)


def write(folder: Path, count: int, size: int = 64, seed: int = 0) -> None:
    """A data set: ``images/1.png`` … and ``captions.txt``, line i for picture i (scene i - 1 of the seed).

    Raises:
        DataError: the folder already holds one, or the numbers are out of range.
    """
    if count < 1 or not 16 <= size <= 4096:
        raise DataError(f"{count} pictures of {size} pixels: at least 1 picture, of 16 to 4096 pixels.")
    if (folder / "images").exists() or (folder / "captions.txt").exists():
        raise DataError(f"{folder} already holds pictures; name another folder, or remove them.")
    (folder / "images").mkdir(parents=True)
    captions = []
    for index in range(count):
        drawn = scene(seed, index)
        draw(drawn, seed, index, size).save(folder / "images" / f"{index + 1}.png")
        captions.append(str(drawn))
    (folder / "captions.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
