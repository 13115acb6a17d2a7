"""Pictures, each with a ``.txt`` of the same name beside it that holds its caption."""

from pathlib import Path

from sfumato.training.data import Item, Problem
from sfumato.training.readers.walk import files, natural, pictures, text


class Sidecar:
    """Pictures below the folder in natural order. A text beside no picture is a problem, not a caption."""

    classes: tuple[str, ...] = ()

    def __init__(self, where: str, image: str = "", caption: str = "") -> None:
        self.root = Path(where)
        self.pictures = pictures(self.root)
        stems = {p.with_suffix("") for p in self.pictures}
        self.lost = sorted((t for t in files(self.root, (".txt",)) if t.with_suffix("") not in stems), key=natural)

    @staticmethod
    def fits(path: Path) -> bool:
        return path.is_dir() and any(p.with_suffix(".txt").is_file() for p in pictures(path))

    def __len__(self) -> int:
        return len(self.pictures)

    def item(self, index: int) -> Item:
        path = self.pictures[index]
        beside = path.with_suffix(".txt")
        caption = text(beside).strip() if beside.is_file() else None
        return Item(path, caption, path.relative_to(self.root).as_posix())

    def problems(self) -> list[Problem]:
        return [Problem("missing-picture", t.relative_to(self.root).as_posix(), "no picture has this name")
                for t in self.lost]  # fmt: skip
