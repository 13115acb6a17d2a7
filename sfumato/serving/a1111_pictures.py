"""The pictures that A1111's web API is sent, and what it does to them before anything is drawn."""

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from sfumato.core.errors import RequestError
from sfumato.tasks.given import DATA, as_text
from sfumato.tasks.picture import FORMATS, Picture

STRENGTH, BLUR = 0.75, 4
"""Of img2img where a call does not say."""


def pictures(given: Mapping[str, Any], most: int) -> dict[str, Any]:
    """The fields of a request that img2img's are.

    Args:
        most: pixels that may be drawn.

    Raises:
        RequestError: none or several to begin from, or what cannot be read. CapacityError: one that is too large.
    """
    images = given.get("init_images", [])
    if not isinstance(images, list) or len(images) != 1:
        raise RequestError("init_images: must be a list with one picture; call once for each.")
    content = decoded(images[0], "init_images")
    image = original = Picture.open(content, "init_images").image
    found: dict[str, Any] = {"strength": given.get("denoising_strength", STRENGTH)}
    part = "mask" in given and given.get("inpaint_full_res", True)
    if "mask" in given:
        mask = grey(decoded(given["mask"], "mask"))
        if given.get("inpainting_mask_invert"):
            mask = ImageOps.invert(mask)
        if given.get("inpainting_fill", 0) == 0:
            image = filled(image, mask)
        found |= {"mask": as_text(mask, "mask"), "mask_blur": given.get("mask_blur", BLUR)}
    if part:
        found["mask_padding"] = given.get("inpaint_full_res_padding", 0)
    elif given.get("resize_mode", 0) == 0:
        image = stretched(image, given.get("width"), given.get("height"), most)
    as_sent = f"{DATA}image/png;base64,{base64.b64encode(content).decode()}"
    return {**found, "image": as_sent if image is original else as_text(image, "init_images")}


def decoded(text: Any, name: str) -> bytes:
    """The content of a picture's file, of base64 with or without what makes it a data: URL.

    Raises:
        RequestError: it is not that; addresses and names of files are not looked up.
    """
    try:
        if not isinstance(text, str):
            raise ValueError("not a text")
        rest = text.partition(",")[2] if text.startswith(DATA) else text
        return base64.b64decode("".join(rest.split()), validate=True)
    except ValueError as problem:
        raise RequestError(f"{name}: send the picture itself, in base64 ({problem}).") from None


def grey(content: bytes) -> Image.Image:
    """A mask: how opaque it is, or where it is so everywhere, how white.

    Raises:
        RequestError, CapacityError: as ``Picture.open``.
    """
    plain = Picture.open(content, "mask").image.convert("L")
    with Image.open(io.BytesIO(content), formats=sorted(set(FORMATS.values()))) as file:
        alpha = file.convert("RGBA").getchannel("A")
    return plain if alpha.getextrema()[0] == 255 else alpha


def stretched(image: Image.Image, width: Any, height: Any, most: int) -> Image.Image:
    """The image in the proportions of what is drawn, where both sides are given."""
    if not isinstance(width, int) or not isinstance(height, int) or min(width, height) < 1:
        return image
    if width * height > most or width * image.height == height * image.width:  # what is too large will be refused
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)


def filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The image with the colours around the mask in its place."""
    painted = mask.resize(image.size, Image.Resampling.BILINEAR).point(lambda value: 255 * (value >= 128))
    colours = torch.from_numpy(np.array(image)).float().permute(2, 0, 1)[None]  # [1, 3, H, W]
    known = torch.from_numpy(np.array(painted) == 0).float()[None, None]  # [1, 1, H, W]
    found = from_around(colours, known)[0].permute(1, 2, 0).round().clamp(0, 255)
    return Image.fromarray(found.to(torch.uint8).numpy())


def from_around(colours: Tensor, known: Tensor) -> Tensor:
    """What is not known, from ever coarser means of what is: pull-push, Gortler et al., 1996, section 3.4.

    Args:
        colours: [1, C, H, W].
        known: [1, 1, H, W], 1 or 0.
    """
    size = colours.shape[-2:]
    if max(size) == 1 or bool(known.all()):
        return colours * known
    share = F.avg_pool2d(known, 2, ceil_mode=True)  # [1, 1, H / 2, W / 2]
    mean = F.avg_pool2d(colours * known, 2, ceil_mode=True) / share.clamp(min=1e-6)
    coarse = F.interpolate(from_around(mean, (share > 0).float()), size, mode="bilinear")
    return torch.where(known > 0, colours, coarse)
