"""Opening an SD1.5 of true size in a fresh process, beside diffusers: with its files in the system's cache, and not.

The seconds are those of opening, and of reading every weight once, so that what was only mapped is counted too; not
those of importing. "ready" is what the first picture starts from: sfumato's networks packed for the CPU.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import folders, peers
from benchmarks.harness import Program, Subject, compare
from benchmarks.options import options
from benchmarks.report import machine, report

SUBJECTS = {
    "diffusers": "import torch, diffusers; p = diffusers.StableDiffusionPipeline; t = now();"
    " p = p.from_pretrained({place!r}, safety_checker=None); m = p.unet, p.vae, p.text_encoder",
    "sfumato": "import torch, sfumato; sfumato.load; t = now(); p = sfumato.load({place!r}, device='cpu');"
    " m = tuple(p.model.parts.values())",
    "sfumato ready": "import torch, sfumato; sfumato.load; t = now(); p = sfumato.load({place!r}, device='cpu');"
    " p.make_ready(); m = tuple(p.model.parts.values())",
}
FRAME = """
import time; now = time.perf_counter
{body}
total = sum(float(x.sum()) for part in m for x in (*part.parameters(), *part.buffers()) if x.is_floating_point())
print("took", now() - t, flush=True)
"""


class Opening(Program):
    """A process that opens a model, and tells what that took."""

    def __init__(self, body: str, place: Path, cold: bool) -> None:
        before = partial(forget, place) if cold else None
        super().__init__([sys.executable, "-c", FRAME.format(body=body.format(place=str(place)))], before=before)

    def seconds(self, said: str, clock: float) -> float:
        return float(next(line.split()[1] for line in said.splitlines() if line.startswith("took ")))


def forget(place: Path) -> None:
    """Have the system drop a folder's files from its cache, where it lets us."""
    for path in place.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(arguments: Sequence[str] = ()) -> None:
    flags = options(__doc__, rounds=0, turns=3)
    flags.add_argument("--model", choices=peers.VAES, default="sd15")
    chosen = flags.parse_args(arguments)
    place, about, rows = folders.folder(chosen.model), machine(), []
    for cold in (False, True):
        subjects: dict[str, Subject] = {name: Opening(body, place, cold) for name, body in SUBJECTS.items()}
        title = f"load, {peers.TITLES[chosen.model]}, {'cold' if cold else 'warm'}"
        rows.append(compare(title, chosen.of(subjects), chosen.turns))
    report("load", rows, about, chosen.trial)


if __name__ == "__main__":
    main(sys.argv[1:])
