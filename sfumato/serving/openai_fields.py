"""What OpenAI's fields ask for, and what may stand beside them: every field of a ``Request``."""

import asyncio
import base64
import io
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from PIL import Image, ImageChops
from starlette.datastructures import UploadFile
from starlette.requests import Request as Call

from sfumato.core.config import convert, fields, parse
from sfumato.core.errors import ConfigError, RequestError, nearest
from sfumato.core.request import Request
from sfumato.tasks.given import BROUGHT, DATA, as_text
from sfumato.tasks.picture import Picture


class FieldError(RequestError):
    """One field of a call is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Wanted:
    """OpenAI's fields, with the values that can be done, or that ask for nothing.

    Raises:
        FieldError: a value out of its range, or one that means nothing beside the others.
    """

    model: Annotated[str, "the name of the one that draws; auto: whichever it is"] = "auto"
    n: Annotated[int | None, "pictures; the same as count"] = None
    size: Annotated[str, "WIDTHxHEIGHT in pixels; auto: the image's, or the model's"] = "auto"
    response_format: Annotated[Literal["b64_json", "url"], "pictures, or where they lie for a while"] = "b64_json"
    output_format: Annotated[Literal["png", "jpeg", "webp"], "of the pictures' files"] = "png"
    output_compression: Annotated[int | None, "1 to 100, the quality of JPEG and WebP; 95 unless given"] = None
    stream: Annotated[bool, "answer with server-sent events"] = False
    partial_images: Annotated[int, "0 to 3: rough pictures that a stream shows before each finished one"] = 0
    background: Annotated[Literal["auto", "opaque"], "pictures are opaque"] = "auto"
    quality: Annotated[
        Literal["auto", "standard", "low", "medium", "high", "hd", "xhigh", "max"], "changes nothing; steps does"
    ] = "auto"
    moderation: Annotated[Literal["auto", "low"] | None, "nothing is filtered"] = None
    user: Annotated[str, "on whose behalf; nobody is told"] = ""
    safety_identifier: Annotated[str, "on whose behalf; nobody is told"] = ""

    def __post_init__(self) -> None:
        def refuse(name: str, rule: str) -> None:
            raise FieldError(name, f"{name} = {getattr(self, name)!r}: {rule}.")

        if self.size != "auto" and not SIZE.fullmatch(self.size):
            refuse("size", "must be auto, or width and height in pixels, such as 512x512")
        if self.output_compression is not None and not 1 <= self.output_compression <= 100:
            refuse("output_compression", "must be from 1 to 100")
        if self.output_compression not in (None, 100) and self.output_format == "png":
            refuse("output_compression", "PNG loses nothing; set output_format to jpeg or webp")
        if not 0 <= self.partial_images <= 3:
            refuse("partial_images", "must be from 0 to 3")
        if self.partial_images and not self.stream:
            refuse("partial_images", "only a stream shows them; set stream to true")
        if self.stream and self.response_format == "url":
            refuse("response_format", "a stream brings the pictures themselves; leave one of them out")

    @property
    def says(self) -> dict[str, Any]:
        """What of it belongs into a request."""
        found: dict[str, Any] = {} if self.n is None else {"count": self.n}
        if self.size != "auto":
            found |= zip(("width", "height"), map(int, self.size.split("x")), strict=True)
        return found

    @property
    def notes(self) -> list[str]:
        """What it asks for in vain."""
        values = {name: getattr(self, name) for name in VAIN}
        return [
            f"{name} = {value!r} changed nothing: {VAIN[name][1]}."
            for name, value in values.items() if value not in VAIN[name][0]
        ]  # fmt: skip

    @property
    def compression(self) -> int:
        """1 to 100."""
        return self.output_compression or 95

    def encode(self, picture: Picture) -> str:
        """A picture's file, in base64."""
        return base64.b64encode(picture.encode(self.output_format.upper(), self.compression)).decode()


SIZE = re.compile(r"\d{1,5}x\d{1,5}")

SAME = {"count": "n", "width": "size", "height": "size"}
"""Fields of a request, and by what name OpenAI says the same."""

# Programs that speak to OpenAI send these of their own accord, so a refusal would lock them out: the answer tells.
VAIN: dict[str, tuple[tuple[str | None, ...], str]] = {
    "quality": (("auto", "standard"), "steps says how long a picture is worked on"),
    "moderation": ((None,), "nothing is filtered here"),
}
"""Fields that change nothing: values that do not ask for more, and what is told of all others."""

_PLANS = "nothing is planned before a picture is drawn; steps says how long it is worked on"
_FRAMES = "pictures do not move"
REFUSED = {
    "background": "pictures have no transparent parts; cut the subject out afterwards",
    "style": "say it in the prompt",
    "complexity": _PLANS, "prompt_rewriter": "a prompt is drawn as it stands; write it as it is to be",
    "input_fidelity": "strength says how far from the image a picture may go",
    "markup": "say in the prompt what is to change, and by mask where",
    "svg": "pictures are made of pixels; output_format is png, jpeg or webp",
    "frame_count": _FRAMES, "frame_duration_ms": _FRAMES,
}  # fmt: skip
"""OpenAI's names for what cannot be asked here (or not with every value), and what to do instead."""

MISSING = {
    "prompt": "say what to draw",
    "image": "send it as a file of a multipart/form-data body",
}

HINTS: dict[str, Any] = {field.name: field.type for cls in (Request, Wanted) for field in fields(cls)}
"""All that may be asked, and of what type it is."""


def read(told: Mapping[str, Any], *needed: str) -> tuple[Request, Wanted]:
    """What a call asks for; None means: not given.

    Raises:
        FieldError: an unknown field (the nearest are offered), one that cannot be done (with the reason), a value of
            the wrong type, the same thing said twice, a needed field left out.
        RequestError: what the request refuses.
    """
    found: dict[str, Any] = {}
    for name, value in told.items():
        if name not in HINTS and name not in REFUSED:
            raise FieldError(name, f"There is no field {name!r}{nearest(name, HINTS)}")
        if value is None:
            continue
        if name not in HINTS:
            raise FieldError(name, f"{name} cannot be given: {REFUSED[name]}.")
        try:
            found[name] = convert(value, HINTS[name], name)
        except ConfigError as problem:
            shown = f"{name} = {value!r}: {REFUSED[name]}." if name in REFUSED else str(problem)
            raise FieldError(name, shown) from None
    for name in needed:
        if name not in found:
            raise FieldError(name, f"{name} is missing: {MISSING[name]}.")
    wanted = Wanted(**{name: found.pop(name) for name in [*found] if name in Wanted.__dataclass_fields__})
    for name in wanted.says:
        if name in found:
            raise FieldError(name, f"{name} says once more what {SAME[name]} does; give one of them.")
    return Request(**found, **wanted.says), wanted


async def form(call: Call, most_bytes: int) -> dict[str, Any]:
    """The fields of a form, read as what they should be; pictures are ``data:`` URLs.

    Raises:
        FieldError: one that cannot be read, or is given more often than it can be.
    """
    parts: dict[str, list[UploadFile | str]] = defaultdict(list)
    told: dict[str, Any] = {}
    async with call.form(max_part_size=most_bytes) as found:
        for key, part in found.multi_items():
            parts[key.removesuffix("[]")].append(part)
        for name, values in parts.items():
            hint = HINTS.get(name, str)
            if len(values) > 1 and not any(get_origin(kind) is tuple for kind in (hint, *get_args(hint))):
                raise FieldError(name, f"{name} is given {len(values)} times; it can be given once.")
            [first, *_] = values
            is_file = isinstance(first, UploadFile)
            if name in HINTS and is_file != (name in BROUGHT):
                raise FieldError(name, f"{name} is {'a file: send text' if is_file else 'text: send a file'}.")
            if isinstance(first, UploadFile):
                content = await first.read()
                told[name] = await asyncio.to_thread(painted, content) if name == "mask" else as_url(content)
            else:
                try:
                    told[name] = parse(",".join(map(str, values)), hint, name)
                except ConfigError as problem:
                    raise FieldError(name, str(problem)) from None
    return told


def as_url(content: bytes) -> str:
    """A file as a request holds it."""
    return f"{DATA};base64,{base64.b64encode(content).decode()}"


def painted(content: bytes) -> str:
    """What is transparent in a picture, as a mask that is white there.

    Raises:
        FieldError: nothing is. RequestError: no picture.
    """
    Picture.open(content, "mask")  # refuses what is none, or would fill the memory
    with Image.open(io.BytesIO(content)) as file:
        alpha = file.convert("RGBA").getchannel("A") if file.has_transparency_data else None
    if alpha is None or alpha.getextrema()[0] == 255:
        raise FieldError("mask", "The mask is transparent nowhere, so nothing would be painted: where it is, all is.")
    return as_text(ImageChops.invert(alpha), "mask")
