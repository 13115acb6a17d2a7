"""What it costs to start: ``import sfumato`` and ``sfumato --help`` beside Python itself and ``import diffusers``.

Each row is a fresh process. The rows take turns, so that what else the machine does falls on all of them; the first
turn is not counted, since it fills the disk cache. Seconds of the whole process, the bare interpreter included.
"""

import subprocess
import sys
import time
from statistics import median

ROWS = {
    "python, nothing": ["-c", ""],
    "import sfumato": ["-c", "import sfumato"],
    "sfumato --help": ["-m", "sfumato", "--help"],
    "import torch": ["-c", "import torch"],
    "import sfumato's pipeline": ["-c", "import sfumato; sfumato.load"],
    "import diffusers' pipeline": ["-c", "from diffusers import StableDiffusionPipeline"],
}
LIMITS = {"import sfumato": 0.25, "sfumato --help": 0.4}
"""Seconds that a start may take."""


def seconds(arguments: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main(turns: int = 5) -> None:
    found: dict[str, list[float]] = {name: [] for name in ROWS}
    for turn in range(turns + 1):
        for name, arguments in ROWS.items():
            taken = seconds(arguments)
            if turn:
                found[name].append(taken)
    print(f"{'start-up':<28} {'median s':>9} {'min':>7} {'max':>7}  limit")
    for name, times in found.items():
        limit = f"{LIMITS[name]:.2f} {'kept' if median(times) <= LIMITS[name] else 'MISSED'}" if name in LIMITS else ""
        print(f"{name:<28} {median(times):>9.3f} {min(times):>7.3f} {max(times):>7.3f}  {limit}")
