"""The text that A1111 writes into its pictures, in both directions.

The prompt, a line ``Negative prompt: …``, and a last line ``Key: value, Key: value, …``; values with commas, colons or
line breaks are JSON strings. A prompt that these lines would not give back as it is (spaces at the ends of a line, a
line that starts with ``Negative prompt:``) stands once more on the last line as ``Prompt: "…"``, which A1111 reads too.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sfumato.core.errors import RequestError
from sfumato.core.request import Request
from sfumato.core.version import VERSION
from sfumato.sampling import TABLE

KEY = re.compile(r"\s*(\w[\w \-/]+):\s*")
SEPARATOR = re.compile(r"\s*(?:,|$)")
NEGATIVE = "Negative prompt:"
FACTS = (
    "Model", "Model hash", "VAE", "VAE hash", "Refiner", "Hashes", "Lora hashes", "TI hashes", "Device", "Precision",
    "User", "Version",
)
"""Keys that tell about a picture without asking for anything."""


@dataclass(frozen=True)
class Reading:
    """What a text asks for.

    Attributes:
        request: as far as it was understood.
        facts: what it tells beside that, by A1111's keys; see ``FACTS``.
        not_understood: keys that ask for something else, with their values.
    """

    request: Request
    facts: Mapping[str, str] = field(default_factory=dict)
    not_understood: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Field:
    """A key of the last line and the field of ``Request`` that it stands for."""

    name: str
    read: Callable[[str], Any]
    write: Callable[[Any], str] = str


def _number(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def _choice(**names: str) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """Values that A1111 calls by other names; a ``ValueError`` for any other."""
    back = {theirs: ours for ours, theirs in names.items()}

    def read(text: str) -> str:
        if text not in back:
            raise ValueError(text)
        return back[text]

    return read, names.__getitem__


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _interval(text: str) -> tuple[float, float]:
    low, high = _numbers(text)
    return low, high


def _write_numbers(values: tuple[float, ...]) -> str:
    return ", ".join(map(_number, values))


FIELDS = {
    "Steps": _Field("steps", int),
    "Sampler": _Field("sampler", str),
    "Schedule type": _Field("spacing", lambda text: None if text == "Automatic" else text),
    "CFG scale": _Field("cfg_scale", float, _number),
    "Seed": _Field("seed", int),
    "Width": _Field("width", int),
    "Height": _Field("height", int),
    "Batch size": _Field("count", int),
    "Denoising strength": _Field("strength", float, _number),
    "Mask blur": _Field("mask_blur", int),
    "Masked area padding": _Field("mask_padding", int),
    "Noise level": _Field("noise_level", int),
    "Clip skip": _Field("clip_skip", int),
    "Eta": _Field("eta", float, _number),
    "Sigmas": _Field("sigmas", _numbers, _write_numbers),
    "CFG rescale": _Field("guidance_rescale", float, _number),
    "Guidance interval": _Field("guidance_interval", _interval, _write_numbers),
    "Guidance channels": _Field("guidance_channels", int),
    "Dynamic threshold": _Field("dynamic_threshold", float, _number),
    "Lossy": _Field("lossy", lambda text: tuple(part.strip() for part in text.split(",")), ", ".join),
    "Loras": _Field("loras", lambda text: tuple(part.strip() for part in text.split(",")), ", ".join),
    "Refiner switch at": _Field("refiner_start", float, _number),
    "Emphasis": _Field("prompt_weighting", *_choice(a1111="Original", comfy="comfy", compel="compel")),
    "Long prompts": _Field("long_prompts", *_choice(chunk="chunk", truncate="truncate")),
    "RNG": _Field("noise", *_choice(torch="CPU", philox="sfumato")),
    "Task": _Field("task", str),
}
"""The keys in the order in which they are written.

Names of files are nobody's business; what tells of an image asks for nothing without it, and is not understood again.
"""
ALWAYS = ("RNG", "Emphasis")
"""Written even at their defaults: with ``Version`` they make the three pairs by which a reader knows the last line."""


_UPPER = ("SGM", "KL", "DDIM", "LCM", "XL")


def as_titled(request: Request) -> Request:
    """The same request with sampler and spacing called as A1111 calls them, which both programs understand."""
    words = (request.spacing or "").replace("_", " ").title().split(" ")
    spacing = " ".join(word.upper() if word.upper() in _UPPER else word for word in words)
    sampler = TABLE[request.sampler].title if request.sampler in TABLE else request.sampler
    return replace(request, sampler=sampler, spacing=spacing or None)


def write(request: Request, facts: Mapping[str, str] | None = None) -> str:
    """The text of a request.

    Args:
        facts: what else to tell, by the keys of ``FACTS``; ``Version`` is added.

    Raises:
        ValueError: a key that is not one of ``FACTS``.
    """
    default, values = Request(), {}
    for key, entry in FIELDS.items():
        value = getattr(request, entry.name)
        if key in ALWAYS or value != getattr(default, entry.name):
            values[key] = entry.write(value)
    if "Width" in values and "Height" in values:
        size = f"{values.pop('Width')}x{values.pop('Height')}"
        values = _insert_after(values, "Seed", "Size", size)
    for key, value in (facts or {}).items():
        if key not in FACTS:
            raise ValueError(f"{key!r} is not one of {', '.join(FACTS)}")
        values[key] = value
    values.setdefault("Version", f"sfumato {VERSION}")
    text = _assemble(request, values)
    found = read(text).request
    if (found.prompt, found.negative_prompt) != (request.prompt, request.negative_prompt):
        text = _assemble(request, {"Prompt": request.prompt, "Negative prompt": request.negative_prompt, **values})
    return text


def _insert_after(values: Mapping[str, str], key: str, new: str, value: str) -> dict[str, str]:
    items = list(values.items())
    place = next((i + 1 for i, (k, _) in enumerate(items) if k == key), 0)
    return dict([*items[:place], (new, value), *items[place:]])


def _assemble(request: Request, values: Mapping[str, str]) -> str:
    lines = [request.prompt] if request.prompt else []
    if request.negative_prompt:
        lines.append(f"{NEGATIVE} {request.negative_prompt}")
    return "\n".join([*lines, ", ".join(f"{key}: {quote(value)}" for key, value in values.items())])


def quote(value: str) -> str:
    """A value as it stands on the last line: as a JSON string where it could be misread."""
    plain = value and value == value.strip() and not re.search(r'[,:"\n]', value)
    return value if plain else json.dumps(value, ensure_ascii=False)


def read(text: str) -> Reading:
    """What a text asks for, written by sfumato or by A1111. No text is an error: what is strange is listed."""
    *lines, last = text.strip().split("\n")
    pairs = _pairs(last)
    if len(pairs) < 3:
        lines, pairs = [*lines, last], {}
    prompts: dict[bool, list[str]] = {False: [], True: []}
    negative = False
    for line in map(str.strip, lines):
        if line.startswith(NEGATIVE):
            negative, line = True, line.removeprefix(NEGATIVE).strip()
        prompts[negative].append(line)
    values = {"prompt": "\n".join(prompts[False]), "negative_prompt": "\n".join(prompts[True])}
    facts, strange = {}, {}
    for key, value in pairs.items():
        size = re.fullmatch(r"(\d{1,9})x(\d{1,9})", value) if key == "Size" else None
        if size:
            values |= {"Width": size[1], "Height": size[2]}
        elif key == "Prompt":
            values["prompt"] = value
        elif key == "Negative prompt":
            values["negative_prompt"] = value
        elif key in FIELDS:
            values[key] = value
        elif key in FACTS:
            facts[key] = value
        else:
            strange[key] = value
    if "Seed" in values and "RNG" not in values:
        strange["RNG"] = "GPU"  # what A1111 means by not saying so: noise that only that kind of device makes
    request, refused = _request(values)
    return Reading(request, facts, strange | refused)


def _request(values: Mapping[str, str]) -> tuple[Request, dict[str, str]]:
    """The request of these values, and those that it cannot hold."""
    taken: dict[str, Any] = {}
    refused = {}
    for key, value in values.items():
        try:
            found = {FIELDS[key].name: FIELDS[key].read(value)} if key in FIELDS else {key: value}
            Request(**found)
        except (ValueError, RequestError):
            refused[key] = value
        else:
            taken |= found
    return Request(**taken), refused


def _pairs(line: str) -> dict[str, str]:
    """The keys and values of a line, in one pass over it."""
    found: dict[str, str] = {}
    decoder, position = json.JSONDecoder(strict=False), 0
    while position < len(line):
        match = KEY.match(line, position)
        comma = line.find(",", position)
        if match is None:
            position = len(line) if comma < 0 else comma + 1
            continue
        position = match.end()
        if line.startswith('"', position):
            try:
                value, end = decoder.raw_decode(line, position)
            except ValueError:
                pass
            else:
                rest = SEPARATOR.match(line, end)
                if rest:
                    found[match[1]], position = value, rest.end()
                    continue
        comma = line.find(",", position)
        end = len(line) if comma < 0 else comma
        found[match[1]], position = line[position:end].strip(), end + 1
    return found
