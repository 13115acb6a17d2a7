"""The bar on the terminal while a picture condenses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Step(Protocol):
    """What a bar needs to know of a step."""

    step: int
    steps: int


@contextmanager
def bar(title: str, shown: bool) -> Iterator[Callable[[Step], None] | None]:
    """A callback that draws how far the steps are, on stderr; None where nobody would see it."""
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(title, total=None)

        def advance(now: Step) -> None:
            display.update(task, completed=now.step, total=now.steps)

        yield advance
