"""Which items make up which step, and every number drawn for them: functions of (seed, epoch, place), never of state.

An epoch is a list of places, each of which shows one item. Whoever asks for step s is told the same places: any rank,
any number of workers, a resumed run. What is drawn for a place (its crop, its time, its noise) hangs on the seed, the
epoch and the place alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.core import rng
from sfumato.core.errors import ConfigError


class Place(NamedTuple):
    """One showing of one item.

    Attributes:
        epoch: from 0.
        number: of the place within its epoch, from 0.
        item: the index of the item in the data set.
    """

    epoch: int
    number: int
    item: int

    def uniform(self, seed: int, purpose: str, count: int = 1) -> NDArray[np.float64]:
        """``count`` numbers in [0, 1) for one purpose at this place."""
        return rng.uniform(rng.key(seed, purpose), count, stream=self._stream)

    def normal(self, seed: int, purpose: str, count: int) -> NDArray[np.float64]:
        """``count`` standard normal numbers for one purpose at this place."""
        return rng.normal(rng.key(seed, purpose), count, stream=self._stream)

    @property
    def _stream(self) -> int:
        return self.epoch << 40 | self.number


def normals(places: Sequence[Place], seed: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
    """[places, *shape] float32, row i drawn for place i: what its ``normal`` gives, for all of them in one go."""
    streams = np.array([place._stream for place in places], np.uint64)
    drawn = rng.normals(rng.key(seed, purpose), math.prod(shape), streams)
    return torch.from_numpy(drawn).float().reshape(len(places), *shape)


@dataclass(frozen=True)
class Order:
    """The order in which items are shown.

    All places of a batch show items of one group, so that buckets of different sizes can be stacked. Each group is
    shuffled anew in every epoch; its last batch is filled up with items of that group, drawn in a second shuffle: no
    item is left out, and every batch is full.

    Attributes:
        seed: other seeds, other orders.
        batch: places of one step, over all ranks and all accumulated parts.
        groups: the group of each item.
    """

    seed: int
    batch: int
    groups: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.groups:
            raise ConfigError("There is nothing to train on: the data set is empty.")
        if self.batch < 1:
            raise ConfigError(f"batch = {self.batch}: must be at least 1.")

    @staticmethod
    def of(count: int, seed: int, batch: int) -> "Order":
        """For items that all have one size."""
        return Order(seed, batch, (0,) * count)

    @cached_property
    def _members(self) -> tuple[NDArray[np.int64], ...]:
        groups = np.array(self.groups)
        return tuple(np.flatnonzero(groups == group) for group in np.unique(groups))

    @cached_property
    def steps_per_epoch(self) -> int:
        return sum(-(-len(members) // self.batch) for members in self._members)

    def places(self, step: int) -> list[Place]:
        """The ``batch`` places of step ``step``, counted from 0 over all epochs."""
        epoch, row = divmod(step, self.steps_per_epoch)
        items = _plan(self, epoch)[row]
        return [Place(epoch, row * self.batch + i, int(item)) for i, item in enumerate(items)]

    def part(self, step: int, part: int, parts: int) -> list[Place]:
        """Part ``part`` of ``parts`` equal ones of a step: what one rank sees in one accumulated forward pass."""
        if self.batch % parts:
            raise ConfigError(f"A batch of {self.batch} cannot be shared equally among {parts} parts.")
        size = self.batch // parts
        return self.places(step)[part * size : (part + 1) * size]


@lru_cache(maxsize=2)
def _plan(order: Order, epoch: int) -> NDArray[np.int64]:
    """[steps, batch] the items of every step of an epoch."""
    rows = []
    for group, members in enumerate(order._members):
        wanted = -(-len(members) // order.batch) * order.batch
        shuffles = [
            members[rng.permutation(rng.key(order.seed, "order", group, turn), len(members), stream=epoch)]
            for turn in range(-(-wanted // len(members)))
        ]
        rows.append(np.concatenate(shuffles)[:wanted].reshape(-1, order.batch))
    plan = np.concatenate(rows)
    if len(rows) == 1:
        return plan
    return plan[rng.permutation(rng.key(order.seed, "batches"), len(plan), stream=epoch)]


def held_out(keys: Sequence[str], share: float) -> list[bool]:
    """Which items are kept back from training, by their keys: adding or removing others changes none of it.

    Args:
        share: 0 to 1, the expected share.
    """
    return [rng.key("held out", key) < share * 2.0**64 for key in keys]
