"""Model folders as diffusers lays them out: model_index.json, and a subfolder for each part."""

import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sfumato.checkpoints.file_names import SET_ASIDE, TOKENIZER_FILES, variants, weight_names
from sfumato.checkpoints.kinds import describe
from sfumato.checkpoints.parts import IGNORED_BUFFERS, KINDS, Part, kind_of, our_names, read_config, write_config
from sfumato.checkpoints.store import File, open_file, open_shards
from sfumato.checkpoints.write import atomic_folder, save_json, save_shards, stored_dtype
from sfumato.core.config import read_json
from sfumato.core.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Folder:
    """A model folder, opened: configs read, weights mapped, nothing converted.

    Attributes:
        pipeline: the class in model_index.json, e.g. ``StableDiffusionPipeline``.
        parts: subfolder name -> part.
        schedulers: subfolder name -> scheduler_config.json, ``_class_name`` included.
        tokenizers: subfolder name -> its folder.
        options: the plain values of model_index.json, e.g. ``force_zeros_for_empty_prompt``.
        set_aside: subfolders that drawing does not need and that were not read.
        path: where it was read from.
    """

    pipeline: str
    parts: Mapping[str, Part]
    schedulers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tokenizers: Mapping[str, Path] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    set_aside: tuple[str, ...] = ()
    path: Path | None = None


def open_weights(folder: Path, kind: str, variant: str | None = None) -> File:
    """The weights of one part.

    Raises:
        CheckpointError: none there; the message names the variants that are.
    """
    entry = KINDS[kind]
    wanted = weight_names(entry.stem, entry.pickle_stem, variant)
    for name in wanted:
        if (folder / name).exists():
            return open_shards(folder / name) if name.endswith(".json") else open_file(folder / name)
    others = variants(p.name for p in folder.iterdir())
    plain = weight_names(entry.stem, entry.pickle_stem, None)
    if variant is not None and any((folder / name).exists() for name in plain):
        advice = f"there is no variant {variant!r}, but the plain weights are there: leave the variant out"
    elif others:
        advice = f"say which variant: {', '.join(others)}"
    else:
        advice = f"{', '.join(wanted)} were looked for"
    raise CheckpointError(f"{folder} holds no weights of that kind; {advice}.")


def read_part(folder: Path, kind: str | None = None, variant: str | None = None) -> Part:
    """One subfolder, or a folder that holds one network alone.

    Args:
        kind: its class; None: what its config.json says.

    Raises:
        CheckpointError: no config, a class or a setting that is not built here, no weights.
    """
    settings = _json(folder / "config.json")
    if kind is None:
        named = settings.get("_class_name") or next(iter(settings.get("architectures") or ()), None)
        if not isinstance(named, str):
            raise CheckpointError(f"{folder / 'config.json'} does not say of which class it is.")
        kind = named
    kind_of(kind, str(folder))
    config = read_config(kind, settings, str(folder / "config.json"))
    file = open_weights(folder, kind, variant)
    tensors = our_names(kind, file.tensors)
    left = tuple(name for name in file.tensors if re.fullmatch(IGNORED_BUFFERS, name))
    return Part(kind, config, tensors, str(file.path), left, describe(file.tensors), file, file.paths)


def read_folder(path: Path, variant: str | None = None) -> Folder:
    """Open a model folder.

    Args:
        variant: e.g. ``fp16``: the weights whose file names have it.

    Raises:
        CheckpointError: no model_index.json, a part that is listed and missing, or anything ``read_part`` refuses.
    """
    index = _json(path / "model_index.json")
    parts: dict[str, Part] = {}
    schedulers: dict[str, Mapping[str, Any]] = {}
    tokenizers: dict[str, Path] = {}
    options: dict[str, Any] = {}
    aside: list[str] = []
    for name, value in index.items():
        if name.startswith("_"):
            continue
        if not (isinstance(value, list) and len(value) == 2):
            options[name] = value
            continue
        _, kind = value
        folder = path / name
        if Path(name).name != name:
            raise CheckpointError(f"{path / 'model_index.json'} names {name!r}, which is outside the folder.")
        if kind is None:
            continue
        if name in SET_ASIDE:
            aside.append(name)
        elif not folder.is_dir():
            raise CheckpointError(f"{path / 'model_index.json'} lists {name} ({kind}); there is no folder {folder}.")
        elif "scheduler" in name:
            schedulers[name] = {"_class_name": kind, **_json(folder / "scheduler_config.json")}
        elif name.startswith("tokenizer"):
            tokenizers[name] = folder
        else:
            parts[name] = read_part(folder, kind, variant)
    pipeline = str(index.get("_class_name", ""))
    return Folder(pipeline, parts, schedulers, tokenizers, options, tuple(aside), path)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ConfigError as problem:
        raise CheckpointError(str(problem)) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a table of settings.")
    return content


def write_folder(
    path: Path,
    folder: Folder,
    *,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    max_bytes: int = 10_000_000_000,
    overwrite: bool = False,
) -> None:
    """Write a model folder that diffusers reads; it appears whole or not at all.

    Args:
        variant: becomes part of the weight files' names.
        dtype: precision of floating-point weights in the files; None: as they are.
        max_bytes: of one weight file; more is sharded.
        overwrite: replace what is there.

    Raises:
        CheckpointError, CapacityError: see ``atomic_folder``.
    """
    with atomic_folder(path, overwrite) as made:
        save_json(made / "model_index.json", dict(_index_of(folder)))
        for name, part in folder.parts.items():
            (made / name).mkdir()
            write_part(made / name, part, variant=variant, dtype=dtype, max_bytes=max_bytes)
        for name, scheduler in folder.schedulers.items():
            (made / name).mkdir()
            save_json(made / name / "scheduler_config.json", scheduler)
        for name, source in folder.tokenizers.items():
            (made / name).mkdir()
            for file in TOKENIZER_FILES:
                if (source / file).exists():
                    shutil.copyfile(source / file, made / name / file)


def write_part(
    folder: Path,
    part: Part,
    *,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    max_bytes: int = 10_000_000_000,
) -> None:
    """Write config.json and the weights of one part into an existing folder."""
    precisions = {stored_dtype(t, dtype) for t in part.tensors.values() if t.dtype.is_floating_point}
    precision = precisions.pop() if len(precisions) == 1 else None
    save_json(folder / "config.json", write_config(part.kind, part.config, precision))
    stem = KINDS[part.kind].stem
    save_shards(folder, stem, part.tensors, variant=variant, dtype=dtype, max_bytes=max_bytes)


def _index_of(folder: Folder) -> Iterator[tuple[str, Any]]:
    yield "_class_name", folder.pipeline
    for name, part in folder.parts.items():
        library = "transformers" if KINDS[part.kind].stem == "model" else "diffusers"
        yield name, [library, part.kind]
    for name, scheduler in folder.schedulers.items():
        yield name, ["diffusers", scheduler["_class_name"]]
    for name in folder.tokenizers:
        yield name, ["transformers", "CLIPTokenizer"]
    if folder.pipeline in NEEDS_SAFETY_ENTRIES:
        yield "safety_checker", [None, None]
        yield "feature_extractor", [None, None]
        yield "requires_safety_checker", False
    for name, value in folder.options.items():
        if name != "requires_safety_checker":
            yield name, value


NEEDS_SAFETY_ENTRIES = (
    "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
    "StableDiffusionControlNetPipeline",
)  # fmt: skip
"""Pipelines of diffusers that cannot be opened unless their index says that they have no safety checker."""
