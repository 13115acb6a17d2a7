"""``sfumato data check`` and ``sfumato data shapes``."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from sfumato.core.errors import DataError


@dataclass(frozen=True)
class Check:
    """Look through a data set: what is unreadable, double, tiny, animated, without a caption. Exit code 1 if errors."""

    where: Annotated[str, "a folder, a .parquet or .tar file, or hub:owner/name"]
    layout: Annotated[str | None, "how it is laid out, where that is not plain: numbered, metadata, sidecar, …"] = None
    image_column: Annotated[str, "the column of pictures, in layouts that have columns"] = "image"
    caption_column: Annotated[str, "the column of captions"] = "text"
    smallest: Annotated[int, "pixels; pictures with a shorter side are noted"] = 32
    tokenizer: Annotated[Path | None, "folder of the tokenizer that counts tokens; CLIP's own unless given"] = None
    accept: Annotated[tuple[str, ...], "kinds of problems that are no errors to you"] = ()
    sheet: Annotated[Path | None, "write a contact sheet of 64 pictures to this PNG"] = None
    shown: Annotated[int | None, "list at most so many problems of each kind"] = None
    json: Annotated[bool, "print JSON"] = False

    def run(self) -> int:
        from sfumato.text import tokenizer
        from sfumato.training.check import examine, summary
        from sfumato.training.contact import save_contact_sheet
        from sfumato.training.readers import open_dataset

        dataset = open_dataset(self.where, self.layout, self.image_column, self.caption_column)
        reader = tokenizer.load(self.tokenizer) if self.tokenizer else tokenizer.builtin()
        with counted(len(dataset), "looking") as advance:
            report = examine(
                dataset, smallest=self.smallest, longest=reader.length - 2,
                tokens=lambda caption: len(reader.encode(caption)), progress=advance,
            )
        errors = report.errors(self.accept)
        if self.sheet is not None and len(dataset):
            save_contact_sheet(dataset, self.sheet)
        if self.json:
            sizes = {f"{width}x{height}": count for (width, height), count in sorted(report.sizes.items())}
            found: dict[str, Any] = {
                "items": report.count, "errors": len(errors), "problems": [p._asdict() for p in report.problems],
                "sizes": sizes, "caption_tokens": {str(n): count for n, count in sorted(report.tokens.items())},
            }
            print(json.dumps(found, indent=2, ensure_ascii=False))
        else:
            print(summary(report, self.shown))
            print(f"\n{len(errors):,} errors" if errors else "\nNo errors: training will start on it.")
        return 1 if errors else 0


@dataclass(frozen=True)
class Shapes:
    """Make captioned scenes like "two small red circles left of a large blue star", which a program can check."""

    folder: Annotated[Path, "where images/ and captions.txt go"]
    count: Annotated[int, "pictures"] = 1000
    size: Annotated[int, "pixels of a side"] = 64
    seed: Annotated[int, "other seeds, other scenes"] = 0

    def run(self) -> int:
        from sfumato.training.shapes import write

        if not 0 <= self.seed < 2**64:
            raise DataError(f"seed = {self.seed}: must be from 0 to 2^64 - 1.")
        write(self.folder, self.count, self.size, self.seed)
        print(f"{self.count:,} pictures of {self.size} x {self.size} in {self.folder}")
        return 0


@contextmanager
def counted(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal that is told how many of ``total`` are done; silent where nobody would see it."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as display:
        task = display.add_task(title, total=total)
        yield lambda done: display.update(task, completed=done)
