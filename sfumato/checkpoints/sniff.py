"""What a file is, by its first bytes and never by its name."""

import struct
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile, ZipFile

from sfumato.core.errors import CheckpointError

Format = Literal["safetensors", "torch zip", "torch legacy", "folder"]

NOT_A_CHECKPOINT: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to: run `git lfs pull` in that repository"),
    (b"<!doctype html", "a web page, so the download failed or wanted a login: download the file itself"),
    (b"<html", "a web page, so the download failed or wanted a login: download the file itself"),
    (b"GGUF", "a GGUF file, which sfumato does not read: take the safetensors version of the model"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"RIFF", "a RIFF file (WebP, WAV), not weights"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"\x08\x07\x12", "an ONNX model, which sfumato does not read"),
    (b"\x93NUMPY", "a NumPy array, not a checkpoint"),
    (b"{", "a JSON file; give the folder that it lies in, or the weights"),
)
"""First bytes (compared without case) and what they show."""


def sniff(path: Path) -> Format:
    """The format of a file or folder.

    Raises:
        CheckpointError: it does not exist, cannot be read, or is not a checkpoint; the message says what it is.
    """
    if path.is_dir():
        return "folder"
    try:
        with path.open("rb") as file:
            head = file.read(64)
            size = path.stat().st_size
    except FileNotFoundError:
        raise CheckpointError(f"There is no file or folder {path}.") from None
    except OSError as problem:
        raise CheckpointError(f"{path} cannot be read: {problem.strerror}.") from None
    if not head:
        raise CheckpointError(f"{path} is empty.")
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 2**32:
        return "safetensors"
    if head[:4] == b"PK\x03\x04":
        return _zip(path)
    if head[:1] == b"\x80" and head[1] in range(1, 6):
        return "torch legacy"
    for magic, meaning in NOT_A_CHECKPOINT:
        if head.lstrip().lower().startswith(magic.lower()):
            raise CheckpointError(f"{path} is {meaning}.")
    raise CheckpointError(
        f"{path} ({size:,} bytes, beginning with {head[:8].hex(' ')}) is neither safetensors nor a PyTorch checkpoint."
    )


def _zip(path: Path) -> Format:
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
    except (BadZipFile, ValueError, NotImplementedError, OSError):
        raise CheckpointError(
            f"{path} begins like a PyTorch checkpoint but its table of contents, at the end, is missing or damaged: "
            "it is truncated "
            f"({path.stat().st_size:,} bytes are there). Download it again."
        ) from None
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(f"{path} is a zip archive without weights; unpack it and give what is inside.")
    return "torch zip"
