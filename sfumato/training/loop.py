"""The training loop: the same for every stage, on one process or several."""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sfumato.core import rng
from sfumato.core.errors import ConfigError, NumericError, SfumatoError
from sfumato.objectives.loss import Loss
from sfumato.training import sharded
from sfumato.training.ema import Ema
from sfumato.training.journal import Journal
from sfumato.training.order import Order, Place
from sfumato.training.progress import progress
from sfumato.training.recipe import MAY_CHANGE, TrainConfig
from sfumato.training.state import Checkpoints, Snapshot, optimizer_tensors, refuse_changes, restore_optimizer

Batch = dict[str, Tensor]


class Stage(Protocol):
    """What is trained. The loop knows nothing else of it.

    Attributes:
        players: the networks that learn, by name; the first is averaged, scored and drawn with. Each is called as a
            module, so that several processes can share its gradients.
        sharded: whether its weights may be shared out among processes (FSDP): nothing but calls touches them.
        rates: each player's learning rate as a share of the recipe's.
    """

    name: str
    players: dict[str, nn.Module]
    rates: dict[str, float]
    sharded: bool

    def order(self, batch: int) -> Order:
        """What is shown when."""

    def load(self, places: list[Place]) -> Batch:
        """The data of some places, on the CPU; called in loader processes."""

    def losses(self, players: Mapping[str, nn.Module], batch: Batch, step: int) -> Iterator[tuple[str, Loss]]:
        """Who learns from what, one after the other; gradients are taken before the next is asked for."""

    def evaluate(self) -> dict[str, float]:
        """Measures on held-out data, "loss" among them; empty where nothing is held out."""

    def export(self, weights: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        """Put the first player's weights where a model folder has them."""

    def sample(self, path: Path) -> None:
        """Draw for the eye, from what was exported last."""


@dataclass(frozen=True)
class Outcome:
    """How a run of the loop ended.

    Attributes:
        step: optimiser steps done in all.
        finished: whether that is all there were; False where it was asked to stop.
    """

    step: int
    finished: bool


class _Parts(torch.utils.data.Dataset[Batch]):
    """Part ``part`` of step ``step``, as one sample of a loader."""

    def __init__(self, stage: Stage, order: Order, parts: int) -> None:
        self.stage, self.order, self.parts = stage, order, parts

    def __getitem__(self, index: tuple[int, int]) -> Batch:
        step, part = index
        return self.stage.load(self.order.part(step, part, self.parts))


def train(
    stage: Stage, config: TrainConfig, folder: Path, recipe: Mapping[str, Any], seed: int,
    report: Callable[[str], None] = print, measure: Callable[[int], Mapping[str, float]] | None = None,
) -> Outcome:
    """Train a stage to its last step, from its last checkpoint if there is one.

    Args:
        folder: where checkpoints, curves and samples go.
        recipe: as plain data; a run is only gone on with if it is the one it was started with.
        measure: figures of what was exported last, for the curves, at a step; asked every ``config.metrics_every``
            steps and at the end, in the one process that writes.

    Raises:
        ConfigError: another recipe than the run's, or a batch that cannot be shared out.
        NumericError: a loss that is no number; names the step and the last good checkpoint.
        CapacityError, CheckpointError: a checkpoint could not be written.
    """
    shared = sharded.asked() and stage.sharded
    accelerator = _accelerator(config)
    world, rank, first = accelerator.num_processes, accelerator.process_index, accelerator.is_main_process
    say = report if first else lambda text: None
    order, parts = stage.order(config.batch), accelerator.num_processes * config.accumulate
    order.part(0, 0, parts)  # an uneven share is refused before anything is made
    main = next(iter(stage.players))

    for network in stage.players.values():
        network.to(accelerator.device)
        if config.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    store = Checkpoints(folder / "checkpoints", config.keep)
    start = 0
    if first:
        store.clean()
    accelerator.wait_for_everyone()
    snapshot: Snapshot | None = None
    if store.steps():
        snapshot, damaged = store.load()
        for text in damaged:
            say(f"Passed over: {text}.")
        free = frozenset(f"{stage.name}.train.{name}" for name in MAY_CHANGE)
        refuse_changes(recipe, snapshot.progress["recipe"], free)
        start = snapshot.step
        for name, network in stage.players.items():
            network.load_state_dict(snapshot.groups[name])
    if shared:
        for network in stage.players.values():
            sharded.share_out(network, accelerator.device, world)
    optimizers = {name: _optimizer(network, config) for name, network in stage.players.items()}
    ema = Ema(stage.players[main], config.ema)
    if snapshot is not None:
        for name, network in stage.players.items():
            restore_optimizer(optimizers[name], network, snapshot.groups[f"{name}.optimizer"])
        ema.restore(snapshot.groups.get("ema", {}))
        if accelerator.scaler is not None and "scaler" in snapshot.progress:
            accelerator.scaler.load_state_dict(snapshot.progress["scaler"])
        say(f"Going on from step {start:,}.")
    say(
        f"{stage.name}: {config.steps:,} steps of {config.batch} pictures ({world} processes x {config.accumulate} "
        f"parts x {config.batch // parts}), {order.steps_per_epoch:,} steps an epoch, "
        f"{sum(p.numel() for p in stage.players[main].parameters()) / 1e6:.2f} M parameters."
    )

    networks, prepared = {}, {}
    for name, network in stage.players.items():
        # Evaluation mode: mixed precision alone, without DDP around it.
        networks[name] = accelerator.prepare_model(network, evaluation_mode=shared)
        prepared[name] = accelerator.prepare_optimizer(optimizers[name])
    journal = Journal(folder, start, config.trackers, stage.name) if first else None
    shares = [(step, rank * config.accumulate + k) for step in range(start, config.steps)
              for k in range(config.accumulate)]  # fmt: skip
    loader = iter(torch.utils.data.DataLoader(
        _Parts(stage, order, parts), batch_size=None, sampler=shares, num_workers=config.workers,
        generator=torch.Generator().manual_seed(0), persistent_workers=False,
    ))  # fmt: skip
    score: float | None = None
    told, began = start, time.monotonic()

    def save(step: int) -> None:
        groups = {name: sharded.whole(network.state_dict()) for name, network in stage.players.items()}
        for name, network in stage.players.items():
            groups[f"{name}.optimizer"] = sharded.whole(optimizer_tensors(optimizers[name], network))
        groups["ema"] = sharded.whole(ema.tensors())
        weights = sharded.whole(ema.weights(stage.players[main]))
        if first:
            assert journal is not None
            journal.flush()
            progress: dict[str, Any] = {"recipe": recipe, "epoch": step / order.steps_per_epoch}
            if accelerator.scaler is not None:
                progress["scaler"] = accelerator.scaler.state_dict()
            store.save(step, groups, progress, score)
            stage.export(weights, {"step": step, "steps": config.steps, "score": score})
        accelerator.wait_for_everyone()

    seen = first and sys.stderr.isatty()
    with _stopping() as stop, progress(stage.name, start, config.steps, config.batch, seen) as tell:
        for step in range(start, config.steps):
            torch.manual_seed(_seed(seed, step, rank))  # what dropout draws
            rate = config.rate.at(step, config.steps)
            values: dict[str, Tensor] = {}
            for k in range(config.accumulate):
                batch = {n: t.to(accelerator.device, non_blocking=True) for n, t in next(loader).items()}
                together = k + 1 == config.accumulate
                with ExitStack() as apart:
                    for network in () if together else networks.values():
                        apart.enter_context(accelerator.no_sync(network))
                    for name, loss in stage.losses(networks, batch, step):
                        accelerator.backward(loss.total / config.accumulate)
                        for key, value in ({f"loss.{name}": loss.total.detach()} | dict(loss.parts)).items():
                            values[key] = values.get(key, 0.0) + value / config.accumulate
            for name, optimizer in prepared.items():
                for group in optimizers[name].param_groups:
                    group["lr"] = rate * stage.rates[name]
                if config.clip_norm:
                    norm = accelerator.clip_grad_norm_(networks[name].parameters(), config.clip_norm)
                    values[f"gradient.{name}"] = sharded.whole({"": norm})[""]
                optimizer.step()
                optimizer.zero_grad()
            ema.update(stage.players[main], step + 1)

            keys = sorted(values)
            numbers = accelerator.reduce(torch.stack([values[k].float() for k in keys]), "mean").tolist()
            line = dict(zip(keys, numbers, strict=True))
            bad = [k for k in keys if k.startswith("loss.") and not math.isfinite(line[k])]
            if bad:
                last = store.last_good()
                raise NumericError(
                    f"{bad[0]} is {line[bad[0]]} at step {step}. The last good checkpoint is {last or 'none yet'}. "
                    "Lower the learning rate, or use bf16 in place of fp16, and start again: it goes on from there."
                )
            done = step + 1
            tell(done, line[f"loss.{main}"])
            if _due(done, config.eval_every):
                with ema.applied(stage.players[main]):
                    measured = stage.evaluate()
                score = measured.get("loss", score)
                line |= {f"held_out.{key}": value for key, value in measured.items()}
            if measure is not None and (done == config.steps or _due(done, config.metrics_every)):
                weights = sharded.whole(ema.weights(stage.players[main]))
                if first:
                    stage.export(weights, {"step": done, "steps": config.steps, "score": score})
                    line |= measure(done)
            if journal is not None:
                journal.write(step, line | {"rate": rate})
            if done % config.log_every == 0 or done == config.steps:
                speed = (done - told) * config.batch / (time.monotonic() - began)
                left = (config.steps - done) * config.batch / speed
                say(f"{done:>8,}  " + "  ".join(f"{k} {line[k]:.4g}" for k in keys) + f"  {speed:.1f} pictures/s, "
                    f"{left / 60:.0f} min left")  # fmt: skip
                told, began = done, time.monotonic()
            halted = _any(accelerator, stop)
            if done % config.save_every == 0 or done == config.steps or halted:
                save(done)
            if done < config.steps and _due(done, config.sample_every):
                weights = sharded.whole(ema.weights(stage.players[main]))
                if first:
                    stage.export(weights, {"step": done, "steps": config.steps, "score": score})
                    _sample(stage, folder, done, say)
            if halted and done < config.steps:
                say(f"Stopped and saved at step {done:,}; the same command goes on from there.")
                break
        else:
            done = config.steps
    if journal is not None:
        journal.close()
    if start == config.steps:  # killed after its last checkpoint, perhaps before the model was put in place
        weights = sharded.whole(ema.weights(stage.players[main]))
        if first:
            stage.export(weights, {"step": start, "steps": config.steps, "score": score})
    if first and done == config.steps:
        _sample(stage, folder, done, say)
    return Outcome(done, done == config.steps)


def _due(done: int, every: int) -> bool:
    """Whether ``done`` steps are a multiple of ``every``; of 0 nothing is."""
    return every > 0 and done % every == 0


def _sample(stage: Stage, folder: Path, step: int, say: Callable[[str], None]) -> None:
    """Pictures for the eye; that they cannot be drawn is no reason to stop training."""
    try:
        stage.sample(folder / "samples" / f"{step:08}.png")
    except SfumatoError as problem:
        say(f"No samples of step {step:,}: {problem}")


def _accelerator(config: TrainConfig) -> Any:
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError:
        raise ConfigError("Training needs accelerate: pip install 'sfumato[train]'.") from None
    AcceleratorState._reset_state()  # of an earlier stage, which may have had another precision
    try:
        made = Accelerator(mixed_precision=config.precision)
    except ValueError as problem:
        raise ConfigError(f"train.precision = {config.precision!r}: {problem} Use bf16, or no.") from None
    if made.distributed_type not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise ConfigError(
            f"accelerate was asked for {made.distributed_type.value}; here each process keeps the whole network (DDP), "
            "or its share of it (FSDP). Launch with `accelerate launch --multi_gpu` or `--use_fsdp`, or on one process."
        )
    return made


def _optimizer(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = [p for p in network.parameters() if p.requires_grad]
    settings: dict[str, Any] = {"lr": config.rate.learning_rate, "betas": config.betas,
                                "weight_decay": config.weight_decay}  # fmt: skip
    if config.optimizer == "adamw8bit":
        try:
            from importlib import import_module

            eight: torch.optim.Optimizer = import_module("bitsandbytes").optim.AdamW8bit(parameters, **settings)
            return eight
        except ImportError:
            raise ConfigError("optimizer = 'adamw8bit' needs: pip install bitsandbytes. Or use adamw.") from None
    return torch.optim.AdamW(parameters, **settings)


def _seed(seed: int, step: int, rank: int) -> int:
    return rng.key(seed, "dropout", step, rank) & 0x7FFFFFFFFFFFFFFF


@contextmanager
def _stopping() -> Iterator[list[int]]:
    """A list that a SIGTERM or Ctrl-C puts its number into; a second Ctrl-C interrupts at once."""
    heard: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def hear(number: int, _: object) -> None:
        if heard and number == signal.SIGINT:
            raise KeyboardInterrupt
        heard.append(number)

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, hear)
    except ValueError:  # not the main thread: nobody can signal it
        pass
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _any(accelerator: Any, stop: list[int]) -> bool:
    """Whether any process was asked to stop."""
    if accelerator.num_processes == 1:
        return bool(stop)
    return bool(accelerator.reduce(torch.tensor(float(bool(stop)), device=accelerator.device), "sum") > 0)
