"""What it costs to start: ``import sfumato`` and ``sfumato --help``, beside Python itself and ``import diffusers``.

Each turn is a fresh process, the bare interpreter included; the files are in the system's cache.
"""

import sys
from collections.abc import Sequence
from statistics import median

from benchmarks.harness import Program, Subject, compare
from benchmarks.options import options
from benchmarks.report import machine, report

ROWS = {
    "import": {
        "diffusers": ["-c", "from diffusers import StableDiffusionPipeline"],
        "sfumato": ["-c", "import sfumato"],
        "sfumato's pipeline": ["-c", "import sfumato; sfumato.load"],
        "torch": ["-c", "import torch"],
        "python alone": ["-c", ""],
    },
    "--help": {
        "diffusers": ["-m", "diffusers.commands.diffusers_cli", "--help"], "sfumato": ["-m", "sfumato", "--help"],
    },
}
LIMITS = {"import": 0.25, "--help": 0.4}
"""Seconds that sfumato may take."""


def main(arguments: Sequence[str] = ()) -> None:
    chosen = options(__doc__, rounds=0, turns=5).parse_args(arguments)
    about, rows = machine(), []
    for name, commands in ROWS.items():
        subjects: dict[str, Subject] = {
            label: Program([sys.executable, *command]) for label, command in commands.items()
        }
        row = compare(name, subjects, chosen.turns)
        taken, limit = median(row.subjects["sfumato"].seconds), LIMITS[name]
        row.notes["limit"] = f"{limit} s, {'kept' if taken <= limit else f'MISSED by {taken - limit:.2f} s'}"
        rows.append(row)
    report("startup", rows, about, chosen.trial)


if __name__ == "__main__":
    main(sys.argv[1:])
