"""Previews: colours of latents, known or measured."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.engine.preview import preview, with_colours
from sfumato.families.types import LatentFormat, Model


class Linear(nn.Module):
    """An autoencoder that is a linear map with an offset, so that a linear preview can be all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5, 1, 1) / 20)

    def decode(self, z: Tensor) -> Tensor:
        return (F.conv2d(z, self.weight) + 0.25).repeat_interleave(4, 2).repeat_interleave(4, 3)


def model(latent: LatentFormat, **parts: nn.Module) -> Model:
    return cast(Model, SimpleNamespace(latent=latent, parts=parts))


def test_colours_are_measured_where_they_are_not_known() -> None:
    torch.manual_seed(0)
    autoencoder, latent = Linear(), LatentFormat(channels=5, factor=4, scale=0.5, shift=0.3)
    x0 = torch.randn(1, 5, 1, 1).expand(1, 5, 3, 3)
    [found] = preview(x0, with_colours(model(latent, vae=autoencoder)))
    with torch.no_grad():
        colours: Any = autoencoder.decode(latent.to_autoencoder(x0))[0, :, 1, 1]
    assert np.abs(np.array(found)[5, 5] - np.array((colours + 1) * 127.5)).max() <= 1


def test_colours_that_are_known_stay() -> None:
    known = LatentFormat(channels=4, factor=8, rgb=((0.1, 0.2, 0.3),) * 4)
    assert with_colours(model(known, vae=Linear())) is known
    pixels = LatentFormat(channels=3, factor=1)
    assert with_colours(model(pixels)) is pixels
