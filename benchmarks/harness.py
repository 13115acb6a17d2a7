"""Side-by-side measurement: the subjects take turns, and their outputs are compared.

Turns (A B A B …) let whatever else the machine does fall on all subjects, and ratios are taken turn by turn. Beside
the time on the clock stands the processor time, which other programs disturb less. Where the subjects do not fit into
memory side by side, each has its process for a few turns of a round, and the rounds alternate in the same way.
"""

import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from math import inf, log10
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from benchmarks.report import Measured, Row

T = TypeVar("T")
Made = tuple[Callable[[], Tensor], dict[str, str]]
"""A subject: the call that does its work once, and notes for the table."""
Make = Callable[..., Made]


class Absent(Exception):
    """A peer that is not on this machine; the message says what it would need. The row goes on without it."""


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
    held = torch.cuda.max_memory_allocated() or status("VmHWM")
    return Turn(seconds, processor, held, faults, output.clone() if keep else None)


class Process:
    """A subject in a process of its own, with its own allocator, whose memory can be told from the others'.

    The process starts with its first turn. After ``end`` another turn would start it anew.

    Attributes:
        notes: what the subject said of itself, once it has started.
    """

    def __init__(self, make: Make, *arguments: Any) -> None:
        self.make, self.arguments = make, arguments
        self.notes: dict[str, str] = {}
        self.running: tuple[BaseProcess, Connection] | None = None
        self.is_ready = False

    def start(self) -> None:
        """Let it get ready, while others do."""
        context = multiprocessing.get_context("spawn")
        pipe, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self.make, self.arguments), daemon=True)
        process.start()
        theirs.close()
        self.running, self.is_ready = (process, pipe), False

    def wait(self) -> None:
        """Until it is ready.

        Raises:
            Absent: the subject cannot be had here.
            RuntimeError: its process failed.
        """
        if self.running is None:
            self.start()
        if not self.is_ready:
            self.notes = self._told()
            self.is_ready = True

    def turn(self, keep: bool = False) -> Turn:
        """
        Raises:
            Absent, RuntimeError: see ``wait``, which it does first.
        """
        self.wait()
        assert self.running is not None
        self.running[1].send(keep)
        found: Turn = self._told()
        return found

    def _told(self) -> Any:
        assert self.running is not None
        process, pipe = self.running
        try:
            found = pipe.recv()
        except EOFError:
            process.join()
            self.running = None
            raise RuntimeError(f"its process failed with exit code {process.exitcode}") from None
        if isinstance(found, Absent):
            self.end()
            raise found
        return found

    def end(self) -> None:
        if self.running is not None:
            process, pipe = self.running
            pipe.close()
            process.join()
            self.running = None


def serve(pipe: Connection, make: Make, arguments: tuple[Any, ...]) -> None:
    """What a ``Process`` does: build, then one turn each time it is asked."""
    try:
        run, notes = make(*arguments)
    except Absent as why:
        pipe.send(why)
        return
    pipe.send(notes)
    try:
        while True:
            pipe.send(turn(run, pipe.recv()))
    except EOFError:
        return


class Program:
    """A subject that is a command, anew each turn, from its start to its end.

    Attributes:
        notes: what is to be said of it.
    """

    def __init__(
        self, command: Sequence[str], made: str = "", read: Callable[[Path], Tensor] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            command: ``{out}`` in it is where it shall write.
            made: the ending of what it writes.
            read: turns what it wrote into the output; without it there is none.
            before: what is done before each turn, outside the measurement.
        """
        self.command, self.made, self.read, self.before = command, made, read, before
        self.notes: dict[str, str] = {}

    def turn(self, keep: bool = False) -> Turn:
        """
        Raises:
            RuntimeError: the command failed.
        """
        if self.before is not None:
            self.before()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / f"out{self.made}"
            command = [part.replace("{out}", str(out)) for part in self.command]
            begin = time.perf_counter()
            with (Path(folder) / "log").open("w+") as log:
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
                _, code, used = os.wait4(process.pid, 0)
                seconds = time.perf_counter() - begin
                process.returncode = os.waitstatus_to_exitcode(code)
                log.seek(0)
                said = log.read()
            if process.returncode:
                raise RuntimeError(f"exit code {process.returncode}: {(said.strip().splitlines() or ['?'])[-1]}")
            output = self.read(out) if keep and self.read is not None else None
            processor = used.ru_utime + used.ru_stime
            return Turn(self.seconds(said, seconds), processor, used.ru_maxrss * 1024, used.ru_minflt, output)

    def seconds(self, said: str, clock: float) -> float:
        """What counts: the whole command's time, unless it tells a better figure in what it ``said``."""
        return clock

    def end(self) -> None:
        """Nothing is left of it."""


class Here:
    """A subject in this process."""

    def __init__(self, run: Callable[[], Tensor]) -> None:
        self.run = run
        self.notes: dict[str, str] = {}

    def turn(self, keep: bool = False) -> Turn:
        return turn(self.run, keep)

    def end(self) -> None:
        """It lives on."""


Subject = Process | Program | Here


def compare(
    name: str, subjects: Mapping[str, Callable[[], Tensor] | Subject], turns: int = 5, warmups: int = 1,
    limit: float = 1e-4, work: float = 0.0, rounds: int = 0, lossy: Collection[str] = (), span: float = 0.0,
    rate: Callable[[], float] | None = None,
) -> Row:
    """Run the subjects in turns.

    A subject that is absent, that fails, or whose output differs is left out, and the row's notes say why.

    Args:
        subjects: name to what does the work once and returns the output; the first is the reference.
        turns: of each that count; in each round, where there are rounds.
        warmups: turns of each that do not, after each start.
        limit: relative difference to the reference's output that is still the same output.
        work: floating-point operations of a turn.
        rounds: 0: all subjects stay alive and take their turns one by one. Else so many times each subject starts,
            has its turns, and ends: no two are in memory at once.
        lossy: those that may differ by more, of which the PSNR is told.
        span: of the outputs' values, which the PSNR refers to; the reference output's own unless given.
        rate: measures the peak that the work is compared to; ``peak_rate`` unless given.

    Raises:
        RuntimeError: the reference itself cannot be had.
    """
    living = {label: s if isinstance(s, Subject) else Here(s) for label, s in subjects.items()}
    first = next(iter(living))
    outputs: dict[str, Tensor] = {}
    notes: dict[str, str] = {}
    measured = {label: Measured() for label in living}
    faults: dict[str, list[int]] = {label: [] for label in living}

    def with_reason(label: str, do: Callable[[], T]) -> T | None:
        """What it gives; None, and a note, where the subject is left out."""
        try:
            return do()
        except (Absent, RuntimeError) as why:
            if label == first:
                raise RuntimeError(f"{name}: {label}, the reference: {why}") from why
            notes[label] = f"left out: {why}"
            living.pop(label).end()
            return None

    def once(label: str, counts: bool) -> None:
        if label not in living:
            return
        subject, keep = living[label], label not in outputs
        found = with_reason(label, lambda: subject.turn(keep))
        if found is None:
            return
        print(f"{name}: {label}: {found.seconds:.2f} s{'' if counts else ', to warm up'}", file=sys.stderr, flush=True)
        notes.update(living[label].notes)
        if found.output is not None:
            outputs[label] = found.output.double()
            if label not in lossy and first in outputs and (far := _far(outputs[label], outputs[first])) > limit:
                notes[label] = f"left out: differs from {first} by {far:.1e}, more than {limit:.0e}"
                living.pop(label).end()
                return
        if counts:
            measured[label].seconds.append(found.seconds)
            measured[label].processor.append(found.processor)
            measured[label].memory = max(measured[label].memory, found.memory)
            faults[label].append(found.faults)

    if rounds:
        for _ in range(rounds):
            for label in list(living):
                for i in range(warmups + turns):
                    once(label, i >= warmups)
                if label in living:
                    living[label].end()
    else:
        processes = {label: subject for label, subject in living.items() if isinstance(subject, Process)}
        for process in processes.values():
            process.start()
        for label, process in processes.items():  # before anything is timed
            with_reason(label, process.wait)
        for i in range(warmups + turns):
            for label in list(living):
                once(label, i >= warmups)
        for subject in living.values():
            subject.end()
    for label in living:
        measured[label].faults = int(median(faults[label]))
    truth = outputs.get(first)
    quality = {
        label: psnr(outputs[label], truth, span)
        for label in living if label in lossy and label in outputs and truth is not None
    }  # fmt: skip
    return Row(
        name, {label: measured[label] for label in living},
        {label: _far(y, truth) for label, y in outputs.items() if label in living and truth is not None},
        work, (rate or peak_rate)() if work else 0.0, notes, [label for label in living if label in lossy],
        {label: found for label, found in quality.items() if found < inf},
    )


def _far(y: Tensor, truth: Tensor) -> float:
    return float((y - truth).norm() / truth.norm())


def psnr(y: Tensor, truth: Tensor, span: float = 0.0) -> float:
    """Peak signal-to-noise ratio in dB; ``span`` is that of the true values unless given."""
    span = span or float(truth.max() - truth.min())
    error = float((y - truth).square().mean())
    return 10 * log10(span**2 / error) if error else inf


def status(entry: str) -> int:
    """Bytes under a name of /proc/self/status; 0 where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(entry + ":")), 0)


def reset_peak() -> None:
    """Start the high-water marks anew: a GPU's, and the process's where the system lets us, which else is that of its
    whole life."""
    if torch.cuda.max_memory_allocated():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rate(
    size: int = 2048, tries: int = 8, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> float:
    """Operations a second of a square matrix product, the best of several."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out, best = torch.empty_like(a), float("inf")
    for _ in range(tries):
        begin = time.perf_counter()
        torch.mm(a, b, out=out)
        if out.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best
