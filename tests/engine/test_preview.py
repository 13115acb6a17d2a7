"""Previews: colours of latents, known or measured."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.engine.preview import preview, with_colours
from sfumato.families import FAMILIES
from sfumato.families.types import LatentFormat, Model


class Linear(nn.Module):
    """An autoencoder that is a linear map with an offset, so that a linear preview can be all of it."""

    def decode(self, z: Tensor) -> Tensor:
        weight = torch.tensor([[0.1, 0.0, 0.05, 0.0, -0.1], [0.0, 0.1, 0.05, 0.0, 0.1], [0.1, 0.1, 0.0, -0.1, 0.0]])
        return (F.conv2d(z, weight[:, :, None, None]) + 0.25).repeat_interleave(4, 2).repeat_interleave(4, 3)


def model(latent: LatentFormat, **parts: nn.Module) -> Model:
    return Model(FAMILIES.get("latent"), parts, {}, {}, latent, "a toy", lambda: "", 32)


def test_colours_are_measured_where_they_are_not_known() -> None:
    latent = LatentFormat(channels=5, factor=4, scale=0.5, shift=0.3)
    x0 = torch.randn(1, 5, 1, 1, generator=torch.Generator().manual_seed(1)).expand(1, 5, 3, 3)
    [found] = preview(x0, with_colours(model(latent, vae=Linear())))
    colours = Linear().decode(latent.to_autoencoder(x0))[0, :, 1, 1]
    assert np.abs(np.array(found)[5, 5] - (colours.numpy() + 1) * 127.5).max() <= 1


def test_colours_that_are_known_stay() -> None:
    known = LatentFormat(channels=4, factor=8, rgb=((0.1, 0.2, 0.3),) * 4)
    assert with_colours(model(known, vae=Linear())) is known
    pixels = LatentFormat(channels=3, factor=1)
    assert with_colours(model(pixels)) is pixels
