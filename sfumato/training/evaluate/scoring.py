"""The shapes checker over many pictures."""

from collections.abc import Sequence

from torch import Tensor

from sfumato.tasks.picture import Picture
from sfumato.training.shapes_checker import check, mean


def check_all(pixels: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """[N, 3, H, W] uint8 pictures of N captions -> the mean of each property; see ``shapes_checker.Score``."""
    return mean([check(Picture.of(row).image, caption) for row, caption in zip(pixels, captions, strict=True)])
