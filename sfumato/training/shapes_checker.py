"""Does a picture show what a caption of shapes says? Colour, shape, size, count and relation, decided by program.

The pictures may be imperfect: drawn by a model, blurred, noisy, pale. What stands out from the background is cut into
connected patches; each patch has a colour (by the direction of the light that it takes away), a shape (the nearest
template of equal area and centre, at any of several blurs), a size (from its area) and a place.
"""

from dataclasses import asdict, dataclass
from functools import cache
from itertools import permutations
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sfumato.training.shapes import BACKGROUND, COLOURS, RELATIONS, SHAPES, SIZES, Scene, outline, parse

Array = NDArray[np.float64]

UNCLEAR = "unclear"
"""The shape of a patch that is like no shape."""

_BOUNDARY = (SIZES["small"][1] * SIZES["large"][0]) ** 0.5
_LEAST_AREA = 0.004
"""Patches below this share of the picture are dirt: half the area of the smallest star."""

_GRID, _REACH = 25, 1.3
"""Patches are compared on 25 x 25 points, 1.3 times the root of their area to each side of their centre."""

_BLURS = (0.02, 0.06, 0.10, 0.14, 0.18, 0.22, 0.26)
_SCALES = (0.92, 1.0, 1.08)
_LIKENESS = 0.94
"""Least correlation with the best template.

Blurred and noisy true shapes stay above 0.98; ellipses and bars of 3:2 do not reach it.
"""

_NAMES = tuple(COLOURS)
_INK = (np.array(BACKGROUND, np.float64) - np.array(list(COLOURS.values()), np.float64)) / 255
"""[colours, 3] the light that each colour takes away from the background."""


@dataclass(frozen=True)
class Seen:
    """One patch of a picture; lengths are shares of the side."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    diameter: float
    likeness: float


@dataclass(frozen=True)
class Score:
    """Each from 0 to 1: the share of the shapes asked for that were drawn with that property.

    ``count`` is 1 if as many shapes were drawn as were asked for. ``relation`` is 1 if every recognised shape of the
    first group stands as said to every one of the second; None where the caption has no relation. ``everything`` is 1
    if nothing is wrong at all.
    """

    colour: float
    shape: float
    size: float
    count: float
    relation: float | None
    everything: float


def look(picture: Image.Image) -> list[Seen]:
    """The shapes in a square picture of at least 16 pixels, from the top left in reading order of their centres."""
    pixels = np.asarray(picture.convert("RGB"), np.float64) / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    ink = _smooth(np.median(border, axis=0) - pixels)  # [H, W, 3] light taken away
    share, label = _nearest_colour(ink)
    mask = share > 0.4
    patches = []
    for patch in _connected(mask):
        patches += _split(patch, share, label)
    scale = 1.0 / pixels.shape[0]
    least = _LEAST_AREA / scale**2
    kept = [p for p in patches if share[p].sum() >= least]
    taken = np.any(kept, axis=0) if kept else mask
    seen = [_describe(patch, ink, taken & ~patch, scale) for patch in kept]
    return sorted(seen, key=lambda s: (s.y, s.x))


def check(picture: Image.Image, caption: str | Scene) -> Score:
    """How far ``picture`` shows ``caption``.

    Raises:
        DataError: the caption is not of the language of ``shapes``.
    """
    scene = parse(caption) if isinstance(caption, str) else caption
    wanted = [(number, group) for number, group in enumerate(scene.groups) for _ in range(group.count)]
    seen = look(picture)
    groups = [(group.colour, group.shape, group.size) for _, group in wanted]
    pairs = _assign(groups, [(s.colour, s.shape, s.size) for s in seen])
    hits = [[seen[j].__dict__[name] == getattr(wanted[i][1], name) for i, j in pairs]
            for name in ("colour", "shape", "size")]  # fmt: skip
    colour, shape, size = (sum(hit) / len(wanted) for hit in hits)
    count = float(len(seen) == len(wanted))
    relation = None
    if scene.relation is not None:
        axis, sign = RELATIONS[scene.relation]
        places: tuple[list[float], list[float]] = ([], [])
        for (i, j), right_colour, right_shape in zip(pairs, hits[0], hits[1], strict=True):
            if right_colour or right_shape:
                places[wanted[i][0]].append(sign * (seen[j].x, seen[j].y)[axis])
        relation = float(all(places) and min(places[0]) > max(places[1]))
    everything = float(min(colour, shape, size, count, 1.0 if relation is None else relation) == 1.0)
    return Score(colour, shape, size, count, relation, everything)


def mean(scores: list[Score]) -> dict[str, float]:
    """The mean of each property over many pictures; of ``relation``, over those whose caption has one."""
    columns = {name: [asdict(s)[name] for s in scores] for name in Score.__dataclass_fields__}
    return {name: fmean(v for v in column if v is not None) for name, column in columns.items()
            if any(v is not None for v in column)}  # fmt: skip


def _smooth(ink: Array) -> Array:
    """A light blur (1 2 1) against single-pixel noise."""
    for axis in (0, 1):
        padded = np.pad(ink, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        before, after = np.delete(padded, (-1, -2), axis), np.delete(padded, (0, 1), axis)
        ink = ink * 0.5 + (before + after) * 0.25
    return ink


def _nearest_colour(ink: Array) -> tuple[Array, NDArray[np.int64]]:
    """[..., 3] light taken away -> [...] the share of that colour's full ink, and [...] the colour's number."""
    norms = (_INK**2).sum(-1)
    share = ink @ _INK.T / norms  # [..., colours]: least squares for each colour alone
    error = ((ink[..., None, :] - share.clip(0, 1.3)[..., None] * _INK) ** 2).sum(-1)
    label = error.argmin(-1)
    return np.take_along_axis(share, label[..., None], -1)[..., 0], label


def _connected(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The 4-connected parts of a mask, each as a mask."""
    left = mask.copy()
    height, width = mask.shape
    parts = []
    for start in zip(*np.nonzero(mask), strict=True):
        if not left[start]:
            continue
        part = np.zeros_like(mask)
        stack = [(int(start[0]), int(start[1]))]
        left[start] = False
        while stack:
            y, x = stack.pop()
            part[y, x] = True
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= v < height and 0 <= u < width and left[v, u]:
                    left[v, u] = False
                    stack.append((v, u))
        parts.append(part)
    return parts


def _split(patch: NDArray[np.bool_], share: Array, label: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    """A patch of two colours is two shapes that touch; a rim of another colour is not."""
    masses = {int(c): float(share[patch & (label == c)].sum()) for c in np.unique(label[patch])}
    major = [c for c, mass in masses.items() if mass >= 0.25 * sum(masses.values())]
    if len(major) < 2:
        return [patch]
    parts = [part for c in major for part in _connected(patch & (label == c))]
    return parts if sum(share[p].sum() >= 0.2 * share[patch].sum() for p in parts) > 1 else [patch]


def _describe(patch: NDArray[np.bool_], ink: Array, others: NDArray[np.bool_], scale: float) -> Seen:
    core = patch & (np.linalg.norm(ink, axis=-1) >= np.quantile(np.linalg.norm(ink[patch], axis=-1), 0.6))
    full = ink[core].mean(0)  # [3] this patch's own full ink, however pale
    directions = _INK / np.linalg.norm(_INK, axis=-1, keepdims=True)
    colour = int((directions @ full).argmax())
    near = _grow(patch, max(2, round(0.035 / scale))) & ~_grow(others, 1)
    cover = np.where(near, ink @ full / (full @ full), 0.0)  # [H, W] how much of each pixel the shape covers
    area = cover.sum()
    ys, xs = np.mgrid[: ink.shape[0], : ink.shape[1]] + 0.5
    y, x = (cover * ys).sum() / area, (cover * xs).sum() / area
    offsets = np.linspace(-_REACH, _REACH, _GRID) * area**0.5
    view = _sample(cover, y + offsets, x + offsets)
    templates = _templates()  # [shapes, variants, grid^2], each of zero mean and norm 1
    view = view - view.mean()
    likeness = (templates @ (view / np.linalg.norm(view)).reshape(-1)).max(-1)
    best = int(likeness.argmax())
    diameter = float((area / _area(SHAPES[best])) ** 0.5) * scale
    shape = SHAPES[best] if likeness[best] >= _LIKENESS else UNCLEAR
    size = "small" if diameter < _BOUNDARY else "large"
    return Seen(_NAMES[colour], shape, size, float(x) * scale, float(y) * scale, diameter, float(likeness[best]))


def _grow(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """That many pixels more to each of the four sides."""
    for _ in range(pixels):
        padded = np.pad(mask, 1)
        mask = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


def _sample(image: Array, ys: Array, xs: Array) -> Array:
    """Bilinear values of an image at the crossings of rows ``ys`` and columns ``xs`` (pixel edges: whole numbers)."""

    def weights(at: Array, length: int) -> Array:
        centres = np.arange(length) + 0.5
        near: Array = np.maximum(1 - np.abs(at[:, None] - centres), 0.0)  # [points, length]
        return near

    values: Array = weights(ys, image.shape[0]) @ image @ weights(xs, image.shape[1]).T
    return values


def _area(shape: str) -> float:
    """Of the outline of diameter 1 (the shoelace formula)."""
    x, y = outline(shape).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


@cache
def _templates() -> Array:
    """[shapes, blurs x scales, grid^2] every shape at unit area, blurred and scaled, of zero mean and norm 1."""
    fine = 8 * _GRID
    offsets = np.linspace(-_REACH, _REACH, _GRID)
    step = 2 * _REACH / fine
    centres = (np.arange(fine) + 0.5) * step - _REACH
    found = []
    for shape in SHAPES:
        variants = []
        for blur in _BLURS:
            kernel = np.exp(-0.5 * ((offsets[:, None] - centres) / blur) ** 2)  # [grid, fine] Gaussian, sampled
            kernel /= kernel.sum(-1, keepdims=True)
            for size in _SCALES:
                canvas = Image.new("L", (fine, fine))
                points = (outline(shape) * size / _area(shape) ** 0.5 + _REACH) / step
                ImageDraw.Draw(canvas).polygon([(float(x) - 0.5, float(y) - 0.5) for x, y in points], fill=255)
                view = kernel @ np.asarray(canvas, np.float64) @ kernel.T
                view -= view.mean()
                variants.append((view / np.linalg.norm(view)).reshape(-1))
        found.append(variants)
    return np.array(found)


def _assign(wanted: list[tuple[str, str, str]], seen: list[tuple[str, str, str]]) -> list[tuple[int, int]]:
    """Pairs (wanted, seen) that agree most: in colour first, then in shape, then in size.

    Equal ones are interchangeable, so that only orders that differ are tried: at most 6 wanted shapes.
    """
    worth = np.array([[100 * (w[0] == s[0]) + 10 * (w[1] == s[1]) + (w[2] == s[2]) for s in seen] for w in wanted])
    if not seen:
        return []
    # More patches than that are confetti: those of the least worth to anyone cannot be part of the best assignment.
    keep = np.argsort(-worth.max(0), kind="stable")[: len(wanted) + 2]
    short, long = sorted((len(wanted), len(keep)))
    best, pairs = -1, []
    for order in permutations(range(long), short):
        chosen = list(zip(range(short), order, strict=True))
        if len(wanted) > len(keep):
            chosen = [(j, i) for i, j in chosen]
        total = int(sum(worth[i, keep[j]] for i, j in chosen))
        if total > best:
            best, pairs = total, [(i, int(keep[j])) for i, j in chosen]
    return pairs
