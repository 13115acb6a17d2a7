"""How files of adapters name the layers that they change: a literal row a naming, the layers from the networks.

A key of such a file is a layer's name in somebody's spelling, and an ending that says which factor of the change it is.
Here is the first half; the endings belong to the kinds of adapters (``sfumato.adapters``).
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from sfumato.checkpoints.keymap import names
from sfumato.checkpoints.ldm import unet_rows
from sfumato.checkpoints.parts import Part
from sfumato.models.unet import UNetConfig


class Layer(NamedTuple):
    """A layer of a model: ``unet`` and ``mid_block.attentions.0.proj_in``."""

    part: str
    name: str


class Naming(NamedTuple):
    """One way to write a layer's name.

    Attributes:
        prefixes: what stands before it, by parts.
        spelling: (pattern, replacement) pairs, applied in turn to the name that the layer has here.
        single_file: the name is that of the original single file, spelled so.
    """

    prefixes: Mapping[str, tuple[str, ...]]
    spelling: tuple[tuple[str, str], ...] = ()
    single_file: bool = False


_TEXTS = ("text_encoder", "text_encoder_2")
_PARTS = ("unet", "transformer", *_TEXTS)
_DOTTED = {name: (f"{name}.",) for name in _PARTS}
_KOHYA = {
    "unet": ("lora_unet_",), "transformer": ("lora_transformer_",), "text_encoder": ("lora_te_", "lora_te1_"),
    "text_encoder_2": ("lora_te2_",),
}
_FLAT = ((r"\.", "_"),)
_BARE = ((r"^text_model\.", ""),)
_PROCESSOR = (
    (r"\.(attn\d)\.(to_[qkv])$", r".\1.processor.\2"),
    (r"\.(attn\d)\.to_out\.0$", r".\1.processor.to_out"),
    (r"\.self_attn\.([qkv])_proj$", r".self_attn.to_\1"),
    (r"\.self_attn\.out_proj$", r".self_attn.to_out"),
)

NAMINGS: Mapping[str, Naming] = {
    "kohya": Naming(_KOHYA, _FLAT),
    "kohya, of a single file": Naming({"unet": ("lora_unet_",)}, _FLAT, single_file=True),
    "diffusers": Naming({**_DOTTED, "unet": ("unet.", ""), "transformer": ("transformer.", "")}),
    "diffusers, with transformers 5": Naming({name: (f"{name}.",) for name in _TEXTS}, _BARE),
    "diffusers, before peft": Naming({**_DOTTED, "unet": ("unet.", "")}, _PROCESSOR),
    "peft": Naming(dict.fromkeys(_PARTS, ("base_model.model.",))),
    "peft, with transformers 5": Naming(dict.fromkeys(_TEXTS, ("base_model.model.",)), _BARE),
}
"""Every naming that is read. A file may mix them."""


def layers(part: Part) -> list[str]:
    """The names of a part's linear layers, convolutions and norms."""
    named = [key.removesuffix(".weight") for key in part.tensors if key.endswith(".weight")]
    return [name for name in named if not name.endswith("_embedding")]


def spellings(parts: Mapping[str, Part]) -> dict[str, frozenset[Layer]]:
    """Every spelling of every layer, and the layers that it may mean: one, unless two parts are built alike."""
    found: dict[str, set[Layer]] = defaultdict(set)
    for naming in NAMINGS.values():
        for part, prefixes in naming.prefixes.items():
            if part not in parts:
                continue
            for theirs, ours in _pairs(parts[part], naming.single_file):
                for prefix in prefixes:
                    found[prefix + _spelt(naming, theirs)].add(Layer(part, ours))
    return {spelling: frozenset(meant) for spelling, meant in found.items()}


def spell(naming: Naming, layer: Layer) -> str:
    """A layer's name as files of that naming have it, with the first of its prefixes."""
    return naming.prefixes[layer.part][0] + _spelt(naming, layer.name)


def _spelt(naming: Naming, name: str) -> str:
    for pattern, replacement in naming.spelling:
        name = re.sub(pattern, replacement, name)
    return name


def _pairs(part: Part, single_file: bool) -> Iterator[tuple[str, str]]:
    """(their name, ours) of every layer."""
    known = layers(part)
    if not single_file:
        yield from ((name, name) for name in known)
    elif isinstance(part.config, UNetConfig):
        for row in unet_rows(part.config):
            (theirs,), (ours,) = names(row.theirs), names(row.ours)
            if ours.endswith(".weight") and ours.removesuffix(".weight") in known:
                yield theirs.removesuffix(".weight"), ours.removesuffix(".weight")
