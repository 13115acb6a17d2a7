"""A stage of twenty lines, and ways to run it, to be killed, in processes of its own."""

import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sfumato.objectives.loss import Loss
from sfumato.training.ema import EmaConfig
from sfumato.training.loop import Batch, Outcome, train
from sfumato.training.order import Order, Place
from sfumato.training.rate import RateConfig
from sfumato.training.recipe import TrainConfig


class Toy:
    """Two players on vectors: one learns to sum, the other to judge it; dropout draws as well."""

    name = "toy"
    sharded = True

    def __init__(self) -> None:
        torch.manual_seed(0)
        one = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 1))
        self.players: dict[str, nn.Module] = {"one": one, "two": nn.Linear(1, 1)}
        self.rates = {"one": 1.0, "two": 0.5}
        self.nan_at: int | None = None
        self.exported: dict[str, Any] = {}
        self.sampled: list[str] = []
        self.on_step: Callable[[int], None] = lambda step: None

    def order(self, batch: int) -> Order:
        return Order.of(21, 0, batch)

    def load(self, places: list[Place]) -> Batch:
        rows = [torch.from_numpy(p.normal(0, "x", 6)).float() + p.item / 100 for p in places]
        return {"x": torch.stack(rows)}

    def losses(self, players: Mapping[str, nn.Module], batch: Batch, step: int) -> Iterator[tuple[str, Loss]]:
        self.on_step(step)
        x = batch["x"]
        y = players["one"](x)
        each = (y - x.sum(1, keepdim=True)).square().mean(1)
        if step == self.nan_at:
            each = each * float("nan")
        yield "one", Loss(each.mean(), {"error": each.mean().detach()}, each.detach())
        judged = (players["two"](y.detach()) - 1).square().mean(1)
        yield "two", Loss(judged.mean(), {}, judged.detach())

    def evaluate(self) -> dict[str, float]:
        with torch.no_grad():
            x = torch.linspace(-1, 1, 6)[None]
            return {"loss": (self.players["one"].eval()(x) - x.sum()).square().item()}

    def export(self, weights: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        self.exported = dict(progress)

    def sample(self, path: Path) -> None:
        self.sampled.append(path.name)


RECIPE: dict[str, Any] = {"seed": 0, "toy": {"train": {"batch": 8}}}


def config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "steps": 12, "batch": 8, "save_every": 4, "trackers": (), "rate": RateConfig(1e-2, warmup=2),
        "ema": EmaConfig("power"), "precision": "no",
    }
    return TrainConfig(**(values | changes))


def go(folder: Path, stage: Toy | None = None, **changes: Any) -> Outcome:
    """Train the toy in this process."""
    return train(stage or Toy(), config(**changes), folder, RECIPE, 0, lambda text: None)


def slow(folder: str, changes: dict[str, Any]) -> None:
    """The same, each step taking a while, so that a kill can hit any."""
    import time

    torch.set_num_threads(1)
    stage = Toy()
    stage.on_step = lambda step: time.sleep(0.01)
    go(Path(folder), stage, **changes)


def grouped(folder: str, changes: dict[str, Any]) -> None:
    """The same with its loader processes in a group of its own; files tell that it is at work."""
    os.setpgrp()
    torch.set_num_threads(1)
    stage = Toy()
    stage.on_step = partial(work, folder)
    go(Path(folder), stage, **changes)


def work(folder: str, step: int) -> None:
    """Tell the step, and take a while."""
    import time

    Path(folder, f"at-{step}").touch()
    time.sleep(0.05)


def rank(
    number: int, world: int, port: int, folder: str, changes: dict[str, Any], stop_at: int | None = None,
    fsdp: bool = False,
) -> None:
    """One process of several; the last of them may be told to stop at a step."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": str(fsdp),
    }
    stage = Toy()
    for module in stage.players["one"].modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # its draws are each process's own
    if number == world - 1:
        stage.on_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == stop_at else None
    go(Path(folder), stage, **changes)
    assert all(isinstance(p, DTensor) == fsdp for network in stage.players.values() for p in network.parameters())


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
