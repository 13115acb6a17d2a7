"""``sfumato inspect``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated


@dataclass(frozen=True)
class Inspect:
    """What a checkpoint file or folder is: family, precision, parameters, what is missing, hashes."""

    path: Annotated[Path, "checkpoint file or model folder"]
    hashes: Annotated[bool, "read every byte to hash it"] = True

    def run(self) -> int:
        from sfumato.checkpoints.inspect import inspect
        from sfumato.families import control, single_file
        from sfumato.families.load import judge

        table = [*control.FINGERPRINTS, *single_file.FINGERPRINTS]
        report = inspect(self.path, table, {**control.LAYOUTS, **single_file.LAYOUTS}, self.hashes, judge)
        print(report.text())
        return 1 if report.problems or report.damaged else 0
