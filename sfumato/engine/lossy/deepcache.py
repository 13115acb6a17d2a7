"""DeepCache: Ma, Fang and Wang, "DeepCache: accelerating diffusion models for free", CVPR 2024, section 3.3.

What the deep layers of a U-Net hand up changes little between neighbouring steps. It is computed at every N-th step and
used again at the steps between, which run the layers at the two ends only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from sfumato.core.errors import ConfigError
from sfumato.engine.denoiser import Call, Place, Shortcut
from sfumato.engine.lossy.types import Lossy
from sfumato.families.types import Model
from sfumato.models.unet import UNet
from sfumato.nn.deep import Deep
from sfumato.nn.rows import expand_rows


@dataclass(frozen=True)
class DeepCache(Lossy):
    """The paper's uniform schedule."""

    name: ClassVar = "deepcache"
    title: ClassVar = "computes the deep layers at every N-th step only"

    every: Annotated[int, "steps from one computation of the deep layers to the next"] = 3
    outer: Annotated[int, "residual blocks at the end of the way up that run at every step"] = 2

    def __post_init__(self) -> None:
        if self.every < 2 or self.outer < 1:
            raise ConfigError(f"deepcache:{self.every}:{self.outer}: every must be at least 2 and outer at least 1.")

    def unfit(self, model: Model) -> str:
        if not isinstance(model.network, UNet):
            return "it is made for U-Nets"
        blocks = model.network.blocks_up
        return "" if self.outer < blocks else f"of this U-Net's {blocks} blocks up at most {blocks - 1} are outer"

    def shortcut(self) -> Shortcut:
        return StepCache(self.every, self.outer)


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
