"""Files that are either whole or not there: a temporary one beside them, fsync, rename."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sfumato.core.errors import CapacityError, RequestError, SfumatoError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refusal(problem: OSError, path: Path, error: type[SfumatoError]) -> SfumatoError:
    """What to say of a file that could not be written."""
    reason = f"{path} was not written: {problem.strerror or problem}. Nothing half-written was left behind"
    if problem.errno in FULL:
        return CapacityError(f"{reason}, and what was there before is untouched; free some space and save again.")
    return error(f"{reason}.")


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` survive a loss of power (where the system can)."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def cache_folder() -> Path:
    """Where what can be made again is kept: ``$XDG_CACHE_HOME/sfumato``, else ``~/.cache/sfumato``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sfumato"


@contextmanager
def atomic_file(path: Path, error: type[SfumatoError] = RequestError) -> Iterator[BinaryIO]:
    """A binary file, open for writing and reading, that becomes ``path`` only if the block ends without an error.

    Raises:
        CapacityError: the disk or a quota is full. ``error``: it cannot be written there for another reason.
    """
    path = path.resolve() if path.is_symlink() else path
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise refusal(problem, path, error) from problem
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
