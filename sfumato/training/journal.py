"""What a run tells: a line of JSON for every step, and the same to whoever draws curves."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sfumato.core.errors import ConfigError

Tell = Callable[[int, Mapping[str, float]], None]


class Journal:
    """``curves.jsonl`` of a stage, and its trackers. For the one process that writes.

    Args:
        start: the step that comes next: lines of later steps, which a killed run left, are taken out.
    """

    def __init__(self, folder: Path, start: int, trackers: tuple[str, ...], name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "curves.jsonl"
        kept = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the line that was being written when the run was killed
                if entry["step"] < start:
                    kept.append(line)
        self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self.file = self.path.open("a", encoding="utf-8")
        self.trackers = [_tracker(tracker, folder, start, name) for tracker in trackers]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line, and one point of each curve."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        for tell, _ in self.trackers:
            tell(step, values)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()
        for _, close in self.trackers:
            close()


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``curves.jsonl``."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _tracker(kind: str, folder: Path, start: int, name: str) -> tuple[Tell, Callable[[], None]]:
    """Two functions: one that is told values, one that closes."""
    try:
        if kind == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

            def tell(step: int, values: Mapping[str, float]) -> None:
                for key, value in values.items():
                    writer.add_scalar(key, value, step)

            return tell, writer.close
        from importlib import import_module

        service = import_module(kind)  # wandb and trackio have the same two calls
        service.init(project="sfumato", name=name)
        return (lambda step, values: service.log(dict(values), step=step)), service.finish
    except ImportError:
        package = {"tensorboard": "'sfumato[train]'", "wandb": "'sfumato[wandb]'"}.get(kind, kind)
        raise ConfigError(f"trackers = {kind!r} needs: pip install {package}. Or set trackers = [].") from None
