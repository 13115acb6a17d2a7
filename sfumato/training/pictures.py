"""Encoded pictures: what their header says without decoding, and their pixels as RGB."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, cast

from PIL import Image, ImageOps, UnidentifiedImageError

from sfumato.core.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")

MAX_PIXELS = 2**27
"""134 million, 400 MB decoded. Above any camera; far below what a hostile header can claim."""


class Header(NamedTuple):
    """What a file says of itself.

    Attributes:
        mode: Pillow's: ``RGB``, ``L``, ``RGBA``, ``P`` (palette), ``CMYK``, ``I;16``, …
        frames: more than 1 in animations.
    """

    format: str
    width: int
    height: int
    mode: str
    frames: int


@contextmanager
def _opened(picture: Path | bytes) -> Iterator[Image.Image]:
    """The picture's header, parsed by the decoder that its first bytes ask for.

    ``Image.open`` is not used because it judges sizes by a process-wide limit of its own, with a warning at one size
    and an error at the double.
    """
    Image.init()
    try:
        file: IO[bytes] = io.BytesIO(picture) if isinstance(picture, bytes) else picture.open("rb")
    except OSError as problem:
        raise DataError(problem.strerror or str(problem)) from None
    with file:
        start = file.read(16)
        if not start:
            raise DataError("the file is empty")
        for name in FORMATS:
            factory, accept = Image.OPEN.get(name, (None, None))
            if factory is not None and accept is not None and accept(start) is True:
                break
        else:
            raise DataError(f"not a picture: its content is none of {', '.join(FORMATS)}, whatever its name says")
        file.seek(0)
        try:
            image = cast(Image.Image, factory(file, ""))
        except (SyntaxError, OSError, ValueError, UnidentifiedImageError, IndexError, TypeError, KeyError) as problem:
            raise DataError(f"damaged {name} header ({problem})") from None
        with image:
            yield image


def header(picture: Path | bytes) -> Header:
    """What the header says; no pixel is decoded.

    Raises:
        DataError: not a picture of ``FORMATS``, or a damaged header. The message is the reason alone: who asks knows
            the file's name.
    """
    with _opened(picture) as image:
        return Header(image.format or "", *image.size, image.mode, getattr(image, "n_frames", 1))


def decode(picture: Path | bytes) -> Image.Image:
    """The pixels: RGB, turned as EXIF says, transparency on white, 16-bit greys scaled, the first frame of several.

    Raises:
        DataError: as ``header``; larger than ``MAX_PIXELS``; or truncated. The message is the reason alone.
    """
    with _opened(picture) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise DataError(f"{width:,} x {height:,} pixels; the limit is {MAX_PIXELS:,} in all")
        try:
            image.load()
            image = ImageOps.exif_transpose(image)
        except (OSError, SyntaxError, ValueError, IndexError, EOFError) as problem:
            raise DataError(f"truncated or damaged ({problem})") from None
        if image.mode.startswith(("I", "F")):
            image = image.convert("F").point(lambda v: v / 257.0).convert("L")
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")
