"""Many requests at once, on a model of twenty lines and on a tiny real one."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sfumato
from sfumato.core.errors import CapacityError, NumericError, RequestError
from sfumato.core.request import Request
from sfumato.engine.driver import Cancelled
from sfumato.families.types import Model
from sfumato.tasks.batcher import Batcher, Moment, Ticket
from sfumato.tasks.text_to_image import Result, text_to_image
from tests.parity import tiny
from tests.toy import Net, toy


@pytest.fixture
def model() -> Model:
    return toy()


def rows(model: Model) -> list[int]:
    network = model.network
    assert isinstance(network, Net)
    return network.rows


def held(model: Model, **options: Any) -> Batcher:
    return Batcher(model, thread=False, **options)


def drain(batcher: Batcher) -> None:
    while batcher.busy:
        batcher.step()


def same(result: Result, other: Result) -> None:
    assert len(result.pictures) == len(other.pictures)
    for a, b in zip(result.pictures, other.pictures, strict=True):
        assert a.recipe == b.recipe
        assert np.abs(a.pixels.astype(int) - b.pixels.astype(int)).max() <= 1


REQUESTS = [
    Request("a cat", seed=1),
    Request("a dog", seed=2, steps=7, sampler="DPM++ 2M Karras", count=2),
    Request("a horse on a hill", negative_prompt="rain", seed=3, sampler="heun", cfg_scale=7.0),
    Request("a bird", seed=4, cfg_scale=1.0, sampler="Euler a", steps=9),
    Request("a fish", seed=5, width=12, sampler="ddim", eta=1.0),
    Request("a fox", seed=6, lossy=("interval:1:8",), guidance_rescale=0.5),
]
"""Samplers, steps, guidance, sizes, numbers of pictures: nothing is alike."""


def test_each_gets_what_it_gets_alone_however_they_come(model: Model) -> None:
    batcher = held(model)
    tickets: list[Ticket] = []
    for request in REQUESTS:
        tickets.append(batcher.submit(request))
        batcher.step()
        batcher.step()
    drain(batcher)
    for ticket, request in zip(tickets, REQUESTS, strict=True):
        same(ticket.result(0), text_to_image(model, request))


def test_requests_share_forwards_and_leave_when_they_are_done(model: Model) -> None:
    batcher = held(model)
    batcher.submit(Request("a cat", seed=1, steps=2))
    batcher.submit(Request("a dog", seed=2, steps=4))
    batcher.step()
    batcher.submit(Request("a cow", seed=3, steps=4))
    drain(batcher)
    assert rows(model) == [4, 6, 4, 4, 2]


def test_rows_are_limited_and_a_long_request_does_not_hold_up_the_rest(model: Model) -> None:
    batcher = held(model, rows=4)
    long = batcher.submit(Request("a cat", seed=1, steps=2, count=6))
    short = batcher.submit(Request("a dog", seed=2, steps=2))
    ended: list[Ticket] = []
    for ticket in (long, short):
        ticket.future.add_done_callback(lambda _, ticket=ticket: ended.append(ticket))  # type: ignore[misc]
    drain(batcher)
    assert max(rows(model)) == 4
    assert ended == [short, long]
    assert [picture.seed for picture in long.result(0).pictures] == [*range(1, 7)]


def test_a_request_wider_than_the_limit_is_drawn_when_nothing_else_is(model: Model) -> None:
    batcher = held(model, rows=1)
    tickets = [batcher.submit(Request("a cat", seed=seed, steps=2)) for seed in (1, 2)]
    drain(batcher)
    assert rows(model) == [2, 2, 2, 2]
    assert all(ticket.future.done() for ticket in tickets)


def test_one_that_fails_leaves_the_others_alone(model: Model) -> None:
    batcher = held(model)
    good = batcher.submit(REQUESTS[0])
    bad = batcher.submit(Request("nan", seed=2, count=3))
    unread = batcher.submit(Request("unreadable", seed=3))
    drain(batcher)
    with pytest.raises(NumericError, match="NaN"):
        bad.result(0)
    with pytest.raises(RequestError, match="cannot be read"):
        unread.result(0)
    same(good.result(0), text_to_image(model, REQUESTS[0]))


def test_cancelling_stops_before_the_next_step(model: Model) -> None:
    batcher = held(model, rows=2)
    running = batcher.submit(Request("a cat", seed=1, steps=9, count=2))
    waiting = batcher.submit(Request("a dog", seed=2))
    last = batcher.submit(Request("a cow", seed=3, steps=2))
    batcher.step()
    running.cancel()
    waiting.cancel()
    drain(batcher)
    for ticket in (running, waiting):
        with pytest.raises(Cancelled):
            ticket.result(0)
    assert last.result(0).pictures
    assert rows(model) == [2, 2, 2]
    last.cancel()
    assert last.result(0).pictures


def test_a_listener_may_cancel(model: Model) -> None:
    def watch(moment: Moment) -> None:
        if moment.progress.step == 2:
            raise Cancelled("enough")

    batcher = held(model)
    ticket = batcher.submit(Request("a cat", seed=1), watch)
    drain(batcher)
    with pytest.raises(Cancelled, match="enough"):
        ticket.result(0)
    assert len(rows(model)) == 2


def test_what_is_not_for_the_model_is_refused_at_once_and_so_is_too_much(model: Model) -> None:
    batcher = held(model, waiting=1)
    with pytest.raises(RequestError, match="eulr"):
        batcher.submit(Request("a cat", sampler="eulr"))
    batcher.submit(Request("a cat"))
    with pytest.raises(CapacityError, match="1 requests wait"):
        batcher.submit(Request("a dog"))
    batcher.close()
    with pytest.raises(CapacityError, match="closed"):
        batcher.submit(Request("a dog"))


def test_moments_come_from_another_thread_and_end(model: Model) -> None:
    batcher = Batcher(model)
    tickets = [batcher.submit(request) for request in REQUESTS[:3]]
    for ticket in tickets:
        seen = [(moment.picture, moment.progress.step) for moment in ticket.moments()]
        assert seen[-1][1] == ticket.request.steps
        assert seen == sorted(seen, key=lambda moment: moment[1]) or len(ticket.drawing.settled.seeds) > 1
    batcher.close()
    for ticket, request in zip(tickets, REQUESTS, strict=False):
        same(ticket.result(0), text_to_image(model, request))


def test_many_threads_may_submit(model: Model) -> None:
    batcher, found = Batcher(model), {}

    def ask(seed: int) -> None:
        found[seed] = batcher.submit(Request("a cat", seed=seed)).result(60)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    for seed in range(8):
        same(found[seed], text_to_image(model, Request("a cat", seed=seed)))


def test_a_mistake_in_the_loop_leaves_nobody_waiting(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = Batcher(model)
    monkeypatch.setattr(batcher.driver, "tick", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        batcher.submit(Request("a cat")).result(60)


def test_a_real_pipeline(tmp_path: Path) -> None:
    """Text encoder, prepared keys and values, prepared times, a step cache with its state, packed layers."""
    tiny.pipeline("sd1", tmp_path).save_pretrained(tmp_path / "model")
    model = sfumato.load(str(tmp_path / "model")).model
    size: dict[str, Any] = {"width": 64, "height": 64}
    requests = [
        Request("a red apple", seed=1, steps=5, sampler="euler", **size),
        Request("a cat", seed=2, steps=7, sampler="DPM++ 2M", cfg_scale=4.0, count=2, lossy=("deepcache:2:1",), **size),
        Request("a blue star", seed=3, steps=4, sampler="Euler a", cfg_scale=1.0, **size),
        Request("a photo of a cat", seed=4, steps=6, sampler="heun", lossy=("deepcache:3:1",), **size),
        Request("a red apple " * 30, seed=5, steps=3, width=72, height=64),
    ]
    batcher = held(model)
    tickets = []
    for request in requests:
        tickets.append(batcher.submit(request))
        batcher.step()
    drain(batcher)
    for ticket, request in zip(tickets, requests, strict=True):
        same(ticket.result(0), text_to_image(model, request))


def test_the_refiner_takes_over_in_a_batch_too(tmp_path: Path) -> None:
    models = []
    for family in ("sdxl", "sdxl-refiner"):
        tiny.pipeline(family, tmp_path / family).save_pretrained(tmp_path / family / "model")
        models.append(sfumato.load(str(tmp_path / family / "model")).model)
    base, refiner = models
    batcher = held(base, refiner=refiner)
    requests = [Request("a cat", seed=s, refiner_start=0.5, steps=4, width=64, height=64) for s in (1, 2)]
    tickets = [batcher.submit(request) for request in requests]
    drain(batcher)
    for ticket, request in zip(tickets, requests, strict=True):
        same(ticket.result(0), text_to_image(base, request, refiner=refiner))
