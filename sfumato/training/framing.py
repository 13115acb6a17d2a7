"""Bringing a picture to the size that a network is trained on: scale, crop, flip."""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sfumato.core.errors import ConfigError
from sfumato.training.buckets import Size
from sfumato.training.order import Place


class Framed(NamedTuple):
    """A picture as the network sees it.

    Attributes:
        pixels: [3, H, W] uint8.
        corner: (left, top) of the crop in the scaled picture, in pixels; what SDXL is told.
        flipped: mirrored left to right.
    """

    pixels: Tensor
    corner: tuple[int, int]
    flipped: bool


@dataclass(frozen=True)
class Framing:
    """How crops and flips are chosen."""

    crop: Annotated[Literal["center", "random"], "which part of a picture of another shape"] = "center"
    flip: Annotated[float, "0 to 1: the chance that a picture is mirrored left to right"] = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise ConfigError(f"flip = {self.flip}: must be from 0 to 1.")

    def frame(self, picture: Image.Image, target: Size, seed: int, place: Place) -> Framed:
        """Scale an RGB picture (Lanczos) until it just covers ``target``, crop to it, flip: as drawn for the place."""
        across, down, _ = place.uniform(seed, "framing", 3)
        if self.crop == "center":
            across = down = 0.5
        return frame(picture, target, (float(across), float(down)), self.flips(seed, place))

    def flips(self, seed: int, place: Place) -> bool:
        """Whether the picture of that place is mirrored."""
        return bool(place.uniform(seed, "framing", 3)[2] < self.flip)


def frame(picture: Image.Image, target: Size, where: tuple[float, float] = (0.5, 0.5), flip: bool = False) -> Framed:
    """As ``Framing.frame``, with the crop at the given shares (0 to 1) of the room that there is."""
    scale = max(target[0] / picture.width, target[1] / picture.height)
    width, height = (max(t, round(s * scale)) for t, s in zip(target, picture.size, strict=True))
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    left, top = round(where[0] * (width - target[0])), round(where[1] * (height - target[1]))
    picture = picture.crop((left, top, left + target[0], top + target[1]))
    if flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()
    return Framed(pixels, (left, top), flip)


def to_network(pixels: Tensor) -> Tensor:
    """uint8 0 … 255 to float32 -1 … 1."""
    return pixels.float() / 127.5 - 1.0
