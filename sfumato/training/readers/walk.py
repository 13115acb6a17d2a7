"""Finding files, in an order that does not depend on the file system."""

import re
from collections.abc import Iterator
from pathlib import Path

from sfumato.core.errors import DataError
from sfumato.training.pictures import SUFFIXES


def natural(path: Path) -> tuple[tuple[int, int, str], ...]:
    """A sort key that puts 2.jpg before 10.jpg."""
    parts = re.split(r"(\d+)", path.as_posix())
    return tuple((1, int(p), p) if p.isdecimal() else (0, 0, p) for p in parts)


def files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Files of those suffixes below ``folder``, unsorted; hidden ones are not data."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        lost = path.is_symlink() and not path.exists()  # listed, so that reading it is a problem that is told
        if path.suffix.lower() in suffixes and not hidden and (path.is_file() or lost):
            yield path


def pictures(folder: Path) -> list[Path]:
    """Everything below ``folder`` that is named like a picture, in natural order."""
    return sorted(files(folder, SUFFIXES), key=natural)


def any_picture(folder: Path) -> bool:
    """Whether there is one."""
    return next(files(folder, SUFFIXES), None) is not None


def text(path: Path) -> str:
    """A text file's content, without a byte-order mark.

    Raises:
        DataError: not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise DataError(f"{path} is not UTF-8 text ({problem.reason} at byte {problem.start}).") from None


def lines(path: Path) -> list[str]:
    """A text file's lines. Only newlines end them: ``splitlines`` would cut captions at every exotic separator."""
    return text(path).removesuffix("\n").split("\n") if path.stat().st_size else []
