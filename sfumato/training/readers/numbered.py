"""``images/1.jpg`` … ``images/N.jpg`` with ``captions.txt``, line i for picture i."""

from pathlib import Path

from sfumato.training.data import Item, Problem
from sfumato.training.readers.walk import lines, pictures


class Numbered:
    """See above. Pictures are items in the order of their numbers."""

    classes: tuple[str, ...] = ()

    def __init__(self, where: str, image: str = "", caption: str = "") -> None:
        self.root = Path(where)
        self.captions = [line.strip() for line in lines(self.root / "captions.txt")]
        self.numbers: dict[int, Path] = {}
        self.strangers: list[Problem] = []
        for path in pictures(self.root / "images"):
            key = path.relative_to(self.root).as_posix()
            number = int(path.stem) if path.stem.isdecimal() else 0
            if number == 0:
                self.strangers.append(Problem("stray-file", key, "its name is not a number from 1"))
            elif number in self.numbers:
                self.strangers.append(Problem("stray-file", key, f"{self.numbers[number].name} has the same number"))
            else:
                self.numbers[number] = path
        self.order = sorted(self.numbers)

    @staticmethod
    def fits(path: Path) -> bool:
        return (path / "captions.txt").is_file()

    def __len__(self) -> int:
        return len(self.order)

    def item(self, index: int) -> Item:
        number = self.order[index]
        path = self.numbers[number]
        caption = self.captions[number - 1] if number <= len(self.captions) else None
        return Item(path, caption, path.relative_to(self.root).as_posix())

    def problems(self) -> list[Problem]:
        surplus = [
            Problem("missing-picture", f"captions.txt line {line}", f"there is no picture images/{line}.*")
            for line in range(1, len(self.captions) + 1) if line not in self.numbers
        ]  # fmt: skip
        return self.strangers + surplus
