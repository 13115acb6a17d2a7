"""Pictures and nothing else, for unconditional models."""

from pathlib import Path

from sfumato.training.data import Item, Problem
from sfumato.training.readers.classes import Classes
from sfumato.training.readers.metadata import Metadata
from sfumato.training.readers.numbered import Numbered
from sfumato.training.readers.sidecar import Sidecar
from sfumato.training.readers.walk import any_picture, pictures


class Plain:
    """Every picture below the folder, in natural order, without captions."""

    classes: tuple[str, ...] = ()

    def __init__(self, where: str, image: str = "", caption: str = "") -> None:
        self.root = Path(where)
        self.pictures = pictures(self.root)

    @staticmethod
    def fits(path: Path) -> bool:
        captioned = any(reader.fits(path) for reader in (Numbered, Metadata, Sidecar, Classes))
        return path.is_dir() and not captioned and any_picture(path)

    def __len__(self) -> int:
        return len(self.pictures)

    def item(self, index: int) -> Item:
        path = self.pictures[index]
        return Item(path, None, path.relative_to(self.root).as_posix())

    def problems(self) -> list[Problem]:
        return []
