"""Data sets of the Hugging Face hub by name: ``hub:owner/name`` or ``hub:owner/name:split``."""

from pathlib import Path
from typing import Any

from sfumato.core.errors import DataError, nearest
from sfumato.training.data import Item, Problem, Said


class Hub:
    """Rows of one split (``train`` unless named), downloaded to the hub's own cache."""

    def __init__(self, where: str, image: str = "image", caption: str = "text") -> None:
        try:
            import datasets
        except ImportError:
            raise DataError("Data sets of the hub need the datasets library: pip install 'sfumato[hub]'.") from None
        self.name, _, split = where.removeprefix("hub:").partition(":")
        try:
            rows: Any = datasets.load_dataset(self.name, split=split or "train")
        except Exception as problem:  # the library raises a dozen kinds, all of them about this name
            raise DataError(f"The data set {self.name} cannot be had: {problem}") from None
        for column in (image, caption):
            if column not in rows.column_names and (column == image or len(rows.column_names) > 1):
                raise DataError(
                    f"{self.name}: there is no column {column!r}{nearest(column, rows.column_names)} "
                    "Name it with image_column or caption_column."
                )
        self.rows = rows.cast_column(image, datasets.Image(decode=False))
        self.image, self.caption = image, caption
        feature = rows.features.get(caption)
        self.classes: tuple[str, ...] = tuple(getattr(feature, "names", None) or ())

    @staticmethod
    def fits(path: Path) -> bool:
        return False  # names are not paths: they are asked for as hub:…

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> Item:
        row = self.rows[index]
        stored = row[self.image]
        content: Path | bytes = stored["bytes"] if stored["bytes"] is not None else Path(stored["path"])
        value = row.get(self.caption)
        key = f"{self.name} row {index}"
        if self.classes and isinstance(value, int):
            return Item(content, self.classes[value].replace("_", " "), key, value)
        said = Said.of(value)
        return Item(content, said.caption, key, others=said.others)

    def problems(self) -> list[Problem]:
        return []
