"""What stands behind every face of the server: a pipeline of which one thread draws all that is handed in.

Requests share the network's calls step by step (``tasks.batcher``) as long as they want the same LoRAs. One that wants
others, or an explanation, waits until all before it are drawn; and what comes after it waits for it, so that nobody
waits for ever.

>>> service = Service(sfumato.load("…"))
>>> work = service.submit(Request("a red apple"))
>>> work.future.result().images[0]
>>> service.close()
"""

import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Condition, Thread
from typing import Any, Literal

import torch

from sfumato.adapters.file import listed, locate
from sfumato.adapters.types import Applied
from sfumato.adapters.wanted import asked
from sfumato.core.errors import CapacityError, RequestError, nearest
from sfumato.core.request import Request
from sfumato.engine.driver import Cancelled, Progress
from sfumato.engine.preview import with_colours
from sfumato.serving.limits import Limits
from sfumato.tasks.batcher import Batcher, Moment, Ticket
from sfumato.tasks.explain import Explanation
from sfumato.tasks.given import BROUGHT, DATA, told
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.settle import Settled, settle
from sfumato.tasks.text_to_image import Result

State = Literal["waiting", "drawing", "done", "failed", "cancelled"]


class BusyError(CapacityError):
    """So many wait that no more are taken; the same request may be taken a moment later."""


@dataclass(eq=False)
class Work:
    """A request that was handed in. Everything may be read from any thread.

    Attributes:
        settled: what is drawn, with the pictures that it brings along; None when it has ended.
        request: what is drawn, without blanks, and with fingerprints in the place of pictures.
        explains: heatmaps are wanted too.
        future: of the result; ``asyncio.wrap_future`` waits for it without a thread.
        created: seconds since 1970.
        progress: by pictures, the newest of each that was begun.
        version: rises whenever anything changes.
        explanation: of one that explains, when it is done.
    """

    settled: Settled | None
    explains: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    future: "Future[Result]" = field(default_factory=Future)
    created: float = field(default_factory=time.time)
    state: State = "waiting"
    progress: dict[int, Progress] = field(default_factory=dict)
    version: int = 0
    explanation: Explanation | None = None
    cancelled: bool = False
    ticket: Ticket | None = None
    ended_at: float | None = None
    request: Request = field(init=False)

    def __post_init__(self) -> None:
        assert self.settled is not None
        request, given = self.settled.request, self.settled.given
        prints: dict[str, Any] = {} if given is None else told(request, given)
        self.request = replace(request, **prints)

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def seconds(self) -> float:
        """Since it was handed in, until it ended."""
        return (time.time() if self.ended_at is None else self.ended_at) - self.created

    @property
    def share(self) -> float:
        """0 to 1: how much of the steps of all pictures is done."""
        if self.state == "done":
            return 1.0
        done = sum(now.step / max(now.steps, 1) for now in self.progress.copy().values())
        return done / self.request.count

    @property
    def error(self) -> BaseException | None:
        """Why there are no pictures, if it ended so."""
        return self.future.exception() if self.ended else None

    def hear(self, moment: Moment) -> None:
        """Told after each answer of the network, in the drawing thread.

        Raises:
            Cancelled: nobody wants it any more.
        """
        if self.cancelled:
            raise Cancelled("The request was cancelled.")
        self.state = "drawing"
        self.progress[moment.picture] = moment.progress
        self.version += 1

    def end(self, outcome: Result | BaseException) -> None:
        """Say how it ended."""
        self.progress.clear()  # latents
        self.settled = self.ticket = None
        self.ended_at = time.time()
        if isinstance(outcome, BaseException):
            self.state = "cancelled" if isinstance(outcome, Cancelled) else "failed"
            self.future.set_exception(outcome)
        else:
            self.state = "done"
            self.future.set_result(outcome)
        self.version += 1


class Service:
    """Takes requests, draws them, and keeps the newest that have ended.

    Args:
        pipeline: nobody else may use it from now on.
        limits: what is refused.

    Attributes:
        latent: the model's, with a map to colours for previews.
        on_end: told of every request that has ended, in the drawing thread or in that which cancelled it.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits | None = None) -> None:
        self.pipeline, self.limits = pipeline, limits or Limits()
        self.model = pipeline.model
        self.name = self.model.source
        # Parts of a model that was given a limit come and go: they are not asked for their colours.
        self.latent = with_colours(self.model) if pipeline.limit is None else self.model.latent
        self.started = time.time()
        self.on_end: list[Callable[[Work], None]] = []
        self._works: OrderedDict[str, Work] = OrderedDict()
        self._waiting: deque[Work] = deque()
        self._changed = Condition()
        self._closing = False
        self._batcher = Batcher(pipeline.model, pipeline.refiner, thread=False)
        self._thread = Thread(target=self._serve, name="sfumato server", daemon=True)
        self._thread.start()

    def submit(self, request: Request, explains: bool = False) -> Work:
        """Hand in a request; what is wrong with it is said at once.

        Raises:
            RequestError: it is not for this model, or names a file. CapacityError: it is too large.
            BusyError: too many wait, or the server is about to stop.
        """
        work = Work(self.checked(request), explains)
        with self._changed:
            unfinished = sum(not other.ended for other in self._works.values())
            if self._closing:
                raise BusyError("The server is about to stop.")
            if unfinished >= self.limits.most_waiting:
                raise BusyError(f"{unfinished} requests wait already; try again in a moment.")
            self._works[work.id] = work
            self._waiting.append(work)
            self._changed.notify_all()
        return work

    def checked(self, request: Request) -> Settled:
        """All that is decided of a request beforehand.

        Raises:
            RequestError, CapacityError: as ``submit``.
        """
        for name in BROUGHT:
            text = getattr(request, name)
            if text is not None and not text.startswith(DATA):
                raise RequestError(
                    f"{name}: a server reads no files by their names; send the picture itself, as a data: URL "
                    f"({DATA}image/png;base64,…)."
                )
        stand_ins = []
        for one in asked(request):
            if not one.tag and one.name not in self.loras:
                raise RequestError(f"There is no LoRA {one.name!r} on this server{nearest(one.name, self.loras)}")
            stand_ins.append(Applied(one, locate(one, self.pipeline.lora_folder), "", "", {}))
        settled = settle(request, replace(self.model, adapters=tuple(stand_ins)))
        self.limits.check(settled.request)
        if request.refiner_start is not None and self.pipeline.refiner is None:
            raise RequestError(f"refiner_start = {request.refiner_start}: this server has no refiner.")
        return settled

    @property
    def loras(self) -> list[str]:
        """Names of the LoRAs that may be asked for."""
        return sorted(listed(self.pipeline.lora_folder))

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the model can do."""
        return self.model.family.tasks

    @property
    def works(self) -> list[Work]:
        """All that are known, the oldest first."""
        with self._changed:
            return [*self._works.values()]

    @property
    def unfinished(self) -> list[Work]:
        """Those that wait or are drawn, the oldest first."""
        return [work for work in self.works if not work.ended]

    def find(self, id: str) -> Work | None:
        """A request by its id."""
        with self._changed:
            return self._works.get(id)

    def cancel(self, work: Work) -> None:
        """Stop before the next step; one that has ended stays as it is."""
        work.cancelled = True
        if work.ticket is not None:
            work.ticket.cancel()
        with self._changed:
            waited = work in self._waiting
            if waited:
                self._waiting.remove(work)
        if waited:
            self._end(work, Cancelled("The request was cancelled."))

    def close(self, timeout: float | None = None) -> None:
        """Take no more, draw what was taken, and end; after so many seconds, cancel what is left."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)
        if self._thread.is_alive():
            for work in self.unfinished:
                self.cancel(work)
            self._thread.join()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._batcher.busy or self._closing)
                if self._closing and not self._waiting and not self._batcher.busy:
                    return
            try:
                self._admit()
                if self._batcher.busy:
                    self._batcher.step()
            except Exception as problem:  # a mistake of ours must not leave anyone waiting
                self._batcher.abandon(problem)

    def _admit(self) -> None:
        """Take from the queue what may be drawn beside what is drawn now."""
        while True:
            with self._changed:
                if not self._waiting:
                    return
                work = self._waiting[0]
                settled = work.settled
                assert settled is not None  # it has not ended
                request = settled.request
                alone = work.explains or self.pipeline.limit is not None
                fits = asked(request) == tuple(applied.wanted for applied in self.model.adapters)
                if self._batcher.busy and (alone or not fits):
                    return
                self._waiting.popleft()
            try:
                if alone:
                    self._end(work, self._draw_alone(work, request))
                    continue
                self.pipeline.adapt(request)
                self.pipeline.make_ready(request)
                ticket = work.ticket = self._batcher.submit(settled, work.hear)
                ticket.future.add_done_callback(partial(self._heard, work))
            except Exception as problem:
                self._end(work, problem)

    def _draw_alone(self, work: Work, request: Request) -> Result:
        first, last = 0, None  # pictures are drawn some at a time, and those of each time go on together

        def on_step(progress: Progress) -> None:
            nonlocal first, last
            if last is not None and progress.step < last.step:
                first = min(first + len(last.x0), request.count - len(progress.x0))
            last = progress
            for i, x0 in enumerate(torch.split(progress.x0, 1)):
                work.hear(Moment(first + i, replace(progress, x0=x0)))

        if not work.explains:
            return self.pipeline(request, on_step=on_step)
        work.explanation = self.pipeline.explain(request, on_step=on_step)
        return work.explanation.result

    def _heard(self, work: Work, future: "Future[Result]") -> None:
        self._end(work, future.exception() or future.result())

    def _end(self, work: Work, outcome: Result | BaseException) -> None:
        with self._changed:
            if work.ended:
                return
            work.end(outcome)
            ended = [other for other in self._works.values() if other.ended]
            held = sum(other.request.count for other in ended)
            for oldest in ended[:-1]:
                if held <= self.limits.kept:
                    break
                held -= oldest.request.count
                del self._works[oldest.id]
        for tell in self.on_end:
            tell(work)
