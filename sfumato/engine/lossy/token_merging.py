"""Fewer tokens attend to each other at the finest level; see ``nn.merging``."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from sfumato.engine.denoiser import Call, Place, Shortcut
from sfumato.engine.lossy.types import Lossy
from sfumato.families.types import Model
from sfumato.models.unet import UNet
from sfumato.nn.merging import Merging, merging


@dataclass(frozen=True)
class TokenMerging(Lossy):
    """Token merging (Bolya and Hoffman, 2023)."""

    name: ClassVar = "token_merging"
    title: ClassVar = "averages like tokens before self-attention at the finest level"

    share: Annotated[float, "of the tokens, that is merged into others; at most 0.75"] = 0.5

    def __post_init__(self) -> None:
        Merging(self.share, (1, 1))  # which knows the range

    def unfit(self, model: Model) -> str:
        return "" if isinstance(model.network, UNet) else "it is made for U-Nets with transformers"

    def shortcut(self) -> Shortcut:
        return Merged(self.share)


@dataclass(frozen=True)
class Merged:
    """The shortcut; it remembers nothing."""

    share: float

    def kind(self, names: Sequence[str]) -> Hashable:
        return self.share

    def around(self, network: Call, shortcuts: Sequence[Any], places: Sequence[Place]) -> Call:
        def call(x: Tensor, t: Any, conditioning: Any, **more: Any) -> Tensor:
            with merging(Merging(self.share, (x.shape[-2], x.shape[-1]))):
                return network(x, t, conditioning, **more)

        return call
