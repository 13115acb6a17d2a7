"""What a network's inner layers give, computed at every N-th step and used again at the steps between."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sfumato.engine.denoiser import Call, Place
from sfumato.nn.deep import Deep
from sfumato.nn.rows import expand_rows


@dataclass
class StepCache:
    """The shortcut: what the inner layers of one job's network gave when they ran last.

    Attributes:
        asked: forwards so far.
        kept: by the names of the conditionings, [B, ...] each.
    """

    every: int
    outer: int
    asked: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def kind(self, names: Sequence[str]) -> tuple[int, bool]:
        """Whether the inner layers run now: at every so many steps, and where a conditioning is wanted anew."""
        return self.outer, self.asked % self.every == 0 or not self.kept.keys() >= set(names)

    def around(self, network: Call, shortcuts: Sequence[Any], places: Sequence[Place]) -> Call:
        _, runs = self.kind([place.name for place in places if place.ask == 0])
        for shortcut in shortcuts:
            shortcut.asked += 1

        def call(x: Tensor, t: Any, conditioning: Any, **more: Any) -> Tensor:
            if not runs:
                value = torch.cat([shortcuts[place.ask].kept[place.name] for place in places])
                return network(x, t, conditioning, deep=Deep(self.outer, value), **more)
            deep = Deep(self.outer)
            output = network(x, t, conditioning, deep=deep, **more)
            assert deep.value is not None  # the network put it there
            value = expand_rows(deep.value, sum(place.rows for place in places))
            for place, rows in zip(places, torch.split(value, [place.rows for place in places]), strict=True):
                shortcuts[place.ask].kept[place.name] = rows
            return output

        return call
