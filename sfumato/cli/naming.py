"""Where pictures go, decided before they are drawn."""

import re
from pathlib import Path

from sfumato.core.errors import RequestError, nearest

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FOLDER = Path("out")


def destination(output: Path | None) -> tuple[Path, Path | None]:
    """(folder, file name or None) that ``-o`` stands for, the folder made.

    Raises:
        RequestError: a suffix that no picture format has.
        OSError: the folder cannot be made.
    """
    if output is None or output.is_dir():
        folder, name = output or FOLDER, None
    elif output.suffix.lower() in SUFFIXES:
        folder, name = output.parent, Path(output.name)
    elif output.suffix:
        raise RequestError(
            f"Cannot save as {output}: pictures are saved as {', '.join(SUFFIXES)}"
            f"{nearest(output.suffix, SUFFIXES)} A folder's name to save into must exist or be without a dot."
        )
    else:
        folder, name = output, None
    folder.mkdir(parents=True, exist_ok=True)
    return folder, name


def place(folder: Path, name: Path | None, seed: int, prompt: str, index: int, count: int) -> Path:
    """The path of picture ``index`` of ``count``.

    A file that the user named is overwritten, as with any tool's ``-o``; a name made up here never is.
    """
    if name is not None:
        return folder / (name if count == 1 else f"{name.stem}-{index + 1}{name.suffix}")
    return unused(folder / f"{seed}-{slug(prompt)}.png")


def grid_place(folder: Path, name: Path | None, seed: int, prompt: str) -> Path:
    """The path of the picture that shows them all."""
    if name is not None:
        return folder / f"{name.stem}-grid{name.suffix}"
    return unused(folder / f"{seed}-{slug(prompt)}-grid.png")


def unused(path: Path) -> Path:
    """``path``, or the first of ``path-1``, ``path-2``, … that does not exist."""
    found, number = path, 0
    while found.exists():
        number += 1
        found = path.with_stem(f"{path.stem}-{number}")
    return found


def slug(prompt: str, limit: int = 48) -> str:
    """The prompt's words as a file name: letters and digits of any script, joined by dashes."""
    plain = re.sub(r"<[^<>]*>|:[\d.]+\)", " ", prompt)  # neither <lora:…> nor the number of (x:1.3)
    whole = "-".join(re.findall(r"[^\W_]+", plain.lower()))
    return (whole if len(whole) <= limit else whole[:limit].rpartition("-")[0] or whole[:limit]) or "picture"
