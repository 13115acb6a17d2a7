"""Parquet files, as data sets of the hub are stored: a column of pictures, a column of captions."""

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from sfumato.core.errors import DataError, nearest
from sfumato.training.data import Item, Problem, Said
from sfumato.training.readers.walk import files, natural

KEPT_BYTES = 2**30
"""Row groups stay in memory up to this size, the last used ones; one alone may be larger."""


class Parquet:
    """Rows of all files below the folder, in natural order of the files.

    A row group is read whole: asking for rows in a random order is slow where the groups exceed ``KEPT_BYTES``.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, where: str, image: str = "image", caption: str = "text") -> None:
        try:
            import pyarrow.parquet as pq
        except ImportError:
            raise DataError("Parquet files need pyarrow: pip install 'sfumato[train]'.") from None
        self.root = Path(where)
        self.files = [self.root] if self.root.is_file() else sorted(files(self.root, (".parquet",)), key=natural)
        self.image, self.caption = image, caption
        self.groups: list[tuple[Path, int]] = []
        rows: list[int] = []
        for path in self.files:
            try:
                about = pq.read_metadata(path)
            except Exception as problem:  # pyarrow's own hierarchy; anything it says here is about this file
                raise DataError(f"{path} is not a readable parquet file: {problem}.") from None
            columns = about.schema.to_arrow_schema().names
            if image not in columns:
                raise DataError(f"{path}: there is no column {image!r}{nearest(image, columns)} "
                                "Name it with image_column.")  # fmt: skip
            self.captioned = caption in columns
            if not self.captioned and len(columns) > 1:
                raise DataError(f"{path}: there is no column {caption!r}{nearest(caption, columns)} "
                                "Name it with caption_column.")  # fmt: skip
            self.groups += [(path, group) for group in range(about.num_row_groups)]
            rows += [about.row_group(group).num_rows for group in range(about.num_row_groups)]
        self.ends = list(accumulate(rows))
        self.kept: dict[int, tuple[int, list[dict[str, Any]]]] = {}

    @staticmethod
    def fits(path: Path) -> bool:
        return path.suffix == ".parquet" if path.is_file() else next(files(path, (".parquet",)), None) is not None

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def item(self, index: int) -> Item:
        group = bisect_right(self.ends, index)
        row = index - (self.ends[group - 1] if group else 0)
        path, number = self.groups[group]
        values = self._rows(group)[row]
        key = f"{path.name} row group {number} row {row}"
        content = values[self.image]
        if isinstance(content, dict):
            content = content.get("bytes")
        if not isinstance(content, bytes):
            raise DataError(f"{key}: the column {self.image!r} holds no encoded picture.")
        said = Said.of(values.get(self.caption))
        return Item(content, said.caption, key, others=said.others)

    def _rows(self, group: int) -> list[dict[str, Any]]:
        if group not in self.kept:
            import pyarrow.parquet as pq

            path, number = self.groups[group]
            columns = [self.image, self.caption] if self.captioned else [self.image]
            table = pq.ParquetFile(path).read_row_group(number, columns)
            self.kept[group] = (table.nbytes, table.to_pylist())
        self.kept[group] = self.kept.pop(group)  # now the last used
        while len(self.kept) > 1 and sum(size for size, _ in self.kept.values()) > KEPT_BYTES:
            del self.kept[next(iter(self.kept))]
        return self.kept[group][1]

    def problems(self) -> list[Problem]:
        return []
