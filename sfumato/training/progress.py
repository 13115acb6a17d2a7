"""The bar on the terminal while a stage is trained: loss, pictures a second, time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(title: str, start: int, steps: int, batch: int, shown: bool) -> Iterator[Callable[[int, float], None]]:
    """A function that is told (steps done, loss) after every step; it does nothing where nobody would see it."""
    if not shown:
        yield lambda done, loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4g}"),
        TextColumn("{task.fields[speed]:.1f} pictures/s"), TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(title, total=steps, completed=start, loss=float("nan"), speed=0.0)

        def tell(done: int, loss: float) -> None:
            speed = (display.tasks[task].speed or 0.0) * batch
            display.update(task, completed=done, loss=loss, speed=speed)

        yield tell
