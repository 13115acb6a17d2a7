"""Drives samplers: holds all their generators, and answers all their queries with as few forwards as can be."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfumato.core.errors import NumericError, SfumatoError
from sfumato.engine.denoiser import Ask, Denoiser, Frame, Shortcut
from sfumato.engine.timetable import Timetable
from sfumato.guidance.types import Guidance
from sfumato.nn.conditioning import Conditioning
from sfumato.sampling.types import Estimate, Query, Sampler, Sigmas


class Cancelled(SfumatoError):
    """Raised out of a progress callback, or by whoever drives, to stop a job between steps."""


@dataclass(frozen=True)
class Progress:
    """Where a job stands after an answer.

    Attributes:
        step: steps finished, of ``steps``.
        x0: [B, C, H, W] the clean latents as seen now; ``engine.preview.preview`` shows them.
    """

    step: int
    steps: int
    sigma: float
    x0: Tensor


OnStep = Callable[[Progress], None]


@dataclass(frozen=True)
class Spell:
    """A part of a run in which the network is told something else: at sigmas up to ``high`` and above ``low``."""

    high: float
    low: float
    conditionings: Mapping[str, Conditioning]
    timetable: Timetable | None = None


@dataclass(eq=False)
class Job:
    """One running sampler and what its answers are made with.

    Attributes:
        sampler: the coroutine.
        sigmas: the ones it runs over, for telling progress.
        on_step: is told after each answer; may raise ``Cancelled``.
        shortcuts: lossy ways through the network, this job's own.
        spell: in which other conditionings stand for this job's.
        result: the sampler's final x, in the frame, once it has finished.
        error: why it ended without a result.
    """

    sampler: Sampler
    sigmas: Sigmas
    denoiser: Denoiser
    frame: Frame
    guidance: Guidance
    conditionings: Mapping[str, Conditioning]
    on_step: OnStep | None = None
    timetable: Timetable | None = None
    shortcuts: tuple[Shortcut, ...] = ()
    spell: Spell | None = None
    result: Tensor | None = None
    error: Exception | None = None
    query: Query | None = field(default=None, repr=False)

    def start(self) -> None:
        """Run the sampler up to its first query."""
        self._resume(lambda: next(self.sampler))

    def ask(self) -> Ask:
        """The pending query with what is needed to answer it."""
        assert self.query is not None
        spell = self.spell
        told = spell if spell is not None and spell.low < self.query.sigma <= spell.high else self
        return Ask(self.query, self.frame, self.guidance, told.conditionings, told.timetable, self.shortcuts)

    def send(self, estimate: Estimate) -> None:
        """Give the answer to the pending query; the sampler runs up to its next one, or ends."""
        assert self.query is not None
        sigma = self.query.sigma
        try:
            if estimate.x0.device.type == "cpu" and not torch.isfinite(estimate.x0).all():
                raise not_finite(sigma)
            if self.on_step is not None:
                steps = len(self.sigmas) - 1
                step = bisect_left(self.sigmas, -sigma, key=lambda s: -s) + 1
                self.on_step(Progress(min(step, steps), steps, sigma, estimate.x0))
        except Exception as problem:
            self.fail(problem)
            return
        self._resume(lambda: self.sampler.send(estimate))

    def fail(self, problem: Exception) -> None:
        """End it without a result."""
        self.sampler.close()
        self.query, self.error = None, problem

    def _resume(self, resume: Callable[[], Query]) -> None:
        try:
            self.query = resume()
        except StopIteration as end:
            self.query, self.result = None, end.value
        except Exception as problem:
            self.query, self.error = None, problem


def not_finite(sigma: float) -> NumericError:
    """The error for a latent that is no number any more."""
    return NumericError(
        f"The network's answer at sigma {sigma:.4g} holds NaN or infinity. In float16 this is an overflow: try "
        "--dtype bfloat16 or float32. Otherwise the checkpoint itself is damaged: `sfumato inspect` tells."
    )


class Driver:
    """Jobs join and leave between forwards (step-level continuous batching).

    >>> driver = Driver()
    >>> driver.submit(job)
    >>> while driver.jobs: driver.tick()
    """

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        """Take a job in; it takes part from the next tick on."""
        job.start()
        self.jobs.append(job)

    def tick(self) -> list[Job]:
        """Answer every pending query once. Returns the jobs that have ended, with a result or an error.

        A forward that fails ends the jobs that shared it, and no others.
        """
        by_denoiser: dict[int, list[Job]] = {}
        for job in self.jobs:
            if job.query is not None:
                by_denoiser.setdefault(id(job.denoiser), []).append(job)
        for jobs in by_denoiser.values():
            denoiser, asks = jobs[0].denoiser, [job.ask() for job in jobs]
            for group in denoiser.groups(asks):
                try:
                    estimates = denoiser.answer([asks[i] for i in group])
                except Exception as problem:
                    for i in group:
                        jobs[i].fail(problem)
                    continue
                for i, estimate in zip(group, estimates, strict=True):
                    jobs[i].send(estimate)
        ended = [job for job in self.jobs if job.query is None]
        self.jobs = [job for job in self.jobs if job.query is not None]
        return ended


def run(jobs: Iterable[Job]) -> list[Tensor]:
    """Drive jobs to their ends together; the first error stops all.

    Returns:
        Each job's final x, in the variance-exploding frame at its last sigma.
    """
    driver = Driver()
    all_jobs = list(jobs)
    for job in all_jobs:
        driver.submit(job)
    while driver.jobs:
        driver.tick()
        for job in all_jobs:
            if job.error is not None:
                raise job.error
    for job in all_jobs:
        if job.error is not None:
            raise job.error
    results = [job.result for job in all_jobs]
    assert all(r is not None for r in results)
    return [r for r in results if r is not None]
