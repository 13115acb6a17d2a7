"""Gathers what lies in ``benchmarks/results`` in a Markdown table, and draws its plots: ``python -m benchmarks table``.

A line is one of sfumato's subjects beside one peer. Lossy ones stand beside lossy peers and beside the reference.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import RESULTS, Measured, Row, plot

OWN = "sfumato"
HEAD = ("work", "ours", "beside", "seconds", "theirs", "times faster", "output", "memory, GB", "of peak")


def main() -> None:
    for line in lines(RESULTS):
        print(line)
    for path in RESULTS.glob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        if rows := [read(row) for row in found["rows"] if "subjects" in row]:
            plot(path.stem, rows, found["machine"])


def lines(place: Path) -> Iterator[str]:
    """The tables, one for each machine and setting that was measured on."""
    by_machine: dict[str, list[str]] = {}
    for path in sorted(place.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [read(row) for row in found["rows"] if "subjects" in row]
        told = by_machine.setdefault(machine(found["machine"]), [])
        told.extend(line for row in rows for line in of_row(row))
    for title, told in by_machine.items():
        if told:
            yield from (title, "", line(*HEAD), "|" + "---|" * len(HEAD), *told, "")


def machine(about: dict[str, str]) -> str:
    """On what it was measured."""
    versions = ", ".join(f"{name} {about[name]}" for name in ("torch", "diffusers", "openvino") if name in about)
    processor = f"{about['processor']}, {about['instructions']}, {about['threads']} threads"
    return f"{about.get('cuda:0', processor)}; {versions}"


def read(row: dict[str, Any]) -> Row:
    subjects = {name: Measured(**found) for name, found in row["subjects"].items()}
    return Row(**{**row, "subjects": subjects})


def of_row(row: Row) -> Iterator[str]:
    """A line for each pair that is to be compared."""
    first, *others = row.subjects
    own = [name for name in others if name.startswith(OWN)] or others
    for name in own:
        for peer in row.subjects:
            if peer in own or (peer != first and (peer in row.lossy) != (name in row.lossy)):
                continue
            ours, theirs, ratios = row.subjects[name], row.subjects[peer], row.ratios(name, to=peer)
            yield line(
                row.name, name, peer, seconds(ours), seconds(theirs),
                f"**{median(ratios):.2f}** ({min(ratios):.2f}-{max(ratios):.2f})", output(row, name, peer),
                f"{ours.memory / 1e9:.2f} / {theirs.memory / 1e9:.2f}" if ours.memory else "",
                f"{row.share(name):.0%} / {row.share(peer):.0%}" if row.peak else "",
            )  # fmt: skip


def seconds(found: Measured) -> str:
    return f"{median(found.seconds):.3g} ({min(found.seconds):.3g}-{max(found.seconds):.3g})"


def output(row: Row, name: str, peer: str) -> str:
    """How far the outputs are from each other, or from the reference."""
    if name not in row.difference or peer not in row.difference:
        return "not compared"
    if name not in row.psnr:
        return f"equal to {max(row.difference[name], row.difference[peer]):.0e}"
    theirs = f", theirs {row.psnr[peer]:.1f}" if peer in row.psnr else ""
    return f"{row.psnr[name]:.1f} dB{theirs}"


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
