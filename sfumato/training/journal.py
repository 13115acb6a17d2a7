"""What a run tells: a line of JSON for every step, and the same to whoever draws curves."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sfumato.checkpoints.write import atomic_file
from sfumato.core.errors import CapacityError, CheckpointError, ConfigError
from sfumato.core.files import FULL

Tell = Callable[[int, Mapping[str, float]], None]


class Journal:
    """``curves.jsonl`` of a stage, and its trackers. For the one process that writes; closed by ``with``.

    Args:
        start: the step that comes next: lines of later steps, which a killed run left, are taken out.

    Raises:
        CapacityError, CheckpointError: a line could not be written, here and in all calls.
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
        with atomic_file(self.path) as whole:  # a kill at this moment may not cost the lines before
            whole.write("".join(line + "\n" for line in kept).encode())
        self.file = self.path.open("a", encoding="utf-8")
        self.trackers = [_tracker(tracker, folder, start, name) for tracker in trackers]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line, and one point of each curve."""
        with self._explained():
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            for tell, _ in self.trackers:
                tell(step, values)

    def flush(self) -> None:
        """From now on the lines outlive the process and the machine."""
        with self._explained():
            self.file.flush()
            os.fsync(self.file.fileno())

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        try:
            with self._explained():
                self.file.close()
                for _, close in self.trackers:
                    close()
        except (CapacityError, CheckpointError):
            if kind is None:  # else what went wrong before is what is told
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            error = CapacityError if problem.errno in FULL else CheckpointError
            reason = problem.strerror or problem
            raise error(f"The curves {self.path} could not be gone on with: {reason}.") from problem


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
