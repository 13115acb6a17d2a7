"""DeepCache: Ma, Fang and Wang, "DeepCache: accelerating diffusion models for free", CVPR 2024, section 3.3.

What the deep layers of a U-Net hand up changes little between neighbouring steps. It is computed at every N-th step and
used again at the steps between, which run the layers at the two ends only.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from sfumato.core.errors import ConfigError
from sfumato.engine.denoiser import Shortcut
from sfumato.engine.lossy.step_cache import StepCache
from sfumato.engine.lossy.types import Lossy
from sfumato.families.types import Model
from sfumato.models.unet import UNet


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
