"""Opening an adapter: where it lies, whose it is, and what it does to which layer of a model."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.adapters import FORMS, NOT_READ
from sfumato.adapters.change import ENDINGS, Change
from sfumato.adapters.trained import FILE
from sfumato.adapters.types import Form, Wanted
from sfumato.checkpoints.hashes import FileHashes, file_hashes
from sfumato.checkpoints.hub import Name, fetch, parse_name
from sfumato.checkpoints.kinds import ADAPTERS, describe
from sfumato.checkpoints.layer_names import Layer, spellings
from sfumato.checkpoints.lazy import Lazy, Tensors, listing
from sfumato.checkpoints.parts import Part
from sfumato.checkpoints.store import open_file
from sfumato.core.config import read_json
from sfumato.core.errors import CheckpointError, RequestError, nearest

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
IN_FOLDER = (
    "pytorch_lora_weights.safetensors", "adapter_model.safetensors", FILE, "pytorch_lora_weights.bin",
    "adapter_model.bin",
)
"""What an adapter's file is called in a folder of its own."""
CONFIG, HEADER = "adapter_config.json", "lora_adapter_metadata"
"""Where peft says with which ``lora_alpha`` was trained: a file beside the weights, or an entry of their header."""


@dataclass(frozen=True)
class AdapterFile:
    """An opened adapter, none of its tensors read yet.

    Attributes:
        settings: peft's, by the prefix of the names that they are for; see ``_alpha``.
    """

    path: Path
    tensors: Tensors
    settings: Mapping[str, Mapping[str, Any]]

    @property
    def hashes(self) -> FileHashes:
        """Of the file."""
        return _hashes(self.path, self.path.stat().st_mtime_ns)


@cache
def _hashes(path: Path, changed: int) -> FileHashes:
    return file_hashes(path)


def locate(wanted: Wanted, folder: Path | None) -> Path:
    """The file of an adapter: of that path, of that name in the folder of LoRAs, or of that name on the hub.

    What a prompt asks for is looked for in the folder alone.

    Raises:
        CheckpointError: it is not there. RequestError: a prompt asks for one, and no folder was named.
    """
    if wanted.tag and folder is None:
        raise RequestError(
            f"The prompt asks for <lora:{wanted.name}>, and no folder of LoRAs was named: do so with --lora-folder "
            "(sfumato.load(…, lora_folder=…)), or give the file itself with --lora."
        )
    if not wanted.tag:
        path = Path(wanted.name).expanduser()
        if path.is_dir():
            return _in_folder(path)
        if path.exists():
            return path
    known = listed(folder)
    if found := known.get(wanted.name):
        if len(found) > 1:
            raise CheckpointError(f"Several LoRAs are called {wanted.name!r}: {', '.join(map(str, found))}.")
        return found[0]
    name = None if wanted.tag else parse_name(wanted.name)
    if name is not None:
        return fetch(name if name.file else Name(name.repository, IN_FOLDER[0], name.revision), None)
    where = "no such file or folder" if folder is None else f"no such file, and none of that name in {folder}"
    raise CheckpointError(f"There is no LoRA {wanted.name!r}: {where}{nearest(wanted.name, known)}")


def listed(folder: Path | None) -> dict[str, list[Path]]:
    """The files of the folder of LoRAs, by their names without suffix."""
    found: dict[str, list[Path]] = defaultdict(list)
    if folder is not None:
        if not folder.is_dir():
            raise CheckpointError(f"The folder of LoRAs, {folder}, is not there.")
        for path in sorted(folder.rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                found[path.stem].append(path)
    return found


def _in_folder(path: Path) -> Path:
    for name in IN_FOLDER:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(f"{path} is a folder without a LoRA (those have {' or '.join(IN_FOLDER[:2])}).")


def open_adapter(path: Path) -> AdapterFile:
    """Open the file of an adapter.

    Raises:
        CheckpointError: it is damaged, or no adapter but a model.
    """
    file = open_file(path)
    seems = describe(file.tensors)
    if seems and seems not in ADAPTERS:
        raise CheckpointError(f"{path} is {seems}, and no LoRA: open it with --model, or --vae for an autoencoder.")
    settings: dict[str, Mapping[str, Any]] = {}
    if HEADER in file.metadata:
        settings = _by_prefix(file.metadata[HEADER], path)
    elif (beside := path.with_name(CONFIG)).is_file():
        settings = {"": _table(read_json(beside), beside)}
    return AdapterFile(path, file.tensors, settings)


def _table(found: Any, where: Path) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} is not a table of settings.")
    return found


def _by_prefix(text: str, path: Path) -> dict[str, Mapping[str, Any]]:
    """``{"unet.r": 8, …}`` -> ``{"unet.": {"r": 8, …}}``."""
    try:
        flat = _table(json.loads(text), path)
    except ValueError:
        raise CheckpointError(f"{path}: what its header says of LoRA ({HEADER}) is damaged.") from None
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in flat.items():
        part, dot, name = str(key).partition(".")
        found[part + dot][name] = value
    return dict(found)


def recognise(file: AdapterFile, parts: Mapping[str, Part]) -> tuple[Change, ...]:
    """What the adapter does to each layer of a model; shapes are checked, nothing is read.

    Args:
        parts: what an adapter may change.

    Raises:
        CheckpointError: keys that name no layer of this model, or are of a form that is not read; shapes of another
            model's layers; factors that are missing.
    """
    where = str(file.path)
    known = spellings(parts)
    forms = [FORMS.get(name) for name in FORMS]
    rows: list[tuple[str, str, type[Form] | None]] = [(end, role, None) for end, role in ENDINGS.items()]
    rows += [(end, role, form) for form in forms for end, role in form.endings.items()]
    rows.sort(key=lambda row: -len(row[0]))
    grouped: dict[tuple[Layer, str], dict[str, Lazy]] = defaultdict(dict)
    chosen: dict[tuple[Layer, str], type[Form]] = {}
    stems: dict[Layer, str] = {}
    unread, foreign = [], []
    for key, tensor in file.tensors.items():
        ending, role, form = next((row for row in rows if key.endswith(row[0])), ("", "", None))
        if not ending:
            unread.append(key)
            continue
        stem = key.removesuffix(ending)
        meant = known.get(stem, frozenset())
        if not meant:
            foreign.append(key)
            continue
        if len(meant) > 1:
            either = " or ".join(layer.part for layer in sorted(meant))
            raise CheckpointError(f"{where}: {key} may be of {either}; its names do not tell which.")
        (layer,) = meant
        place = layer, "weight" if form is None else form.parameter
        if role in grouped[place] or (form is not None and chosen.setdefault(place, form) is not form):
            raise CheckpointError(f"{where}: {key} says once more what it does to {layer.part}.{layer.name}.")
        grouped[place][role], stems[layer] = tensor, stem
    _complain(file, parts, unread, foreign)
    changes = []
    for (layer, parameter), factors in grouped.items():
        form = chosen.get((layer, parameter))
        if form is None:
            raise CheckpointError(f"{where}: of {layer.part}.{layer.name} there is {' and '.join(factors)} alone.")
        # The set that is whole, or else the one that is most likely meant.
        needed = max(form.needed, key=lambda s: (s <= factors.keys(), len(s & factors.keys()), -len(s)))
        if lacking := sorted(needed - factors.keys()):
            raise CheckpointError(f"{where}: of {layer.part}.{layer.name} there is no {' and no '.join(lacking)}.")
        scale = None if "alpha" in factors else _scale(file, stems[layer], form, factors)
        changes.append(Change(layer, form, factors, scale))
        _check(changes[-1], parts[layer.part], file)
    if not changes:
        raise CheckpointError(f"{where} holds no LoRA (its keys: {listing(file.tensors)}).")
    return tuple(changes)


def _complain(file: AdapterFile, parts: Mapping[str, Part], unread: list[str], foreign: list[str]) -> None:
    if unread:
        forms = dict.fromkeys(what for key in unread for sign, what in NOT_READ.items() if f".{sign}" in key)
        kind = f"It holds {', '.join(forms)}, which is not read yet" if forms else "Its keys are not a LoRA's"
        raise CheckpointError(f"{file.path}: {kind}: {listing(unread)}.")
    if foreign:
        made = f" It seems to be made for {base}." if (base := made_for(file)) else ""
        raise CheckpointError(
            f"{file.path} does not fit this model ({', '.join(parts)}): it names layers that are not there, "
            f"{listing(foreign)}.{made}"
        )


def _check(change: Change, part: Part, file: AdapterFile) -> None:
    """Run the change on the meta device, which knows shapes."""
    layer = change.layer
    if change.name not in part.tensors:
        raise CheckpointError(f"{file.path} does not fit this model: {layer.part} has no {change.name}.")
    shape = part.tensors[change.name].shape
    factors = {role: tensor.meta().float() for role, tensor in change.factors.items()}
    try:
        fits = change.made(torch.empty(shape, device="meta"), factors, 1.0).shape == shape
    except (RuntimeError, IndexError):
        fits = False
    if not fits:
        shapes = ", ".join(f"{role} {list(t.shape)}" for role, t in change.factors.items() if t.shape)
        made = f" It seems to be made for {base}." if (base := made_for(file)) else ""
        raise CheckpointError(
            f"{file.path} does not fit this model: {layer.part}.{layer.name} is {list(shape)}, and the LoRA has "
            f"{shapes} for it.{made}"
        )


CONTEXTS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 1280: "the refiner of Stable Diffusion XL",
            2048: "Stable Diffusion XL"}  # fmt: skip
"""Which model's text states are so wide."""


def made_for(file: AdapterFile) -> str:
    """The model that an adapter was trained on, as far as its shapes show; for messages."""
    for key, tensor in file.tensors.items():
        if re.search(r"attn2[._](processor\.)?to_[kv].*(lora_down|lora_A|lora\.down)", key) and len(tensor.shape) > 1:
            return CONTEXTS.get(tensor.shape[1], "")
    return ""


def _scale(file: AdapterFile, stem: str, form: type[Form], factors: Mapping[str, Lazy]) -> float | None:
    """Of a layer whose file keeps it apart from the weights, as peft does; None: it says nothing.

    ``lora_alpha`` (``alpha`` of LoHa and LoKr) is for all layers and ``alpha_pattern`` for those whose name matches;
    with ``use_rslora`` the change is scaled by ``alpha / sqrt(rank)`` (Kalajdzievski, 2023).
    """
    for prefix, settings in file.settings.items():
        alpha = settings.get("lora_alpha", settings.get("alpha"))
        if not stem.startswith(prefix) or alpha is None:
            continue
        rank = form.rank({role: tensor.shape for role, tensor in factors.items()})
        if rank is None:
            rank = int(_of_layer(settings, "rank_pattern", stem, settings.get("r", 1)))
        alpha = float(_of_layer(settings, "alpha_pattern", stem, alpha))
        return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    return None


def _of_layer(settings: Mapping[str, Any], name: str, stem: str, usual: Any) -> Any:
    """What a table of patterns says of a layer."""
    patterns = settings.get(name) or {}
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", stem)), usual)


def merged(part: Part, name: str, changes: list[tuple[Sequence[Change], float]]) -> Part:
    """A part whose changed layers are computed when they are read; its files and all other layers stay as they are.

    Args:
        name: of the part.
        changes: of each adapter, with its strength; they are made one after the other.
    """
    tensors = dict(part.tensors)
    for some, strength in changes:
        for change in some:
            if change.layer.part == name and strength:
                tensors[change.name] = _changed(tensors[change.name], change, strength)
    return Part(part.kind, part.config, tensors, part.where, part.left_behind, part.seems, part.file, part.paths)


def _changed(weight: Lazy, change: Change, strength: float) -> Lazy:
    """In float32 whatever the file has, so that rounding to the model's precision is done once."""

    def read() -> Tensor:
        factors = {role: tensor.read().float() for role, tensor in change.factors.items()}
        made = change.made(weight.read().float(), factors, strength)
        for tensor in (weight, *change.factors.values()):
            tensor.release()  # what was made is a copy
        return made

    return Lazy(weight.shape, torch.float32, read, weight.release)
