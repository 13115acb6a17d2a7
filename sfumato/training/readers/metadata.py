"""ImageFolder: pictures with a ``metadata.jsonl`` or ``metadata.csv`` that names them and says their captions."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from sfumato.core.errors import DataError, nearest
from sfumato.training.data import Item, Problem, Said
from sfumato.training.readers.walk import files, lines, natural, pictures, text

NAMES = ("metadata.jsonl", "metadata.csv")


class Metadata:
    """Rows of every metadata file below the folder, in their order; ``file_name`` is relative to the file itself."""

    classes: tuple[str, ...] = ()

    def __init__(self, where: str, image: str = "image", caption: str = "text") -> None:
        self.root = Path(where)
        self.items: list[Item] = []
        self.found: list[Problem] = []
        named: set[Path] = set()
        for table in _tables(self.root):
            for line, row in _rows(table):
                place = f"{table.relative_to(self.root).as_posix()} line {line}"
                if "file_name" not in row:
                    raise DataError(f"{self.root / place}: there is no file_name; columns are {', '.join(row)}.")
                if caption not in row:
                    raise DataError(
                        f"{self.root / place}: there is no caption column {caption!r}{nearest(caption, row)} "
                        "Name it with caption_column."
                    )
                path = table.parent / str(row["file_name"])
                if not path.resolve().is_relative_to(self.root.resolve()):
                    raise DataError(f"{self.root / place}: file_name leads out of the data set: {row['file_name']}.")
                if path in named:
                    self.found.append(Problem("stray-file", place, f"{row['file_name']} is named a second time"))
                elif not path.is_file():
                    self.found.append(Problem("missing-picture", place, f"there is no picture {row['file_name']}"))
                else:
                    said = Said.of(row[caption])
                    key = path.relative_to(self.root).as_posix()
                    self.items.append(Item(path, said.caption, key, others=said.others))
                named.add(path)
        for path in pictures(self.root):
            if path not in named:
                key = path.relative_to(self.root).as_posix()
                self.items.append(Item(path, None, key))

    @staticmethod
    def fits(path: Path) -> bool:
        return path.is_dir() and bool(_tables(path))

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int) -> Item:
        return self.items[index]

    def problems(self) -> list[Problem]:
        return self.found


def _tables(root: Path) -> list[Path]:
    return sorted((p for p in files(root, (".jsonl", ".csv")) if p.name in NAMES), key=natural)


def _rows(table: Path) -> list[tuple[int, dict[str, Any]]]:
    if table.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text(table), newline=""))
        return [(reader.line_num, {k: v for k, v in row.items() if k is not None}) for row in reader]
    rows = []
    for number, line in enumerate(lines(table), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as problem:
            raise DataError(f"{table} line {number} is not JSON: {problem}.") from None
        if not isinstance(row, dict):
            raise DataError(f"{table} line {number} is not a JSON object.")
        rows.append((number, row))
    return rows
