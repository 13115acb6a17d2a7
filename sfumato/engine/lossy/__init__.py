"""Ways to draw faster whose pictures differ: each declared, measured, and off unless it is asked for."""

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from sfumato.core.config import fields, parse
from sfumato.core.errors import ConfigError, RequestError
from sfumato.core.registry import Registry

if TYPE_CHECKING:
    from sfumato.engine.lossy.types import Lossy
    from sfumato.families.types import Model

LOSSY = Registry(
    kind="lossy mode",
    targets={
        "deepcache": "sfumato.engine.lossy.deepcache:DeepCache",
        "block_cache": "sfumato.engine.lossy.block_cache:BlockCache",
        "interval": "sfumato.engine.lossy.interval:GuidanceInterval",
        "token_merging": "sfumato.engine.lossy.token_merging:TokenMerging",
        "tiny_decoder": "sfumato.engine.lossy.tiny_decoder:TinyDecoder",
    },
    aliases={"tome": "token_merging", "taesd": "tiny_decoder", "guidance_interval": "interval"},
)
"""Each is a dataclass; ``name:value:value`` gives its fields in order, and what is left out has its default."""

FAST = ("deepcache", "block_cache", "interval", "tiny_decoder")
"""What ``fast`` stands for: those of these, with their defaults, that the model at hand can do."""


def read(texts: Sequence[str], model: "Model") -> "tuple[Lossy, ...]":
    """The modes that a request names.

    Raises:
        RequestError: an unknown mode (the nearest are offered), a value out of its range, the same mode twice, or one
            that this model cannot do.
    """
    found: dict[str, Lossy] = {}
    for text in texts:
        if text == "fast":
            chosen = [mode for mode in map(mode_of, FAST) if mode.name not in found and not mode.unfit(model)]
        else:
            mode = mode_of(text)
            if why := mode.unfit(model):
                raise RequestError(f"lossy = {text!r}: {why}.")
            chosen = [mode]
        for mode in chosen:
            if mode.name in found:
                raise RequestError(f"lossy: {mode.name} is asked for twice.")
            found[mode.name] = mode
    return tuple(found.values())


def mode_of(text: str) -> "Lossy":
    """``"deepcache:3"`` -> the mode, its other fields at their defaults."""
    name, *values = text.split(":")
    cls = LOSSY.get(name)
    known = fields(cls)
    if len(values) > len(known):
        raise RequestError(f"lossy = {text!r}: {LOSSY.canonical(name)} has {len(known)} values at most.")
    try:
        given: dict[str, Any] = {
            f.name: parse(value, f.type, f"lossy = {text!r}") for f, value in zip(known, values, strict=False)
        }
        mode: Lossy = cls(**given)
    except ConfigError as problem:
        raise RequestError(str(problem)) from None
    return mode


def notes(modes: "Sequence[Lossy]") -> list[str]:
    """What the caller ought to know of a picture that was drawn so: what was done, and what it was measured to cost."""
    if not modes:
        return []
    said = f"Lossy, as asked for: {'; '.join(f'{mode} ({mode.title})' for mode in modes)}."
    together = ",".join(map(str, modes))
    known = any(together in subject["modes"] for subject in measured().values())
    return [f"{said} {costs([together] if known else [*map(str, modes)])}"]


def costs(names: Sequence[str]) -> str:
    """What was measured of modes, by their names with all values: a sentence for each model that they were tried on."""
    told = []
    for subject in measured().values():
        found = [f"{name}: {_cost(subject['modes'][name])}" for name in names if name in subject["modes"]]
        told += [f"Measured on {subject['on']}: {'; '.join(found)}."] if found else []
    return " ".join(told) or "Never measured with these values."


def _cost(mode: dict[str, float]) -> str:
    faster = f"{mode['faster']:.2f} times as fast" if "faster" in mode else "its speed was never measured"
    return f"{mode['psnr']:.1f} dB PSNR to the exact picture, {faster}"


@cache
def measured() -> dict[str, Any]:
    """What ``python -m benchmarks.lossy`` wrote, by models: ``on`` what exactly, and by modes what they gain and cost.

    ``int8`` and ``fp8`` stand among the modes; they are those of the model (``quantize``). The latter tells no gain: it
    was tried on a CPU, which has no instructions for it.
    """
    text = resources.files("sfumato.engine.lossy").joinpath("measured.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
