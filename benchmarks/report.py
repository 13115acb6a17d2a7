"""What was found: on which machine, as a table on the screen, as JSON and a plot in ``benchmarks/results``."""

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch

from sfumato.core.version import VERSION

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "diffusers", "transformers", "openvino", "nncf")


@dataclass
class Measured:
    """One subject's turns.

    Attributes:
        seconds: on the clock, one a turn.
        processor: seconds of all threads, one a turn.
        memory: bytes that the process held at most during a turn, weights and interpreter included; with a GPU, what
            PyTorch had allocated there.
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
        difference: of each subject's output to the first's, relative, in the Euclidean norm; none where the outputs
            are not to be compared.
        work: floating-point operations of one turn, or 0 where they are not counted.
        peak: operations a second that this machine reached in a large matrix product in float32.
        notes: what else a reader should know.
        lossy: subjects whose output differs on purpose.
        psnr: of the lossy ones' output to the first's, in dB; none where it is the same.
    """

    name: str
    subjects: dict[str, Measured]
    difference: dict[str, float]
    work: float = 0.0
    peak: float = 0.0
    notes: dict[str, str] = field(default_factory=dict)
    lossy: list[str] = field(default_factory=list)
    psnr: dict[str, float] = field(default_factory=dict)

    def ratios(self, subject: str, kind: str = "seconds", to: str = "") -> list[float]:
        """How many times faster than another subject, turn by turn.

        Args:
            kind: ``seconds`` or ``processor``.
            to: the other; the first unless given.
        """
        other = self.subjects[to] if to else next(iter(self.subjects.values()))
        pairs = zip(getattr(other, kind), getattr(self.subjects[subject], kind), strict=True)
        return [theirs / own for theirs, own in pairs]

    def share(self, subject: str) -> float:
        """Of the machine's peak, that the row's work in a subject's median time is; 0 where it is not counted."""
        return self.work / median(self.subjects[subject].seconds) / self.peak if self.peak else 0.0


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    found = {"machine": platform.machine(), "system": platform.platform(), "python": platform.python_version()}
    try:
        cpu = Path("/proc/cpuinfo").read_text().splitlines()
        found["processor"] = next((line.split(":")[1].strip() for line in cpu if line.startswith("model name")), "?")
    except OSError:
        found["processor"] = platform.processor()
    for i in range(torch.cuda.device_count()):
        found[f"cuda:{i}"] = torch.cuda.get_device_name(i)
    found["cores"] = str(os.cpu_count())
    found["threads"] = str(torch.get_num_threads())
    found["instructions"] = torch.backends.cpu.get_cpu_capability()
    found["load before"] = f"{os.getloadavg()[0]:.1f}"
    found["sfumato"] = VERSION
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def table(rows: Iterable[Row]) -> str:
    """For the screen."""
    lines = [
        f"{'':<34} {'median s':>9} {'min-max':>17} {'faster':>7} {'min-max':>11} {'cpu s':>7} {'faster':>7} "
        f"{'differs':>8} {'dB':>5} {'MB':>6} {'faults':>8} {'of peak':>8}"
    ]
    for row in rows:
        lines.append(row.name + "".join(f"; {k}: {v}" for k, v in row.notes.items()))
        for subject, found in row.subjects.items():
            ratios, processor = row.ratios(subject), row.ratios(subject, "processor")
            spread = f"{min(found.seconds):.3f}-{max(found.seconds):.3f}"
            range_ = f"{min(ratios):.2f}-{max(ratios):.2f}"
            far = f"{row.difference[subject]:.1e}" if subject in row.difference else "-"
            decibels = f"{row.psnr[subject]:.1f}" if subject in row.psnr else ""
            share = f"{row.share(subject):.0%}" if row.peak else ""
            lines.append(
                f"  {subject:<32} {median(found.seconds):>9.3f} {spread:>17} {median(ratios):>7.2f} "
                f"{range_:>11} {median(found.processor):>7.2f} {median(processor):>7.2f} "
                f"{far:>8} {decibels:>5} {found.memory / 1e6:>6.0f} {found.faults:>8} {share:>8}"
            )
    return "\n".join(lines)


def report(name: str, rows: list[Row], about: dict[str, str], trial: bool = False) -> None:
    """Print the table; write JSON and a plot to ``benchmarks/results``, unless it was but a trial."""
    print(table(rows), flush=True)
    if trial:
        return
    RESULTS.mkdir(exist_ok=True)
    found = {"benchmark": name, "machine": about, "rows": [asdict(row) for row in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(name, rows, about)


def plot(name: str, rows: list[Row], about: dict[str, str]) -> None:
    """Bars: how many times faster than the first subject, with the range over turns."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = sum(len(row.subjects) for row in rows)
    figure, axes = plt.subplots(figsize=(8, 0.3 * bars + 0.45 * len(rows) + 1))
    labels: dict[float, str] = {}
    place = 0.0
    for row in rows:
        axes.text(0, place, row.name, fontsize=8, weight="bold", va="center", ha="left")
        for subject in row.subjects:
            place += 1
            labels[place] = subject
            ratios = row.ratios(subject)
            middle = median(ratios)
            spread = [[middle - min(ratios)], [max(ratios) - middle]]
            color = "#7a6652" if subject.startswith("sfumato") else "#c9bda9"
            axes.barh(place, middle, xerr=spread, color=color, ecolor="#333333", capsize=3, height=0.8)
            axes.text(max(ratios), place, f"  {middle:.2g}", fontsize=7, va="center")
        place += 1.5
    axes.set_yticks(list(labels), list(labels.values()), fontsize=7)
    axes.set_ylim(place - 0.5, -0.8)
    axes.axvline(1, color="#999999", linewidth=0.8)
    axes.margins(x=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("times faster, median and range over turns", fontsize=8)
    where = about.get("cuda:0") or f"{about['processor']}, {about['threads']} threads"
    axes.set_title(f"{where}, torch {about['torch']}", fontsize=8, loc="right")
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=120)
    plt.close(figure)
