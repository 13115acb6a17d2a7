"""The pictures that a request brings along, framed as the model draws."""

import base64
import binascii
import hashlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from sfumato.core.errors import RequestError
from sfumato.core.request import Request
from sfumato.tasks.picture import Picture, read_file

DATA = "data:"
FINGERPRINT = "sha256:"
USUAL = 1.5
"""Sides of images that a model draws well, in sides of those that it was made for."""


class Way(NamedTuple):
    """How a picture that is brought along is read."""

    title: str
    mode: str
    resample: Image.Resampling


BROUGHT: Mapping[str, Way] = {
    "image": Way("image", "RGB", Image.Resampling.LANCZOS),
    "control": Way("control picture", "RGB", Image.Resampling.LANCZOS),
    "mask": Way("mask", "L", Image.Resampling.BILINEAR),
    "depth": Way("depth", "L", Image.Resampling.BILINEAR),
}
"""The fields of a request that hold pictures. Of those given the first is scaled and cropped, the others as it is."""


@dataclass(frozen=True, eq=False)
class Given:
    """An image and what is told of it, framed alike.

    Attributes:
        image: RGB.
        control: RGB, what a control network reads.
        mask: grey, white where it is painted anew.
        depth: grey, the whiter the nearer.
        blur: pixels, see ``Request.mask_blur``.
        prints: SHA-256 of their files, by the names of the request's fields.
        notes: what was done to them.
        whole: the image of which this is a part, with the mask's part of it, and where it lies; None: it is all.
    """

    image: Image.Image | None
    control: Image.Image | None
    mask: Image.Image | None
    depth: Image.Image | None
    blur: int
    prints: Mapping[str, str]
    notes: tuple[str, ...]
    whole: "Whole | None" = None

    @cached_property
    def pixels(self) -> Tensor:
        """[1, 3, H, W] in [-1, 1]."""
        assert self.image is not None
        return _tensor(self.image).permute(2, 0, 1)[None] / 127.5 - 1.0

    @cached_property
    def control_pixels(self) -> Tensor:
        """[1, 3, H, W] in [0, 1]."""
        assert self.control is not None
        return _tensor(self.control).permute(2, 0, 1)[None] / 255.0

    @cached_property
    def hidden(self) -> Tensor:
        """The same, grey where it is painted."""
        return self.pixels * (self._painted == 0)

    def latent_mask(self, factor: int) -> Tensor:
        """[1, 1, H / factor, W / factor], 1 where any of its pixels is painted, else 0."""
        return F.max_pool2d(self._painted, factor)

    def latent_depth(self, factor: int) -> Tensor:
        """[1, 1, H / factor, W / factor], from -1 where it is farthest to 1 where it is nearest.

        Raises:
            RequestError: it is as far everywhere.
        """
        assert self.depth is not None
        size = self.depth.height // factor, self.depth.width // factor
        found = F.interpolate(_tensor(self.depth)[None, None], size, mode="bicubic", align_corners=False)
        least, most = found.aminmax()
        if least == most:
            raise RequestError("The picture of depths is the same grey everywhere, which tells of no depth.")
        return 2.0 * (found - least) / (most - least) - 1.0

    @property
    def _painted(self) -> Tensor:
        assert self.mask is not None
        return (_tensor(self.mask)[None, None] >= 127.5).float()

    def onto(self, drawn: Picture) -> Picture:
        """What was drawn where it was to be, on the image as it was; they melt into each other at the edge."""
        assert self.image is not None
        assert self.mask is not None
        image, mask, painted = self.image, self.mask, drawn.image
        if self.whole is not None:
            image, mask, box = self.whole
            painted = image.copy()
            size = box[2] - box[0], box[3] - box[1]
            painted.paste(drawn.image.resize(size, Image.Resampling.LANCZOS), box[:2])
        soft = mask.filter(ImageFilter.GaussianBlur(self.blur)) if self.blur else mask
        return Picture(Image.composite(painted, image, soft), drawn.recipe)


Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""


class Whole(NamedTuple):
    """An image of which only a part is drawn."""

    image: Image.Image
    mask: Image.Image
    box: Box


class File(NamedTuple):
    """A picture that was brought along."""

    picture: Picture
    sha256: str


def brought(request: Request) -> dict[str, File]:
    """What a request brings along, by the names of its fields.

    Raises:
        RequestError: no such file, or no picture. CapacityError: too large.
    """
    texts = {name: getattr(request, name) for name in BROUGHT}
    return {name: _read(text, name) for name, text in texts.items() if text is not None}


def size_for(
    request: Request, image: Picture, side: int, multiple: int, times: int | None = None
) -> dict[str, int]:
    """Width and height where the request leaves them open: the image's, or its proportions at the model's size.

    Args:
        side: of the squares that the model draws. ``USUAL`` times as much is drawn unasked, if the image is so large.
        times: it is to become so many times as large, however large it is.
    """
    width, height = image.image.size
    scale = side / math.sqrt(width * height)
    scale = times or (1.0 if scale * USUAL >= 1.0 else scale)
    if request.width is not None:
        scale = request.width / width
    elif request.height is not None:
        scale = request.height / height
    whole = (max(math.floor(n * scale / multiple + 1e-6), 1) * multiple for n in (width, height))
    return dict(zip(("width", "height"), whole, strict=True))


def frame(request: Request, files: Mapping[str, File], size: tuple[int, int]) -> Given:
    """Scale and crop what a settled request brings along.

    Args:
        size: width and height.

    Raises:
        RequestError: a mask with nothing white.
    """
    first, *others = files
    title = BROUGHT[first].title
    notes = [f"The {BROUGHT[name].title}: {note}" for name, file in files.items() for note in file.picture.notes]
    pictures = {name: file.picture.image.convert(BROUGHT[name].mode) for name, file in files.items()}
    width, height = whole_size = pictures[first].size
    if whole_size != size and request.mask_padding is None:
        cut = abs(width * size[1] - height * size[0]) >= max(whole_size)
        notes.append(
            f"The {title} of {width} x {height} pixels was scaled to {size[0]} x {size[1]}"
            f"{', and what stood over was cut off' if cut else ''}."
        )
    for name in others:
        picture, way = pictures[name], BROUGHT[name]
        if picture.size != whole_size:
            notes.append(f"The {way.title} of {picture.width} x {picture.height} pixels was scaled to the {title}.")
            pictures[name] = picture.resize(whole_size, way.resample)
    whole = None
    if "mask" in pictures:
        mask = pictures["mask"]
        found = mask.point(lambda grey: 255 * (grey >= 128)).getbbox()
        if found is None:
            raise RequestError("The mask is black everywhere, so nothing would be painted: white is where it is.")
        if request.mask_padding is not None:
            whole = Whole(pictures["image"], mask, around(found, request.mask_padding, size, whole_size))
            pictures = {name: picture.crop(whole.box) for name, picture in pictures.items()}
            part = pictures["image"]
            notes.append(f"Of the image {part.width} x {part.height} pixels were drawn, at {size[0]} x {size[1]}.")
    fitted = {name: ImageOps.fit(picture, size, BROUGHT[name].resample) for name, picture in pictures.items()}
    prints = {name: file.sha256 for name, file in files.items()}
    return Given(**{name: fitted.get(name) for name in BROUGHT}, blur=request.mask_blur or 0, prints=prints,
                 notes=tuple(notes), whole=whole)  # fmt: skip


def around(box: Box, padding: int, proportions: tuple[int, int], size: tuple[int, int]) -> Box:
    """The smallest part of a picture that holds a box with so much around it, in these proportions if there is room.

    Args:
        proportions, size: width and height, of the part and of the picture.
    """
    left, top, right, bottom = box
    least = right - left + 2 * padding, bottom - top + 2 * padding
    scale = max(n / p for n, p in zip(least, proportions, strict=True))
    wanted = (min(round(p * scale), n) for p, n in zip(proportions, size, strict=True))
    (x0, x1), (y0, y1) = (
        (begin := min(max((low + high - length) // 2, 0), most - length), begin + length)
        for low, high, length, most in zip((left, top), (right, bottom), wanted, size, strict=True)
    )
    return x0, y0, x1, y1


def _read(text: str, name: str) -> File:
    if text.startswith(FINGERPRINT):
        raise RequestError(f"This {name} was no file, and only its fingerprint is known: give the picture itself.")
    content = _decoded(text, name) if text.startswith(DATA) else read_file(Path(text))
    return File(Picture.open(content, name if text.startswith(DATA) else text), hashlib.sha256(content).hexdigest())


def _decoded(text: str, name: str) -> bytes:
    kind, _, rest = text.partition(",")
    try:
        if not kind.endswith(";base64"):
            raise ValueError("it is not base64")
        return base64.b64decode(rest, validate=True)
    except (binascii.Error, ValueError) as problem:
        raise RequestError(f"{name} is a data: URL that cannot be read: {problem}.") from None


def as_text(value: Any, name: str) -> str:
    """What the field of a request holds for a file's name, a ``PIL.Image.Image`` or a ``Picture``."""
    if isinstance(value, str | Path):
        return str(value)
    image = value.image if isinstance(value, Picture) else value
    if not isinstance(image, Image.Image):
        raise RequestError(
            f"{name} = {value!r}: expected one picture, as a file's name, a PIL.Image.Image or a Picture."
        )
    target = io.BytesIO()
    try:
        image.save(target, "PNG", compress_level=1)
    except OSError:  # a mode that PNG has not, such as CMYK
        image.convert("RGB").save(target, "PNG", compress_level=1)
    return f"{DATA}image/png;base64,{base64.b64encode(target.getvalue()).decode()}"


def told(request: Request, given: Given) -> dict[str, str]:
    """What a recipe holds in the request's fields: the names of files, and fingerprints of what was none."""
    return {
        name: FINGERPRINT + sha256 if getattr(request, name).startswith(DATA) else getattr(request, name)
        for name, sha256 in given.prints.items()
    }


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).float()
