"""Block caching of transformers: Chen et al., "Delta-DiT: a training-free acceleration method tailored for diffusion
transformers", 2024.

What the inner blocks of a DiT add to the tokens changes little between neighbouring steps. It is computed at every N-th
step and added again at the steps between, which run the blocks at the two ends only.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from sfumato.core.errors import ConfigError
from sfumato.engine.denoiser import Shortcut
from sfumato.engine.lossy.step_cache import StepCache
from sfumato.engine.lossy.types import Lossy
from sfumato.families.types import Model
from sfumato.models.dit import DiT


@dataclass(frozen=True)
class BlockCache(Lossy):
    """The same blocks throughout the run."""

    name: ClassVar = "block_cache"
    title: ClassVar = "computes the inner blocks at every N-th step only"

    every: Annotated[int, "steps from one computation of the inner blocks to the next"] = 3
    outer: Annotated[int, "blocks that run at every step, half of them at each end"] = 2

    def __post_init__(self) -> None:
        if self.every < 2 or self.outer < 1:
            raise ConfigError(f"block_cache:{self.every}:{self.outer}: every must be at least 2 and outer at least 1.")

    def unfit(self, model: Model) -> str:
        if not isinstance(model.network, DiT):
            return "it is made for transformers (DiT)"
        blocks = model.network.config.num_layers
        return "" if self.outer < blocks else f"of this transformer's {blocks} blocks at most {blocks - 1} are outer"

    def shortcut(self) -> Shortcut:
        return StepCache(self.every, self.outer)
