"""What a data set is to everything that reads one: numbered items, each an encoded picture and what is said of it."""

from pathlib import Path
from typing import Any, NamedTuple, Protocol


class Item(NamedTuple):
    """One picture of a data set, not decoded yet.

    Attributes:
        picture: the encoded picture, or the file that holds it.
        caption: None where the data set has none for it.
        key: names it in messages: its path within the data set, or archive and member.
        label: the number of its class, in data sets that have classes.
        others: other captions of the same picture, as true as the first.
    """

    picture: Path | bytes
    caption: str | None
    key: str
    label: int | None = None
    others: tuple[str, ...] = ()


class Said(NamedTuple):
    """What a data set says of a picture: see ``Item``."""

    caption: str | None
    others: tuple[str, ...] = ()

    @staticmethod
    def of(value: Any) -> "Said":
        """What a caption column holds: nothing, a text, or a list of texts, of which empty ones are left out."""
        if value is None:
            return Said(None)
        if not isinstance(value, (list, tuple)):
            return Said(str(value).strip())
        texts = [text for text in (str(v).strip() for v in value if v is not None) if text]
        return Said(texts[0], tuple(texts[1:])) if texts else Said(None)


class Problem(NamedTuple):
    """Something wrong with a data set.

    Attributes:
        kind: a key of ``check.KINDS``.
        key: the file, and the line where it has lines.
        detail: what is wrong with it and what to do, without a full stop.
    """

    kind: str
    key: str
    detail: str


class Dataset(Protocol):
    """Items in a fixed order that can be asked for in any order, from any process."""

    def __len__(self) -> int: ...

    def item(self, index: int) -> Item:
        """Item ``index``, 0 to ``len - 1``. DataError: its file went away or is damaged."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, by label; empty where there are none."""

    def problems(self) -> list[Problem]:
        """What does not fit together in this layout, e.g. captions without a picture; pictures are not looked into."""
