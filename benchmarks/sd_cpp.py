"""stable-diffusion.cpp as a peer, where ``SD_CPP`` names its program (``sd-cli``, formerly ``sd``).

It reads the same weights from a single file. Build it against a BLAS (``-DGGML_BLAS=ON``), for this processor.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import which
from tempfile import gettempdir

import torch

from benchmarks import folders
from benchmarks.harness import Absent, Program, Turn

FILE = Path(gettempdir()) / "sfumato-benchmark-sd15.safetensors"
TOOK = re.compile(r"generate_image completed in ([0-9.]+)s")
"""What it says of the time from prompt to pixels, without that of loading."""


class StableDiffusionCpp(Program):
    """A subject that draws; its seconds are those that it tells itself, since its process also loads the model."""

    def __init__(self, side: int, steps: int, count: int) -> None:
        self.program = os.environ.get("SD_CPP", "")
        super().__init__(
            [
                self.program, "-m", str(FILE), "-p", folders.PROMPT, "-n", folders.NEGATIVE, "-W", str(side), "-H",
                str(side), "--steps", str(steps), "--cfg-scale", "7.5", "--sampling-method", "euler", "-s", "1", "-b",
                str(count), "-t", str(torch.get_num_threads()), "--fa", "-o", "{out}",
            ],
            ".png",
        )  # fmt: skip

    def turn(self, keep: bool = False) -> Turn:
        """
        Raises:
            Absent: it is not named, or not there.
            RuntimeError: it failed.
        """
        if not self.program or which(self.program) is None:
            raise Absent("SD_CPP does not name its program")
        if not FILE.exists():
            folder, unfinished = folders.folder("sd15"), FILE.with_suffix(".unfinished.safetensors")
            subprocess.run([sys.executable, "-m", "sfumato", "convert", folder, unfinished], check=True)
            unfinished.rename(FILE)
        self.notes = {"stable-diffusion.cpp": "--fa, euler, its own noise"}
        return super().turn(keep)

    def seconds(self, said: str, clock: float) -> float:
        """
        Raises:
            RuntimeError: it does not tell.
        """
        found = TOOK.search(said)
        if found is None:
            raise RuntimeError("it does not tell what it took")
        return float(found[1])
