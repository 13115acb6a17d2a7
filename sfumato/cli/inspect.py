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
        from sfumato.families.load import judge
        from sfumato.families.single_file import FINGERPRINTS, LAYOUTS

        report = inspect(self.path, FINGERPRINTS, LAYOUTS, self.hashes, judge)
        print(report.text())
        return 1 if report.problems or report.damaged else 0
