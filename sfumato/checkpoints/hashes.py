"""Hashes by which a checkpoint is known, and by which damage is noticed."""

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfumato.checkpoints.lazy import Tensors
from sfumato.checkpoints.sniff import sniff
from sfumato.checkpoints.store import File
from sfumato.core.errors import CheckpointError, SfumatoError
from sfumato.core.files import atomic_file, cache_folder
from sfumato.core.version import VERSION

CONTENT_KEY = "tensors_sha256"
"""Key of a safetensors header's ``__metadata__`` that holds the content hash."""


def raw_bytes(tensor: Tensor) -> memoryview:
    """The elements in row-major order, as bytes (a view where the tensor is contiguous and on the CPU)."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


class ContentHash:
    """SHA-256 of names, precisions, shapes and elements: the same for any order, sharding or header of the file."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, name: str, tensor: Tensor, raw: memoryview | None = None) -> None:
        """Take one tensor in; ``raw`` saves its bytes being made twice."""
        digest = hashlib.sha256(raw_bytes(tensor) if raw is None else raw).hexdigest()
        shape = "x".join(map(str, tensor.shape))
        self._lines.append(f"{name} {str(tensor.dtype).removeprefix('torch.')} {shape} {digest}\n")

    def hexdigest(self) -> str:
        """Of all tensors taken in so far."""
        return hashlib.sha256("".join(sorted(self._lines)).encode()).hexdigest()


def content_hash(tensors: Tensors) -> str:
    """SHA-256 of the tensors' content; reads each once, one at a time."""
    content = ContentHash()
    for name, tensor in tensors.items():
        content.add(name, tensor.read())
        tensor.release()
    return content.hexdigest()


def verify(file: File) -> bool:
    """Whether the content is what the header's ``tensors_sha256`` says, of every shard; False where one names none.

    Raises:
        CheckpointError: the content is not what it was when the file was written.
    """
    if file.shards:
        known = [verify(shard) for shard in file.shards]  # every one is read before the answer
        return all(known)
    claimed = file.metadata.get(CONTENT_KEY)
    if claimed is None:
        return False
    found = content_hash(file.tensors)
    if found != claimed:
        raise CheckpointError(
            f"{file.path} is damaged: its tensors hash to {found[:16]}…, its header says {claimed[:16]}…. Its bytes "
            "changed since it was written; copy or download it again."
        )
    return True


@dataclass(frozen=True)
class FileHashes:
    """Of one file's bytes.

    Attributes:
        sha256: of the whole file.
        autov1: A1111's first model hash: 8 digits of the SHA-256 of 64 KiB at 1 MiB.
        autov2: A1111's short hash ("Model hash:" in its infotext): 10 digits of the file's SHA-256.
        autov3: 12 digits of the SHA-256 of all that follows a safetensors header; None for pickles. An edit of the
            metadata does not change it.
    """

    sha256: str
    autov1: str
    autov2: str
    autov3: str | None


def file_hashes(path: Path) -> FileHashes:
    """All hashes of a file, in one pass over it."""
    whole, window, body = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
    header = 0
    safe = sniff(path) == "safetensors"
    with path.open("rb") as file:
        if safe:
            header = 8 + int.from_bytes(file.read(8), "little")
            file.seek(0)
        position = 0
        while chunk := file.read(1 << 20):
            whole.update(chunk)
            body.update(chunk[max(0, header - position) :])
            window.update(chunk[max(0, 0x100000 - position) : max(0, 0x110000 - position)])
            position += len(chunk)
    digest = whole.hexdigest()
    return FileHashes(digest, window.hexdigest()[:8], digest[:10], body.hexdigest()[:12] if safe else None)


REMEMBERED_ABOVE, REMEMBERED = 1 << 28, 1000
"""Bytes below which a hash is computed anew each time, in less than a second; and how many hashes are kept."""


def remembered(paths: Iterable[Path], what: str, compute: Callable[[], str]) -> str:
    """A hash of what is in large files, computed once for as long as none of them changes.

    Args:
        paths: the files; where none are named, nothing is remembered.
        what: which of the hashes of these files it is.
        compute: reads them.
    """
    states = [(path.resolve(), path.stat()) for path in sorted(set(paths))]
    if sum(state.st_size for _, state in states) < REMEMBERED_ABOVE:
        return compute()
    known = [(str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in states]
    key = hashlib.sha256(json.dumps([VERSION, what, known]).encode()).hexdigest()
    store = cache_folder() / "hashes.json"
    if key in (found := _read(store)):
        return found[key]
    value = compute()
    with suppress(OSError, SfumatoError):  # where nothing can be kept, it is computed again
        store.parent.mkdir(parents=True, exist_ok=True)
        kept = [*_read(store).items()][1 - REMEMBERED :]
        with atomic_file(store) as file:
            file.write(json.dumps({**dict(kept), key: value}, indent=1).encode())
    return value


def _read(store: Path) -> dict[str, str]:
    """What is known; a file that cannot be read is as good as none, since hashes can be computed again."""
    try:
        content = json.loads(store.read_text(encoding="utf-8"))
        return {str(key): str(value) for key, value in content.items()}
    except (OSError, ValueError, AttributeError):
        return {}
