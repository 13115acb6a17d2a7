"""Side-by-side measurement: the subjects take turns, their outputs are compared, and what was found is kept.

Turns (A B A B …) let whatever else the machine does fall on all subjects, and ratios are taken turn by turn. Beside
the time on the clock stands the processor time, which other programs disturb less.
"""

import json
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results"
Make = Callable[..., tuple[Callable[[], Tensor], dict[str, str]]]
"""Builds a subject: the call that does its work once, and notes for the table."""
PACKAGES = ("torch", "diffusers", "transformers", "openvino")


@dataclass
class Measured:
    """One subject's turns.

    Attributes:
        seconds: on the clock, one a turn.
        processor: seconds of all threads, one a turn.
        memory: bytes that the process held at most during a turn, weights and interpreter included.
        faults: pages that had to be fetched in a turn, the median.
    """

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    memory: int = 0
    faults: int = 0


@dataclass
class Row:
    """One line of the table.

    Attributes:
        name: of the work.
        subjects: by name; the first is the one that the others are compared to.
        difference: of each subject's output to the first's, relative, in the Euclidean norm.
        work: floating-point operations of one turn, or 0 where they are not counted.
        peak: operations a second that this machine reached in a large matrix product.
        notes: what else a reader should know.
    """

    name: str
    subjects: dict[str, Measured]
    difference: dict[str, float]
    work: float = 0.0
    peak: float = 0.0
    notes: dict[str, str] = field(default_factory=dict)

    def ratios(self, subject: str, kind: str = "seconds") -> list[float]:
        """How many times faster than the first subject, turn by turn; ``kind`` is ``seconds`` or ``processor``."""
        first = next(iter(self.subjects.values()))
        pairs = zip(getattr(first, kind), getattr(self.subjects[subject], kind), strict=True)
        return [theirs / own for theirs, own in pairs]


class Turn(NamedTuple):
    """One turn of one subject."""

    seconds: float
    processor: float
    memory: int
    faults: int
    output: Tensor | None


def turn(run: Callable[[], Tensor], keep: bool = False) -> Turn:
    """Do the work once, in this process; ``keep`` its output."""
    reset_peak()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    clock, processor = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        output = run()
    seconds, processor = time.perf_counter() - clock, time.process_time() - processor
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return Turn(seconds, processor, status("VmHWM"), faults, output.clone() if keep else None)


class Process:
    """A subject in a process of its own, with its own allocator, whose memory can be told from the others'."""

    def __init__(self, make: Make, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make, arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.notes: dict[str, str] = self.pipe.recv()

    def turn(self, keep: bool = False) -> Turn:
        self.pipe.send(keep)
        found: Turn = self.pipe.recv()
        return found

    def end(self) -> None:
        self.pipe.close()
        self.process.join()


def serve(pipe: Connection, make: Make, arguments: tuple[Any, ...]) -> None:
    """What a ``Process`` does: build, then one turn each time it is asked."""
    run, notes = make(*arguments)
    pipe.send(notes)
    try:
        while True:
            pipe.send(turn(run, pipe.recv()))
    except EOFError:
        return


def compare(
    name: str, subjects: Mapping[str, Callable[[], Tensor] | Process], turns: int = 5, warmups: int = 1,
    limit: float = 1e-4, work: float = 0.0,
) -> Row:
    """Run the subjects in turns.

    Args:
        subjects: name to what does the work once and returns the output; the first is the reference.
        warmups: turns of each that are not counted; at least 1.
        limit: relative difference to the reference's output that is still the same output.

    Raises:
        AssertionError: an output differs by more; nothing is reported for unequal work.
    """

    def once(subject: Callable[[], Tensor] | Process, keep: bool = False) -> Turn:
        return subject.turn(keep) if isinstance(subject, Process) else turn(subject, keep)

    outputs: dict[str, Tensor] = {}
    notes: dict[str, str] = {}
    for label, subject in subjects.items():
        for _ in range(warmups):
            output = once(subject, keep=True).output
            assert output is not None
            outputs[label] = output.double()
        if isinstance(subject, Process):
            notes |= subject.notes
    truth = next(iter(outputs.values()))
    difference = {label: float((y - truth).norm() / truth.norm()) for label, y in outputs.items()}
    for label, far in difference.items():
        assert far <= limit, f"{name}: {label} differs from the reference by {far:.1e}, more than {limit:.0e}"
    measured = {label: Measured() for label in subjects}
    faults: dict[str, list[int]] = {label: [] for label in subjects}
    for _ in range(turns):
        for label, subject in subjects.items():
            found = once(subject)
            measured[label].seconds.append(found.seconds)
            measured[label].processor.append(found.processor)
            measured[label].memory = max(measured[label].memory, found.memory)
            faults[label].append(found.faults)
    for label in subjects:
        measured[label].faults = int(median(faults[label]))
    return Row(name, measured, difference, work, peak_rate() if work else 0.0, notes)


def status(entry: str) -> int:
    """Bytes under a name of /proc/self/status; 0 where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(entry + ":")), 0)


def reset_peak() -> None:
    """Start the process's high-water mark anew, where the system lets us; else the mark is that of its whole life."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rate(size: int = 2048, tries: int = 8) -> float:
    """Operations a second of a square float32 matrix product, the best of several."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    out, best = torch.empty(size, size), float("inf")
    for _ in range(tries):
        begin = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    found = {"machine": platform.machine(), "system": platform.platform(), "python": platform.python_version()}
    try:
        cpu = Path("/proc/cpuinfo").read_text().splitlines()
        found["processor"] = next((line.split(":")[1].strip() for line in cpu if line.startswith("model name")), "?")
    except OSError:
        found["processor"] = platform.processor()
    found["cores"] = str(os.cpu_count())
    found["threads"] = str(torch.get_num_threads())
    found["instructions"] = torch.backends.cpu.get_cpu_capability()
    found["load before"] = f"{os.getloadavg()[0]:.1f}"
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def table(rows: Iterable[Row]) -> str:
    """For the screen."""
    lines = [
        f"{'':<34} {'median s':>9} {'min-max':>15} {'faster':>7} {'min-max':>11} {'cpu s':>7} {'faster':>7} "
        f"{'differs':>8} {'MB':>6} {'faults':>8} {'of peak':>8}"
    ]
    for row in rows:
        lines.append(row.name + "".join(f"; {k}: {v}" for k, v in row.notes.items()))
        for subject, found in row.subjects.items():
            ratios, processor = row.ratios(subject), row.ratios(subject, "processor")
            rate = row.work / median(found.seconds) / row.peak if row.peak else 0.0
            spread = f"{min(found.seconds):.3f}-{max(found.seconds):.3f}"
            range_ = f"{min(ratios):.2f}-{max(ratios):.2f}"
            lines.append(
                f"  {subject:<32} {median(found.seconds):>9.3f} {spread:>15} {median(ratios):>7.2f} "
                f"{range_:>11} {median(found.processor):>7.2f} {median(processor):>7.2f} "
                f"{row.difference[subject]:>8.1e} {found.memory / 1e6:>6.0f} {found.faults:>8} "
                f"{f'{rate:.0%}' if rate else '':>8}"
            )
    return "\n".join(lines)


def report(name: str, rows: list[Row], about: dict[str, str]) -> None:
    """Print the table; write JSON and a plot to ``benchmarks/results``."""
    print(table(rows))
    RESULTS.mkdir(exist_ok=True)
    found = {"benchmark": name, "machine": about, "rows": [asdict(row) for row in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(name, rows, about)


def plot(name: str, rows: list[Row], about: dict[str, str]) -> None:
    """Bars: how many times faster than the first subject, with the range over turns."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels, middles, below, above = [], [], [], []
    for row in rows:
        for subject in row.subjects:
            ratios = row.ratios(subject)
            labels.append(f"{row.name}\n{subject}")
            middles.append(median(ratios))
            below.append(median(ratios) - min(ratios))
            above.append(max(ratios) - median(ratios))
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(labels) + 1.2))
    axes.barh(range(len(labels)), middles, xerr=(below, above), color="#7a6652", ecolor="#333333", capsize=3)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1, color="#999999", linewidth=0.8)
    axes.set_xlabel("times faster, median and range over turns")
    axes.set_title(f"{name}: {about['processor']}, {about['threads']} threads, torch {about['torch']}", fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=120)
    plt.close(figure)
