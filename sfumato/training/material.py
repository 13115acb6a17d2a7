"""A data set as a stage sees it: checked, shared out to sizes, some of it kept back."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from sfumato.core.errors import DataError
from sfumato.training.buckets import Size, buckets, likest
from sfumato.training.check import examine
from sfumato.training.framing import Framed, frame, to_network
from sfumato.training.order import Order, Place, held_out
from sfumato.training.pictures import decode, header
from sfumato.training.readers import open_dataset
from sfumato.training.recipe import DataConfig

KEPT_BYTES = 2**31
"""Decoded pictures that stay in memory, in each process that loads them."""


class Material:
    """See above.

    Attributes:
        captions: of every item the first, "" where it has none.
        others: of every item, its other captions.
        labels: of every item, in data sets with classes.
        training, held_out: indices of items.

    Raises:
        DataError: the data set has errors that were not accepted, or nothing is left to train on.
    """

    def __init__(self, config: DataConfig, seed: int, report: Callable[[str], None] = lambda text: None) -> None:
        self.config, self.seed, self.report = config, seed, report
        self._kept: dict[int, Framed] = {}
        self.dataset = open_dataset(config.where, config.layout, config.image_column, config.caption_column)
        if config.check:
            found = examine(self.dataset, smallest=1)
            found.refuse(config.where, config.accept)
            notes = f", {len(found.problems):,} notes: `sfumato data check` lists them" if found.problems else ""
            report(f"{len(self.dataset):,} items{notes}")
        self.keys: list[str] = []
        self.captions: list[str] = []
        self.others: list[tuple[str, ...]] = []
        self.labels: list[int | None] = []
        usable: list[int] = []
        for index in range(len(self.dataset)):
            item = self.dataset.item(index)
            self.keys.append(item.key)
            self.captions.append(item.caption or "")
            self.others.append(item.others)
            self.labels.append(item.label)
            try:
                header(item.picture)
            except DataError:
                continue  # the check has listed it, and its kind was accepted
            usable.append(index)
        back = dict(zip(self.keys, held_out(self.keys, config.held_out), strict=True))
        self.training = [i for i in usable if not back[self.keys[i]]]
        self.held_out = [i for i in usable if back[self.keys[i]]]
        if not self.training:
            raise DataError(f"{config.where}: nothing is left to train on.")

    def caption(self, index: int, place: Place | None = None) -> str:
        """What is said of an item: the first caption, or the one drawn for the place where it has several."""
        first, others = self.captions[index], self.others[index]
        if place is None or not others:
            return first
        share = 1 / (1 + len(others)) if self.config.first_caption is None else self.config.first_caption
        drawn, which = place.uniform(self.seed, "caption", 2)
        return first if drawn < share else others[int(which * len(others))]

    def texts(self, items: Iterable[int] | None = None) -> list[str]:
        """All captions of some items, or of all, in their order; none is empty."""
        chosen = range(len(self.captions)) if items is None else items
        return [text for i in chosen for text in (self.captions[i], *self.others[i]) if text]

    def flipping(self, chance: float) -> "Material":
        """The same data, whose pictures are mirrored with another chance; what was decoded is shared."""
        other = copy(self)
        other.config = replace(self.config, framing=replace(self.config.framing, flip=chance))
        return other

    @property
    def classes(self) -> tuple[str, ...]:
        return self.dataset.classes

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """The sizes that pictures are brought to."""
        if not self.config.buckets:
            return ((self.config.resolution, self.config.resolution),)
        return buckets(self.config.resolution, self.config.bucket_step)

    @cached_property
    def groups(self) -> dict[int, int]:
        """Item to the number of its size."""
        if not self.config.buckets:
            return dict.fromkeys([*self.training, *self.held_out], 0)
        found = {}
        for index in (*self.training, *self.held_out):
            about = header(self.dataset.item(index).picture)
            found[index] = likest((about.width, about.height), self.sizes)
        return found

    def order(self, batch: int) -> Order:
        """Of the training items; a place's ``item`` counts within ``training``."""
        return Order(self.seed, batch, tuple(self.groups[i] for i in self.training))

    def by_size(self) -> list[list[int]]:
        """All items, those of one size together."""
        lists = defaultdict(list)
        for index in (*self.training, *self.held_out):
            lists[self.groups[index]].append(index)
        return [lists[group] for group in sorted(lists)]

    def batches(self, items: Sequence[int], size: int = 32) -> Iterator[list[int]]:
        """Items in parts of at most ``size`` whose pictures have one size."""
        lists = defaultdict(list)
        for index in items:
            lists[self.groups[index]].append(index)
        for members in lists.values():
            for start in range(0, len(members), size):
                yield members[start : start + size]

    def pixels(self, items: Sequence[int]) -> Tensor:
        """[B, 3, H, W] in [-1, 1] items of one size, cropped at the centre and not flipped."""
        return to_network(torch.stack([self.framed(i).pixels for i in items]))

    def content(self, index: int) -> str:
        """A hash of an item's encoded picture and of the size it is brought to."""
        picture = self.dataset.item(index).picture
        data = picture if isinstance(picture, bytes) else picture.read_bytes()
        return hashlib.sha256(data).hexdigest() + repr(self.sizes[self.groups[index]])

    def picture(self, index: int) -> Image.Image:
        """An item's picture as it is stored, in RGB."""
        item = self.dataset.item(index)
        try:
            return decode(item.picture)
        except DataError as problem:
            raise DataError(f"{item.key}: {problem}.") from None

    def framed(self, index: int, place: Place | None = None) -> Framed:
        """Brought to its size: as drawn for the place, or cropped at the centre and not flipped."""
        if self.config.framing.crop == "random" and place is not None:
            size = self.sizes[self.groups[index]]
            return self.config.framing.frame(self.picture(index), size, self.seed, place)
        kept = self._centred(index)
        if place is None or not self.config.framing.flips(self.seed, place):
            return kept
        return kept._replace(pixels=kept.pixels.flip(-1), flipped=True)

    def _centred(self, index: int) -> Framed:
        """An item cropped at the centre; decoded and scaled once, as far as ``KEPT_BYTES`` go."""
        if index in self._kept:
            return self._kept[index]
        found = frame(self.picture(index), self.sizes[self.groups[index]])
        if (len(self._kept) + 1) * found.pixels.numel() <= KEPT_BYTES:
            self._kept[index] = found
        return found
