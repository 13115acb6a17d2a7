"""Many requests at once: they join and leave between two steps of the network, and share its forwards.

What a server or a program with many requests holds: ``Batcher(model)``, of which one thread is the only one to touch
the networks. Each picture is a job of its own, so requests with different prompts, samplers, step counts, guidance and
numbers of pictures mix freely, and each picture is the one that its request and seed give alone.

>>> batcher = Batcher(model)
>>> ticket = batcher.submit(Request("a red apple", steps=30))
>>> for moment in ticket.moments(): print(moment.progress.step)
>>> ticket.result().images[0]
>>> batcher.close()
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from threading import Condition, Thread
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.core.errors import CapacityError
from sfumato.core.request import Request
from sfumato.engine.denoiser import Denoiser
from sfumato.engine.driver import Cancelled, Driver, Job, OnStep, Progress
from sfumato.engine.residence import USUAL
from sfumato.families.types import Model
from sfumato.tasks import TASKS
from sfumato.tasks.picture import Picture
from sfumato.tasks.settle import Settled
from sfumato.tasks.text_to_image import Beginning, Drawing, Result


class Moment(NamedTuple):
    """Where one picture of a request stands."""

    picture: int  # from 0
    progress: Progress


OnMoment = Callable[[Moment], None]


class Ticket:
    """A request that was handed in. All methods may be called from any thread.

    Attributes:
        future: of the result; ``asyncio.wrap_future`` waits for it without a thread.
    """

    def __init__(self, drawing: Drawing, on_moment: OnMoment | None) -> None:
        self.drawing, self.on_moment = drawing, on_moment
        self.future: Future[Result] = Future()
        self.future.set_running_or_notify_cancel()  # from here on only ``cancel`` stops it
        self.todo = deque(range(len(drawing.settled.seeds)))  # pictures that were not begun
        self.made: dict[int, tuple[Picture, Tensor]] = {}
        self.warnings: dict[str, None] = {}
        self.cancelled = False
        self._news: dict[int, Progress] = {}
        self._changed = Condition()

    @property
    def request(self) -> Request:
        """What is drawn, without blanks."""
        return self.drawing.settled.request

    def cancel(self) -> None:
        """Stop before the next step; ``result`` then raises ``Cancelled``. A request that has ended stays as it is."""
        self.cancelled = True

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the pictures.

        Raises:
            TimeoutError: they are not there after so many seconds.
            Cancelled, SfumatoError: why there are none.
        """
        return self.future.result(timeout)

    def moments(self) -> Iterator[Moment]:
        """What happens, as it happens, until the request has ended; who reads too slowly gets the newest only."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._news or self.future.done())
                news, self._news = self._news, {}
            if not news:
                return
            yield from (Moment(picture, progress) for picture, progress in sorted(news.items()))

    def hear(self, picture: int) -> OnStep:
        """What the job of a picture tells its progress."""

        def on_step(progress: Progress) -> None:
            with self._changed:
                self._news[picture] = progress
                self._changed.notify_all()
            if self.on_moment is not None:
                self.on_moment(Moment(picture, progress))

        return on_step

    def end(self, outcome: Result | Exception) -> None:
        """Say how it ended."""
        with self._changed:
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)
            self._changed.notify_all()


class _Place(NamedTuple):
    """What a running job is for."""

    ticket: Ticket
    picture: int
    stage: int
    begun: Beginning
    rows: int


class Batcher:
    """Draws what is submitted, all together.

    Args:
        model: resident, with all its parts.
        rows: the most rows that are in work at once, over all requests; a guided picture takes two. What does not fit
            waits, and requests that wait take turns picture by picture, so that a long one does not hold up the rest.
        waiting: the most requests that may wait.
        thread: draw in a thread of its own; else whoever holds it calls ``step``.
    """

    def __init__(
        self, model: Model, refiner: Model | None = None, rows: int = USUAL.rows, waiting: int = 1000,
        thread: bool = True,
    ) -> None:
        self.model, self.refiner, self.rows, self.most_waiting = model, refiner, rows, waiting
        self.driver = Driver()
        self._denoisers: dict[int, Denoiser] = {}
        self._waiting: deque[Ticket] = deque()
        self._working: dict[Job, _Place] = {}
        self._drawn: deque[tuple[_Place, Tensor]] = deque()  # latents that are to be decoded
        self._changed = Condition()
        self._closing = False
        self._thread = Thread(target=self._serve, name="sfumato batcher", daemon=True) if thread else None
        if self._thread is not None:
            self._thread.start()

    def submit(self, asked: Request | Settled, on_moment: OnMoment | None = None) -> Ticket:
        """Hand in a request.

        Args:
            asked: the request, or all that is decided of it where that was done for this model before.
            on_moment: told, in the drawing thread, after each answer of the network; may raise ``Cancelled``.

        Raises:
            RequestError: it is not for this model. CapacityError: too many wait.
        """
        request = asked.request if isinstance(asked, Settled) else asked
        drawing: Drawing = TASKS.get(request.task)(self.model, asked, self.refiner)
        ticket = Ticket(drawing, on_moment)
        with self._changed:
            if self._closing:
                raise CapacityError("The batcher was closed.")
            if len(self._waiting) >= self.most_waiting:
                raise CapacityError(f"{self.most_waiting} requests wait already; try again later.")
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def close(self) -> None:
        """Take no more requests, draw those that were taken, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    @property
    def busy(self) -> bool:
        """Whether anything waits or is in work."""
        return bool(self._waiting or self._working or self._drawn)

    @torch.inference_mode()
    def step(self) -> None:
        """One round: begin what fits, let every job ask once, decode one picture that is drawn."""
        self._cancel()
        for ticket, picture in self._admit():
            self._begin(ticket, picture)
        for job in self.driver.tick():
            self._ended(job)
        if self._drawn:
            self._decode(*self._drawn.popleft())
        if not self.busy:
            self._denoisers.clear()  # the model's parts may be others when the next request comes

    def abandon(self, problem: Exception) -> None:
        """End everything that waits or is in work, without pictures."""
        for ticket in self._tickets():
            self._fail(ticket, problem)

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.busy or self._closing)
            if not self.busy:
                return
            try:
                self.step()
            except Exception as problem:  # a mistake of ours must not leave anyone waiting
                self.abandon(problem)

    def _admit(self) -> list[tuple[Ticket, int]]:
        """Pictures to begin now: one of each request that waits, in turn, while rows are free."""
        free = self.rows - sum(place.rows for place in self._working.values())
        empty = not self._working
        chosen = []
        with self._changed:
            while self._waiting:
                ticket = self._waiting[0]
                rows = len(ticket.drawing.settled.names)
                if rows > free and not empty:
                    break
                free, empty = free - rows, False
                self._waiting.popleft()
                chosen.append((ticket, ticket.todo.popleft()))
                if ticket.todo:
                    self._waiting.append(ticket)
        return chosen

    def _begin(self, ticket: Ticket, picture: int) -> None:
        drawing = ticket.drawing
        if ticket.future.done():  # another of its pictures failed
            return
        try:
            if not drawing.runs:
                drawing.prepare()
            begun = drawing.begin([drawing.settled.seeds[picture]])
            self._go_on(_Place(ticket, picture, -1, begun, len(drawing.settled.names)), begun.x)
        except Exception as problem:
            self._fail(ticket, problem)

    def _go_on(self, place: _Place, x: Tensor) -> None:
        """To the next stage that has steps, or to the decoder."""
        runs = place.ticket.drawing.runs
        stage = next((i for i in range(place.stage + 1, len(runs)) if len(runs[i].sigmas) > 1), None)
        if stage is None:
            self._drawn.append((place, place.ticket.drawing.end(x)))
            return
        shared = self._denoisers.setdefault(id(runs[stage].model), replace(runs[stage].denoiser(), rows=self.rows))
        job = runs[stage].job(x, place.begun, place.ticket.hear(place.picture), shared)
        self._working[job] = place._replace(stage=stage)
        self.driver.submit(job)

    def _ended(self, job: Job) -> None:
        place = self._working.pop(job)
        if place.ticket.future.done():
            return
        try:
            if job.error is not None:
                raise job.error
            assert job.result is not None  # it ended without an error
            self._go_on(place, job.result)
        except Exception as problem:
            self._fail(place.ticket, problem)

    def _decode(self, place: _Place, latents: Tensor) -> None:
        ticket, drawing = place.ticket, place.ticket.drawing
        if ticket.future.done():
            return
        try:
            [picture], warnings = drawing.decode(latents, [drawing.settled.seeds[place.picture]])
            ticket.made[place.picture] = picture, latents
            ticket.warnings |= dict.fromkeys(warnings)
            if len(ticket.made) == len(drawing.settled.seeds):
                made = [ticket.made[i] for i in range(len(ticket.made))]
                together = torch.cat([latents for _, latents in made])
                ticket.end(drawing.result([picture for picture, _ in made], ticket.warnings, together))
        except Exception as problem:
            self._fail(ticket, problem)

    def _cancel(self) -> None:
        """Take out what was cancelled since the last round."""
        for ticket in self._tickets():
            if ticket.cancelled and not ticket.future.done():
                self._fail(ticket, Cancelled("The request was cancelled."))

    def _tickets(self) -> set[Ticket]:
        with self._changed:
            places = [*self._working.values(), *(place for place, _ in self._drawn)]
            return {*self._waiting, *(place.ticket for place in places)}

    def _fail(self, ticket: Ticket, problem: Exception) -> None:
        """End a request without pictures, and everything that is done for it."""
        with self._changed:
            self._waiting = deque(other for other in self._waiting if other is not ticket)
        for job, place in self._working.items():
            if place.ticket is ticket and job.query is not None:
                job.fail(problem)  # the driver's next tick lets it go
        if not ticket.future.done():
            ticket.end(problem)
