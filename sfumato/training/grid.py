"""Pictures side by side, in one file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor


def save_grid(path: Path, pictures: Sequence[Tensor | Image.Image], columns: int) -> None:
    """A PNG of pictures in rows.

    Args:
        pictures: [3, H, W] about [-1, 1], or RGB pictures.
        columns: of the grid.
    """
    tiles = [p if isinstance(p, Image.Image) else _image(p) for p in pictures]
    width, height = max(t.width for t in tiles) + 2, max(t.height for t in tiles) + 2
    sheet = Image.new("RGB", (columns * width, -(-len(tiles) // columns) * height), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % columns * width + 1, i // columns * height + 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")


def _image(picture: Tensor) -> Image.Image:
    levels = ((picture.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(np.ascontiguousarray(levels.permute(1, 2, 0).cpu().numpy()))
