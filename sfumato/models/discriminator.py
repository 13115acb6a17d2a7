"""The patch discriminator of adversarial autoencoders (Isola et al., 2017, section 3.2; Esser et al., 2021)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

from torch import Tensor, nn

from sfumato.core.errors import ConfigError
from sfumato.nn.layers import Conv2d, GroupNorm


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Its size. A patch that it judges has about 2^(layers + 2) pixels a side: 70 with 3 layers."""

    in_channels: Annotated[int, "channels of a picture"] = 3
    channels: Annotated[int, "of the first layer; doubled up to eightfold"] = 64
    layers: Annotated[int, "that halve the sides"] = 3

    def __post_init__(self) -> None:
        if self.layers < 1 or self.channels < 8 or self.channels % 8:
            raise ConfigError("A discriminator has at least 1 layer, and channels in multiples of 8.")


class Discriminator(nn.Module):
    """Pictures to a map of judgements, positive where a patch looks real.

    Normalised in groups, not over the batch: a judgement does not depend on what else stands in the batch.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.channels * min(2**i, 8) for i in range(config.layers + 1)]
        layers: list[nn.Module] = [Conv2d(config.in_channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (before, width) in enumerate(pairwise(widths)):
            stride = 2 if i + 2 < len(widths) else 1
            layers += [
                Conv2d(before, width, 4, stride, 1, bias=False), GroupNorm(8, width), nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 1, h, w]."""
        y: Tensor = self.layers(x)
        return y
