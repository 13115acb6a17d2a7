"""How different two pictures look: the distance between their features (Zhang et al., "LPIPS", 2018, eq. 1).

Parameter names: the features' are torchvision's (``features.0.weight`` …, VGG-16), the weights' of each layer those of
the authors' files (``lin0.model.1.weight`` …), so that both load as they are published.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from sfumato.nn.layers import Conv2d


class Features(Protocol):
    """A network whose inner states are compared."""

    @property
    def widths(self) -> Sequence[int]:
        """Channels of each state."""

    def __call__(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] in [-1, 1] -> [B, C, h, w] each."""


class Vgg16(nn.Module):
    """The convolutions of VGG-16 (Simonyan and Zisserman, 2015), read after the last layer of each of five stages."""

    STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
    widths = tuple(stage[-1] for stage in STAGES)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.read: list[int] = []
        channels = 3
        for stage in self.STAGES:
            for width in stage:
                layers += [Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.read.append(len(layers) - 1)
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])
        self.shift: Tensor
        self.scale: Tensor
        # ImageNet's mean and deviation in [0, 1], carried over to [-1, 1].
        for name, values in (("shift", (-0.030, -0.088, -0.188)), ("scale", (0.458, 0.448, 0.450))):
            self.register_buffer(name, torch.tensor(values, device="cpu")[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] in [-1, 1] -> five states, [B, 64, H, W] to [B, 512, H / 16, W / 16]."""
        states = []
        x = (x - self.shift) / self.scale
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.read:
                states.append(x)
        return states


class _Lin(nn.Module):
    """One layer's weights, under the name that the authors' files have: a 1 x 1 convolution behind a dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        weights = Conv2d(width, 1, 1, bias=False)
        nn.init.constant_(weights.weight, 1.0 / width)
        self.model = nn.Sequential(nn.Identity(), weights)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 1, h, w]."""
        y: Tensor = self.model(x)
        return y


class Perceptual(nn.Module):
    """Distance of two pictures in the features of a network, which is frozen.

    Without loaded weights every channel counts alike: ``lin`` starts as the mean. (LPIPS's own weights were fitted to
    human judgements; with them and VGG-16 this is LPIPS.)
    """

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.net = features
        for i, width in enumerate(features.widths):
            setattr(self, f"lin{i}", _Lin(width))
        self.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1], twice -> [B], 0 where they are equal."""
        total = torch.zeros(len(a), device=a.device)
        for i, (x, y) in enumerate(zip(self.net(a), self.net(b), strict=True)):
            apart = (_unit(x.float()) - _unit(y.float())) ** 2
            total = total + getattr(self, f"lin{i}")(apart).flatten(1).mean(1)
        return total


def _unit(x: Tensor) -> Tensor:
    """Every position's channels as a vector of length 1."""
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
