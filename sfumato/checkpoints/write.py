"""Writing files that are either whole or not there: temporary file, fsync, rename.

A checkpoint that names its content's SHA-256 in its header (``tensors_sha256``) can be checked after any copy;
safetensors itself has no checksum.
"""

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from sfumato.checkpoints.hashes import CONTENT_KEY, ContentHash, raw_bytes
from sfumato.checkpoints.lazy import Lazy, Tensors
from sfumato.checkpoints.store import DTYPES
from sfumato.core import files
from sfumato.core.errors import CheckpointError, SfumatoError

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def atomic_file(path: Path) -> AbstractContextManager[BinaryIO]:
    """``core.files.atomic_file``, whose failures are of checkpoints here."""
    return files.atomic_file(path, CheckpointError)


@contextmanager
def atomic_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` only if the block ends without an error.

    Args:
        overwrite: replace a folder that is there; it stays untouched until the new one is complete.

    Raises:
        CheckpointError: ``path`` exists and is not to be replaced, or it cannot be written. CapacityError: disk full.
    """
    if path.exists() and not overwrite and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path} exists already; choose another place, or say that it may be overwritten.")
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        os.chmod(temporary, 0o777 & ~_umask())
        yield temporary
        files.sync_folder(temporary)
        if path.exists():
            old = temporary.with_suffix(".old")
            os.replace(path, old)
            os.replace(temporary, path)
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        else:
            os.replace(temporary, path)
        files.sync_folder(path.parent)
    except OSError as problem:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise files.refusal(problem, path, CheckpointError) from problem
    except SfumatoError as problem:  # about a file inside: its temporary name would tell nobody anything
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise type(problem)(str(problem).replace(str(temporary), str(path))) from problem
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save_json(path: Path, content: Any) -> None:
    """Write JSON as the ecosystem does (indent 2, keys sorted, newline at the end), atomically."""
    with atomic_file(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def save_file(
    path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None, dtype: torch.dtype | None = None
) -> str:
    """Write one safetensors file, one tensor in memory at a time.

    Args:
        metadata: texts for the header; ``format: pt`` and ``tensors_sha256`` are added.
        dtype: precision of the floating-point tensors in the file; None: as they are.

    Returns:
        The SHA-256 of the tensors' content (see ``hashes.content_hash``), which the header names too.

    Raises:
        CapacityError, CheckpointError: see ``atomic_file``; a precision that the format has no name for.
    """
    # Largest elements first keeps every tensor aligned to its own element size; the header is padded to 8 bytes.
    names = sorted(tensors, key=lambda n: (-stored_dtype(tensors[n], dtype).itemsize, n))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {}), CONTENT_KEY: "0" * 64}}
    offset = 0
    for name in names:
        stored = stored_dtype(tensors[name], dtype)
        if stored not in _DTYPE_NAMES:
            raise CheckpointError(f"{path} was not written: safetensors has no name for {stored} ({name!r}).")
        end = offset + tensors[name].numel * stored.itemsize
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _DTYPE_NAMES[stored], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    content = ContentHash()
    with atomic_file(path) as file:
        file.write(_encode(header))
        for name in names:
            tensor = tensors[name].read().to(stored_dtype(tensors[name], dtype))
            raw = raw_bytes(tensor)
            content.add(name, tensor, raw)
            file.write(raw)
            tensors[name].release()
        header["__metadata__"][CONTENT_KEY] = content.hexdigest()
        file.seek(0)
        file.write(_encode(header))
    return content.hexdigest()


def stored_dtype(tensor: Lazy | Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Precision in the file: only floating-point tensors change theirs."""
    return dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype


def _encode(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def save_shards(
    folder: Path,
    stem: str,
    tensors: Tensors,
    *,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    max_bytes: int = 10_000_000_000,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``stem.safetensors`` into ``folder``, or, past ``max_bytes``, shards and their index.

    Args:
        stem: ``diffusion_pytorch_model`` or ``model``.
        variant: e.g. ``fp16``, which becomes part of the names as diffusers and transformers spell them.
        max_bytes: of one file.
    """
    infix = f".{variant}" if variant else ""
    groups: list[dict[str, Lazy]] = [{}]
    filled = total = 0
    for name in tensors:
        size = tensors[name].numel * stored_dtype(tensors[name], dtype).itemsize
        if filled + size > max_bytes and groups[-1]:
            groups.append({})
            filled = 0
        groups[-1][name] = tensors[name]
        filled, total = filled + size, total + size
    if len(groups) == 1:
        save_file(folder / f"{stem}{infix}.safetensors", tensors, metadata, dtype)
        return
    weight_map: dict[str, str] = {}
    for i, group in enumerate(groups, 1):
        file = f"{stem}{infix}-{i:05}-of-{len(groups):05}.safetensors"
        save_file(folder / file, group, metadata, dtype)
        weight_map |= dict.fromkeys(group, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    save_json(folder / f"{stem}.safetensors.index{infix}.json", index)
