"""Looking through a data set before it is trained on: every problem is listed with its file, none is skipped."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.core.errors import DataError, nearest
from sfumato.text.tokenizer import builtin
from sfumato.training.data import Dataset, Item, Problem
from sfumato.training.pictures import MAX_PIXELS, decode, header


class Kind(NamedTuple):
    """A class of problems. Training does not start on a data set with errors unless it is told to accept their kind."""

    error: bool
    meaning: str


KINDS = {
    "empty": Kind(True, "there is nothing in it"),
    "unreadable": Kind(True, "not a picture, truncated or damaged"),
    "too-large": Kind(True, f"more than {MAX_PIXELS:,} pixels; nothing was decoded"),
    "animated": Kind(True, "several frames; if accepted, the first is used"),
    "missing-caption": Kind(True, "a picture without a caption, where others have one"),
    "missing-picture": Kind(True, "a caption without a picture"),
    "long-caption": Kind(True, "a caption so long that it cannot be meant"),
    "stray-file": Kind(True, "a file that belongs to no item"),
    "empty-class": Kind(True, "a class without pictures"),
    "tiny": Kind(False, "smaller than the smallest side asked for; it would be enlarged"),
    "mode": Kind(False, "not stored as RGB or grey: converted, with the colours that Pillow gives it"),
    "cut-caption": Kind(False, "longer than the text encoder reads: the end is cut off"),
    "duplicate": Kind(False, "the same bytes as another picture"),
    "near-duplicate": Kind(False, "looks like another picture"),
}

LONGEST_CAPTION = 2000
"""Characters. The longest captions that people train on, written by other models, stay below it."""

_PLAIN_MODES = ("RGB", "L", "1")


@dataclass
class Report:
    """What ``examine`` found.

    Attributes:
        count: items looked at.
        problems: in the order of the items.
        sizes: (width, height) to how many pictures have it.
        tokens: caption length in tokens, start and end not counted, to how many captions have it.
    """

    count: int
    problems: list[Problem] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)

    def errors(self, accept: Iterable[str] = ()) -> list[Problem]:
        """The problems that keep training from starting, but for the accepted kinds.

        Raises:
            DataError: a kind that does not exist.
        """
        accepted = set(accept)
        for kind in accepted:
            if kind not in KINDS:
                raise DataError(f"There is no kind of problem called {kind!r}{nearest(kind, KINDS)}")
        return [p for p in self.problems if KINDS[p.kind].error and p.kind not in accepted]

    def refuse(self, where: str, accept: Iterable[str] = ()) -> None:
        """Raise if there are errors, naming the first ten.

        Raises:
            DataError: there are.
        """
        found = self.errors(accept)
        if found:
            listed = "\n".join(f"  {_shown(p)} [{p.kind}]" for p in found[:10])
            more = f"\n  … and {len(found) - 10:,} more" if len(found) > 10 else ""
            kinds = ", ".join(f'"{k}"' for k in dict.fromkeys(p.kind for p in found))
            raise DataError(
                f"{where} has {len(found):,} problems; training does not start on it:\n{listed}{more}\n"
                f"Mend them (`sfumato data check` lists all), or accept their kinds: accept = [{kinds}]."
            )


def _shown(problem: Problem) -> str:
    """On one line, whatever a file is called."""
    key = problem.key if problem.key.isprintable() else repr(problem.key)
    return f"{key}: {problem.detail}"


class _Look(NamedTuple):
    """What is kept of one picture that was looked at."""

    problems: list[Problem]
    size: tuple[int, int] | None = None
    sha256: bytes = b""
    thumbnail: NDArray[np.int16] = np.zeros(192, np.int16)  # 8 x 8 x 3
    gradient: NDArray[np.bool_] = np.zeros(256, np.bool_)  # is each of 16 x 16 places brighter than its left neighbour?


def examine(
    dataset: Dataset, *, smallest: int = 32, longest: int = 75, tokens: Callable[[str], int] | None = None,
    workers: int = 4, progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Read every picture and caption of a data set once.

    Args:
        smallest: pixels; a picture with a shorter side is ``tiny``.
        longest: tokens that the text encoder reads, start and end not counted.
        tokens: counts a caption's tokens, start and end left out; CLIP's own tokenizer does unless another is given.
        progress: is told how many items are done.
    """
    report = Report(len(dataset), list(dataset.problems()))
    if not len(dataset):
        report.problems.append(Problem("empty", "the data set", "it has no picture"))
    looks: dict[str, _Look] = {}
    captions: list[tuple[str, str | None]] = []

    def one(index: int) -> tuple[Item | None, _Look]:
        try:
            item = dataset.item(index)
        except (DataError, OSError) as problem:
            return None, _Look([Problem("unreadable", f"item {index}", str(problem))])
        return item, _look(item, smallest)

    with ThreadPoolExecutor(workers) as pool:
        for done, (item, look) in enumerate(pool.map(one, range(len(dataset))), 1):
            report.problems += look.problems
            if look.size:
                report.sizes[look.size] += 1
            if item is not None:
                captions += [(item.key, text) for text in (item.caption, *item.others)]
                looks[item.key] = look
            progress(done)
    count = tokens or (lambda caption: len(builtin().encode(caption)))
    report.problems += _judge_captions(captions, count, longest, report.tokens)
    report.problems += _duplicates({k: v for k, v in looks.items() if v.sha256})
    return report


def _look(item: Item, smallest: int) -> _Look:
    found: list[Problem] = []
    try:
        about = header(item.picture)
    except DataError as problem:
        return _Look([Problem("unreadable", item.key, str(problem))])
    size = (about.width, about.height)
    if about.width * about.height > MAX_PIXELS:
        detail = f"{about.width:,} x {about.height:,} pixels; the limit is {MAX_PIXELS:,} in all"
        return _Look([Problem("too-large", item.key, detail)], size)
    if about.frames > 1:
        found.append(Problem("animated", item.key, f"{about.format} of {about.frames} frames"))
    if about.mode not in _PLAIN_MODES:
        found.append(Problem("mode", item.key, f"{about.format} stored as {about.mode}"))
    if min(size) < smallest:
        found.append(Problem("tiny", item.key, f"{about.width} x {about.height} pixels"))
    try:
        picture = decode(item.picture)
        content = item.picture if isinstance(item.picture, bytes) else item.picture.read_bytes()
    except (DataError, OSError) as problem:
        return _Look([*found, Problem("unreadable", item.key, str(problem))], size)
    grey = np.asarray(picture.convert("L").resize((17, 16), Image.Resampling.BOX), np.int16)
    thumbnail = np.asarray(picture.resize((8, 8), Image.Resampling.BOX), np.int16).reshape(-1)
    return _Look(found, size, hashlib.sha256(content).digest(), thumbnail, (grey[:, 1:] > grey[:, :-1]).reshape(-1))


def _judge_captions(
    captions: list[tuple[str, str | None]], tokens: Callable[[str], int], longest: int, lengths: Counter[int]
) -> list[Problem]:
    found = []
    some = any(caption for _, caption in captions)
    for key, caption in captions:
        if not caption:
            if some:
                detail = "the caption is empty" if caption == "" else "there is no caption for it"
                found.append(Problem("missing-caption", key, detail))
            continue
        if len(caption) > LONGEST_CAPTION:
            detail = f"a caption of {len(caption):,} characters; the limit is {LONGEST_CAPTION:,}"
            found.append(Problem("long-caption", key, detail))
        count = tokens(caption)
        lengths[count] += 1
        if count > longest:
            found.append(Problem("cut-caption", key, f"{count:,} tokens, of which {longest} are read"))
    return found


def _duplicates(looks: dict[str, _Look]) -> list[Problem]:
    """Equal bytes; and pictures that are alike when they are small, whatever their size and format."""
    found = []
    first: dict[bytes, str] = {}
    for key, look in looks.items():
        if first.setdefault(look.sha256, key) != key:
            found.append(Problem("duplicate", key, f"the same bytes as {first[look.sha256]}"))
    keys = list(first.values())
    if len(keys) < 2:
        return found
    small = np.stack([looks[key].thumbnail for key in keys])  # [N, 192]
    fine = np.stack([looks[key].gradient for key in keys])  # [N, 256]
    # Alike pictures differ by at most _NEAR in every place, so in their means: only neighbours in that order compare.
    means = small.mean(-1)
    order = np.argsort(means, kind="stable")
    small, fine, means = small[order], fine[order], means[order]
    ends = np.searchsorted(means, means + _NEAR, side="right")
    like: dict[int, int] = {}
    for i, end in enumerate(ends):
        alike = np.abs(small[i + 1 : end] - small[i]).max(-1, initial=0) <= _NEAR
        alike[alike] &= (fine[i + 1 : end][alike] != fine[i]).sum(-1) <= _NEAR_BITS
        for j in np.flatnonzero(alike) + i + 1:
            older, newer = sorted((int(order[i]), int(order[j])))
            like[newer] = min(older, like.get(newer, older))
    return found + [Problem("near-duplicate", keys[n], f"looks like {keys[o]}") for n, o in sorted(like.items())]


_NEAR, _NEAR_BITS = 10, 7
"""Alike: no place of 8 x 8 differs by more than 10 of 255 in a colour, at most 7 of 16 x 16 brightness steps differ."""


def histogram(counts: Counter[int], bins: int = 12) -> list[tuple[int, int, int]]:
    """(first, last, how many) of equal ranges that cover all values."""
    if not counts:
        return []
    low, high = min(counts), max(counts)
    width = max(1, -(-(high - low + 1) // bins))
    edges = range(low, high + 1, width)
    return [(e, min(e + width - 1, high), sum(n for v, n in counts.items() if e <= v < e + width)) for e in edges]


def summary(report: Report, shown: int | None = None) -> str:
    """The report as text. ``shown`` limits the problems listed of each kind; None lists all."""
    by_kind: dict[str, list[Problem]] = defaultdict(list)
    for problem in report.problems:
        by_kind[problem.kind].append(problem)
    lines = [f"{report.count:,} items"]
    for kind in (k for k in KINDS if k in by_kind):
        found = by_kind[kind]
        lines.append(f"\n{'error' if KINDS[kind].error else 'note'}: {kind} ({len(found):,}): {KINDS[kind].meaning}")
        lines += [f"  {_shown(p)}" for p in found[:shown]]
        if shown is not None and len(found) > shown:
            lines.append(f"  … and {len(found) - shown:,} more")
    sides: Counter[int] = Counter()
    for (width, height), count in report.sizes.items():
        sides[min(width, height)] += count
    for title, counts in (("shorter side in pixels", sides), ("caption length in tokens", report.tokens)):
        rows = histogram(counts)
        if rows:
            most = max(count for *_, count in rows)
            lines.append(f"\n{title}")
            lines += [f"  {f'{a}-{b}' if a != b else a:>12} {n:>9,} {'#' * -(-40 * n // most)}" for a, b, n in rows]
    return "\n".join(lines)
