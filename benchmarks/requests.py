"""Requests that arrive at random moments: drawn one after the other, and together, step by step (``tasks.batcher``).

``python -m benchmarks.requests --model FOLDER --requests N --turns N --device cuda``. They differ in prompt, sampler,
steps and guidance, and arrive as a Poisson process, ``PRESSURE`` times as fast as they can be drawn one after the
other; the moments are seeded, and the same for both. A turn lasts from the first moment to the last picture. Each
picture must be the one that its request gives alone, to 1/255. In half precision, where products round in another way
for other numbers of rows, it is told how far they are apart.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from statistics import mean, median

import torch
from torch import Tensor

import sfumato
from benchmarks.harness import compare
from benchmarks.report import machine, report, table
from benchmarks.shipped import MODEL, PROMPTS, shown
from sfumato.core.request import Request
from sfumato.engine.allocator import keep_freed_memory
from sfumato.tasks.batcher import Batcher
from sfumato.tasks.text_to_image import Result

PRESSURE = 4
SAMPLERS, STEPS, SCALES = ("euler", "dpmpp_2m", "heun"), (15, 20, 30), (3.0, 5.0, 7.5)
ALONE, TOGETHER = "one after the other", "step by step together"


def main(arguments: Sequence[str] = ()) -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--model", default=MODEL)
    flags.add_argument("--requests", type=int, default=len(PROMPTS), choices=range(2, len(PROMPTS) + 1))
    flags.add_argument("--turns", type=int, default=5)
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    chosen = flags.parse_args(arguments)
    model, requests, turns = chosen.model, chosen.requests, chosen.turns
    exact = chosen.dtype == "float32"
    keep_freed_memory()
    pipe = sfumato.load(model, device=chosen.device, dtype=chosen.dtype)
    pipe(PROMPTS[0], seed=0)
    about = machine()
    drawn = random.Random(0)
    asked = [
        Request(
            PROMPTS[i], seed=i, sampler=drawn.choice(SAMPLERS), steps=drawn.choice(STEPS),
            cfg_scale=drawn.choice(SCALES),
        )
        for i in range(requests)
    ]  # fmt: skip
    solo = [pipe(request) for request in asked]
    pace = mean(result.seconds for result in solo) / PRESSURE
    moments = [0.0]
    while len(moments) < requests:
        moments.append(moments[-1] + drawn.expovariate(1 / pace))
    waited: dict[str, list[float]] = {ALONE: [], TOGETHER: []}

    def one_after_the_other() -> Tensor:
        start, results = time.perf_counter(), []
        for moment, request in zip(moments, asked, strict=True):
            wait_for(start + moment)
            results.append(pipe(request))
            waited[ALONE].append(time.perf_counter() - start - moment)
        return checked(results, solo, exact)

    def together() -> Tensor:
        batcher = Batcher(pipe.model)
        start, tickets = time.perf_counter(), []
        for moment, request in zip(moments, asked, strict=True):
            wait_for(start + moment)
            ticket = batcher.submit(request)
            ticket.future.add_done_callback(since(start + moment, waited[TOGETHER]))
            tickets.append(ticket)
        results = [ticket.result() for ticket in tickets]
        batcher.close()
        return checked(results, solo, exact)

    kind = "" if exact else f", {chosen.dtype}"
    name = f"{requests} requests within {moments[-1]:.1f} s, {shown(model)}{kind}"
    row = compare(name, {ALONE: one_after_the_other, TOGETHER: together}, turns, limit=5e-3 if exact else 0.1)
    row.notes |= {f"median wait for a picture, {way}": f"{median(found):.2f} s" for way, found in waited.items()}
    if requests < len(PROMPTS):
        print(table([row]))
    else:
        report("requests" if chosen.device == "cpu" else f"requests_{chosen.device}_{chosen.dtype}", [row], about)


def wait_for(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))


def since(moment: float, found: list[float]) -> Callable[[object], None]:
    """Notes how long it took, once it is done."""
    return lambda _: found.append(time.perf_counter() - moment)


def checked(results: list[Result], solo: list[Result], exact: bool) -> Tensor:
    """All pixels.

    Raises:
        AssertionError: a picture is not the one that its request gives alone.
    """
    made, alone = (torch.stack([pixels_of(result) for result in some]) for some in (results, solo))
    worst = int((made - alone).abs().max())
    assert worst <= 1 or not exact, f"a picture differs by {worst}/255 from the one that its request gives alone"
    return made


def pixels_of(result: Result) -> Tensor:
    return torch.from_numpy(result.pictures[0].pixels).float()


if __name__ == "__main__":
    main(sys.argv[1:])
