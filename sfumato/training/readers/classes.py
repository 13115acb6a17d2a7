"""One folder a class: ``cat/….jpg``, ``dog/….jpg``."""

from pathlib import Path

from sfumato.training.data import Item, Problem
from sfumato.training.readers.walk import any_picture, natural, pictures


class Classes:
    """Labels number the folders in natural order; the caption of a picture is its class's name."""

    def __init__(self, where: str, image: str = "", caption: str = "") -> None:
        self.root = Path(where)
        folders = sorted((p for p in self.root.iterdir() if p.is_dir() and not p.name.startswith(".")), key=natural)
        self.classes = tuple(p.name for p in folders)
        self.entries = [(path, label) for label, folder in enumerate(folders) for path in pictures(folder)]
        filled = {label for _, label in self.entries}
        self.found = [Problem("empty-class", name, "a class without pictures")
                      for label, name in enumerate(self.classes) if label not in filled]  # fmt: skip
        self.found += [Problem("stray-file", p.name, "a picture outside all classes")
                       for p in pictures(self.root) if p.parent == self.root]  # fmt: skip

    @staticmethod
    def fits(path: Path) -> bool:
        if not path.is_dir() or any(p.with_suffix(".txt").is_file() for p in pictures(path)):
            return False
        if any(p.name in ("captions.txt", "metadata.jsonl", "metadata.csv") for p in path.rglob("*")):
            return False
        folders = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
        return sum(any_picture(folder) for folder in folders) > 1

    def __len__(self) -> int:
        return len(self.entries)

    def item(self, index: int) -> Item:
        path, label = self.entries[index]
        return Item(path, self.classes[label].replace("_", " "), path.relative_to(self.root).as_posix(), label)

    def problems(self) -> list[Problem]:
        return self.found
