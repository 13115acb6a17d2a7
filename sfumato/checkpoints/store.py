"""Opening weight files: safetensors by memory mapping, PyTorch pickles only through ``weights_only=True``.

The safetensors layout: eight bytes little-endian N, N bytes of JSON ``{name: {dtype, shape, data_offsets}}``, and the
tensors end to end. Opening reads the JSON alone; a tensor is a view of the mapped file until somebody converts it.
"""

import contextlib
import json
import mmap
import pickle
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.checkpoints.lazy import Lazy, Tensors, lazy_all
from sfumato.checkpoints.sniff import Format, sniff
from sfumato.core.config import read_json
from sfumato.core.errors import CheckpointError

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of precisions in a safetensors header."""

MAX_HEADER = 100_000_000
"""Bytes; the limit of the format's own library."""


@dataclass(frozen=True)
class File:
    """An opened weight file (or a set of shards).

    Attributes:
        path: the file, or the shards' index.
        format: by content.
        tensors: name -> tensor, none of them read yet.
        metadata: the header's ``__metadata__``, or what else stood beside the weights of a pickle, as text.
        shards: the files that an index lists, where it is one.
    """

    path: Path
    format: Format
    tensors: Tensors
    metadata: Mapping[str, str] = field(default_factory=dict)
    shards: tuple["File", ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that hold the weights."""
        return tuple(shard.path for shard in self.shards) or (self.path,)


def open_file(path: Path) -> File:
    """Open one weight file of any format that is read.

    Raises:
        CheckpointError: missing, truncated, damaged, unsafe, or no weights at all; see ``sniff`` for the rest.
    """
    kind = sniff(path)
    if kind == "folder":
        raise CheckpointError(f"{path} is a folder; a weight file was expected here.")
    return open_safetensors(path) if kind == "safetensors" else _open_pickle(path, kind)


def open_safetensors(path: Path) -> File:
    """Read and check the header; map the rest.

    Raises:
        CheckpointError: a header that is no JSON, names a precision unknown here, or whose tensors overlap, leave
            holes, or reach beyond the end of the file ("truncated: N bytes of M").
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int(struct.unpack("<Q", file.read(8))[0]) if size >= 8 else size + 1
        if length > MAX_HEADER:
            raise CheckpointError(f"{path}: a header of {length:,} bytes is claimed; the limit is {MAX_HEADER:,}.")
        if 8 + length > size:
            raise CheckpointError(
                f"{path} is truncated: {size:,} bytes of at least {8 + length:,}. Download or copy it again."
            )
        header = _parse(file.read(length), path)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ is not a table of texts.")
    base = 8 + length
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, Lazy] = {}
    for name, entry in header.items():
        shape, dtype, begin, end = _entry(name, entry, path)
        spans.append((begin, end, name))
        tensors[name] = _mapped(mapped, shape, dtype, base + begin, base + end)
    _check_spans(sorted(spans), size - base, base, path)
    return File(path, "safetensors", tensors, metadata)


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            names = [name for name, _ in pairs]
            raise CheckpointError(f"{path}: {next(n for n in names if names.count(n) > 1)!r} is there twice.")
        return table

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as problem:
        raise CheckpointError(f"{path}: its header is damaged ({problem}). Download or copy it again.") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is not a table of tensors.")
    return header


def _entry(name: str, entry: Any, path: Path) -> tuple[tuple[int, ...], torch.dtype, int, int]:
    def natural(values: Any) -> bool:
        return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)

    if not isinstance(entry, dict) or not natural(entry.get("shape")) or not natural(entry.get("data_offsets")):
        raise CheckpointError(f"{path}: the header's entry for {name!r} is damaged: {entry!r}.")
    if entry.get("dtype") not in DTYPES:
        raise CheckpointError(f"{path}: {name!r} is stored as {entry.get('dtype')!r}, a precision not read here.")
    shape, offsets, dtype = tuple(entry["shape"]), entry["data_offsets"], DTYPES[entry["dtype"]]
    count = 1
    for extent in shape:
        count *= extent
    if len(offsets) != 2 or offsets[1] - offsets[0] != count * dtype.itemsize:
        raise CheckpointError(
            f"{path}: {name!r} of shape {list(shape)} in {entry['dtype']} cannot lie at bytes {offsets}; "
            "the header is damaged."
        )
    return shape, dtype, offsets[0], offsets[1]


def _check_spans(spans: list[tuple[int, int, str]], available: int, base: int, path: Path) -> None:
    end = max((stop for _, stop, _ in spans), default=0)
    if end > available:
        raise CheckpointError(
            f"{path} is truncated: {base + available:,} bytes of {base + end:,}. Download or copy it again."
        )
    if spans and spans[0][0] != 0:
        raise CheckpointError(f"{path}: {spans[0][0]:,} bytes before {spans[0][2]!r} belong to no tensor.")
    for (_, stop, first), (start, _, second) in pairwise(spans):
        if stop != start:
            what = "overlap" if start < stop else f"have {start - stop:,} bytes between them that belong to no tensor"
            raise CheckpointError(f"{path}: {first!r} and {second!r} {what}; the header is damaged.")
    if end < available:
        raise CheckpointError(f"{path}: {available - end:,} bytes after the last tensor belong to none.")


def _mapped(mapped: mmap.mmap, shape: tuple[int, ...], dtype: torch.dtype, begin: int, end: int) -> Lazy:
    def read() -> Tensor:
        if begin == end:
            return torch.empty(shape, dtype=dtype)
        raw = torch.frombuffer(mapped, dtype=torch.uint8, count=end - begin, offset=begin)
        if begin % dtype.itemsize:  # a header whose writer did not pad it: a view would be misaligned
            raw = raw.clone()
        return raw.view(dtype).view(shape)

    def release() -> None:
        first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED, first, last - first)

    return Lazy(shape, dtype, read, release)


class _Inert:
    """Stands for a trainer's class whose name a pickle mentions; it holds nothing and does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


INERT_GLOBALS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "argparse.Namespace",
)
"""Classes that trainers leave in a checkpoint beside the weights. They are read as ``_Inert``, never imported."""

_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_SAFE: list[Any] = [
    *((_Inert, name) for name in INERT_GLOBALS),
    *((_NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32)),
]
"""Plain numbers of NumPy, which trainers keep as "best loss so far"."""


def _open_pickle(path: Path, kind: Format) -> File:
    try:
        with torch.serialization.safe_globals(_SAFE), contextlib.ExitStack() as stack, warnings.catch_warnings():
            # torch believes the suffix .safetensors whatever is inside; without a name it looks at the content.
            misnamed = path.suffix == ".safetensors"
            source = stack.enter_context(path.open("rb")) if misnamed else path
            mapped = kind == "torch zip" and not misnamed
            warnings.simplefilter("ignore", UserWarning)  # "pickle protocol 4": it is read, or it is refused
            content = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as problem:
        refused = re.search(r"GLOBAL (\S+)|Unsupported \w+ \S+|Trying to \w+ .*", str(problem))
        if refused is None:
            raise CheckpointError(f"{path} is damaged: {str(problem).splitlines()[0]}") from None
        reason = f"it asks for {refused[1]}" if refused[1] else refused[0].rstrip(".")
        raise CheckpointError(
            f"{path} is unsafe: reading it could run code that it brings along ({reason}). Nothing was run and nothing "
            "was loaded; take a safetensors version of this model, or ask its maker for one."
        ) from None
    except Exception as problem:  # the reader of pickles fails in as many ways as a file can be damaged
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise CheckpointError(f"{path} is truncated or damaged and cannot be read ({reason}).") from None
    tensors, metadata = _flatten(content, path)
    return File(path, kind, lazy_all(tensors), metadata)


WRAPPERS = ("state_dict", "params_ema", "params", "ema", "model")
"""Keys under which trainers nest the weights, looked for in this order: averages before what they are averages of."""


def _flatten(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights of a pickle, and what else of plain values stood beside them."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a table of weights.")
    for wrapper in WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, Mapping) and any(isinstance(v, Tensor) for v in inner.values()):
            beside = {k: str(v) for k, v in content.items() if isinstance(v, str | int | float)}
            return {str(k): v for k, v in inner.items() if isinstance(v, Tensor)}, beside
    tensors = dict(_walk(content))
    if not tensors:
        raise CheckpointError(f"{path} holds no weights (its keys: {', '.join(map(str, list(content)[:8]))}).")
    return tensors, {str(k): str(v) for k, v in content.items() if isinstance(v, str | int | float)}


def _walk(table: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in table.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _walk(value, f"{prefix}{key}.")


def open_shards(index: Path) -> File:
    """Open the shards that an ``….index.json`` lists, as one file.

    Raises:
        CheckpointError: an index that names files outside its folder, a missing shard, or shards that disagree with it.
    """
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} is not an index of shards: it has no weight_map.")
    names = sorted(set(map(str, weight_map.values())))
    if any(Path(name).name != name for name in names):
        raise CheckpointError(f"{index} names files outside its folder; it is refused.")
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise CheckpointError(f"{index} lists {len(names)} shards, of which are missing: {', '.join(missing)}.")
    shards = {name: open_file(index.parent / name) for name in names}
    tensors: dict[str, Lazy] = {}
    for name, shard in weight_map.items():
        if name not in shards[shard].tensors:
            raise CheckpointError(f"{index} says that {name!r} is in {shard}; it is not.")
        tensors[name] = shards[shard].tensors[name]
    extra = [n for shard in shards.values() for n in shard.tensors if n not in tensors]
    if extra:
        raise CheckpointError(f"{index} does not list {extra[0]!r} and {len(extra) - 1} others that its shards hold.")
    return File(index, shards[names[0]].format, tensors, shards=tuple(shards.values()))
