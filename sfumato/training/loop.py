"""The training loop: the same for every stage, on one process or several."""

import math
import signal
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sfumato.core import rng
from sfumato.core.config import read_json
from sfumato.core.errors import ConfigError, NumericError, SfumatoError
from sfumato.objectives.loss import Loss
from sfumato.training import sharded
from sfumato.training.ema import Ema
from sfumato.training.journal import Journal
from sfumato.training.late import Late
from sfumato.training.order import Order, Place
from sfumato.training.progress import progress
from sfumato.training.recipe import MAY_CHANGE, TrainConfig
from sfumato.training.state import (
    PROGRESS,
    Checkpoints,
    Snapshot,
    optimizer_tensors,
    refuse_changes,
    restore_optimizer,
)

Batch = dict[str, Tensor]


class Stage(Protocol):
    """What is trained. The loop knows nothing else of it.

    Attributes:
        players: the networks that learn, by name; the first is averaged, scored and drawn with. Each is called as a
            module, so that several processes can share its gradients.
        sharded: whether its weights may be shared out among processes (FSDP): nothing but calls touches them.
        rates: each player's learning rate as a share of the recipe's; a part of it, as ``"player.part"``, may have
            another.
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

    if shared and config.optimizer == "adamw8bit":
        raise ConfigError("optimizer = 'adamw8bit' cannot be shared out: leave --use_fsdp out, or use adamw.")
    for network in stage.players.values():
        network.to(accelerator.device)
        if config.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    store = Checkpoints(folder / "checkpoints", config.keep)
    start = 0
    score: float | None = None
    if first:
        store.clean()
    accelerator.wait_for_everyone()
    snapshot: Snapshot | None = None
    if store.steps():
        snapshot, damaged = store.load()
        for text in damaged:
            say(f"Passed over: {text}.")
        refuse_changes(recipe, snapshot.progress["recipe"], _free(stage.name))
        start = snapshot.step
        for name, network in stage.players.items():
            network.load_state_dict(snapshot.groups[name])
    if shared:
        for network in stage.players.values():
            sharded.share_out(network, accelerator.device, world)
    optimizers = {name: _optimizer(_groups(name, network, stage.rates), config)
                  for name, network in stage.players.items()}  # fmt: skip
    ema = Ema(stage.players[main], config.ema)
    if snapshot is not None:
        for name, network in stage.players.items():
            restore_optimizer(optimizers[name], network, snapshot.groups[f"{name}.optimizer"])
        ema.restore(snapshot.groups.get("ema", {}))
        score = snapshot.progress.get("score")
        if snapshot.progress.get("items", len(order.groups)) != len(order.groups):
            say(f"The data set is another one: {len(order.groups):,} pictures to train on, where it had "
                f"{snapshot.progress['items']:,} before. The run goes on with it.")  # fmt: skip
        if accelerator.scaler is not None and "scaler" in snapshot.progress:
            accelerator.scaler.load_state_dict(snapshot.progress["scaler"])
        say(f"Going on from step {start:,}.")
    say(
        f"{stage.name}: {config.steps:,} steps of {config.batch} pictures ({world} processes x {config.accumulate} "
        f"parts x {config.batch // parts}), {order.steps_per_epoch:,} steps an epoch, "
        f"{sum(p.numel() for p in stage.players[main].parameters()) / 1e6:.2f} M parameters."
    )

    intervals = (config.eval_every, config.metrics_every, config.log_every, config.save_every, config.sample_every)
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
        pin_memory=accelerator.device.type == "cuda", worker_init_fn=_deaf,
    ))  # fmt: skip
    told, began = start, time.monotonic()
    exported: int | None = None  # the step of which the model folder has the weights
    on_their_way: deque[tuple[int, float, list[str], Late]] = deque()

    def arrive(tell: Callable[[int, float], None]) -> tuple[int, dict[str, float]]:
        """What the oldest step that is not told of yet has to tell."""
        step, rate, keys, numbers = on_their_way.popleft()
        line = dict(zip(keys, numbers.read(), strict=True))
        bad = [k for k in keys if k.startswith("loss.") and not math.isfinite(line[k])]
        if bad:
            last = store.last_good()
            raise NumericError(
                f"{bad[0]} is {line[bad[0]]} at step {step}. The last good checkpoint is {last or 'none yet'}. "
                "Take a lower learning rate, or bf16 in place of fp16, in another run, which may go on from the model "
                f"that was saved last: {stage.name}.start."
            )
        tell(step + 1, line[f"loss.{main}"])
        return step, line | {"rate": rate}

    def export(step: int) -> None:
        """Put the averaged weights into the model folder, once a step."""
        nonlocal exported
        if exported == step:
            return
        weights = sharded.whole(ema.weights(stage.players[main]))
        if first:
            stage.export(weights, {"step": step, "steps": config.steps, "score": score})
        exported = step

    def save(step: int) -> None:
        groups = {name: sharded.whole(network.state_dict()) for name, network in stage.players.items()}
        for name, network in stage.players.items():
            groups[f"{name}.optimizer"] = sharded.whole(optimizer_tensors(optimizers[name], network))
        groups["ema"] = sharded.whole(ema.tensors())
        if first:
            assert journal is not None
            progress: dict[str, Any] = {"recipe": recipe, "epoch": step / order.steps_per_epoch}
            progress |= {"items": len(order.groups), "score": score}
            if accelerator.scaler is not None:
                progress["scaler"] = accelerator.scaler.state_dict()
            try:
                journal.flush()
            except SfumatoError as problem:
                raise store.naming_last(problem) from problem
            store.save(step, groups, progress, score)
        try:
            export(step)
        except SfumatoError as problem:
            raise store.naming_last(problem) from problem
        accelerator.wait_for_everyone()

    seen = first and sys.stderr.isatty()
    bar = progress(stage.name, start, config.steps, config.batch, seen)
    with journal or nullcontext(), _stopping() as stop, bar as tell:
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
                    group["lr"] = rate * group["share"]
                if config.clip_norm:
                    norm = accelerator.clip_grad_norm_(networks[name].parameters(), config.clip_norm)
                    values[f"gradient.{name}"] = sharded.whole({"": norm})[""]
                optimizer.step()
                optimizer.zero_grad()
            ema.update(stage.players[main], step + 1)

            keys = sorted(values)
            numbers = Late(accelerator.reduce(torch.stack([values[k].float() for k in keys]), "mean"))
            on_their_way.append((step, rate, keys, numbers))
            done, halted = step + 1, _any(accelerator, stop)
            asked = halted or done == config.steps or any(_due(done, every) for every in intervals)
            while len(on_their_way) > 1:
                before, line = arrive(tell)
                if journal is not None:
                    journal.write(before, line)
            if not asked and numbers.arrived is not None:  # the device computes on while the next step is prepared
                continue
            _, line = arrive(tell)
            if _due(done, config.eval_every):
                with ema.applied(stage.players[main]), _evaluating(stage.players):
                    measured = stage.evaluate()
                score = measured.get("loss", score)
                line |= {f"held_out.{key}": value for key, value in measured.items()}
            if measure is not None and (done == config.steps or _due(done, config.metrics_every)):
                export(done)
                if first:
                    line |= measure(done)
            if journal is not None:
                journal.write(step, line)
            if done % config.log_every == 0 or done == config.steps:
                speed = (done - told) * config.batch / (time.monotonic() - began)
                left = (config.steps - done) * config.batch / speed
                say(f"{done:>8,}  " + "  ".join(f"{k} {line[k]:.4g}" for k in keys) + f"  {speed:.1f} pictures/s, "
                    f"{left / 60:.0f} min left")  # fmt: skip
                told, began = done, time.monotonic()
            if done % config.save_every == 0 or done == config.steps or halted:
                save(done)
            if done < config.steps and _due(done, config.sample_every):
                export(done)
                if first:
                    _sample(stage, folder, done, say)
            if halted and done < config.steps:
                say(f"Stopped and saved at step {done:,}; the same command goes on from there.")
                break
        else:
            done = config.steps
    if start == config.steps:  # killed after its last checkpoint, perhaps before the model was put in place
        export(start)
    if first and done == config.steps:
        _sample(stage, folder, done, say)
    return Outcome(done, done == config.steps)


def refuse_another(folder: Path, recipe: Mapping[str, Any], name: str) -> None:
    """Refuse a recipe with which the run of a stage in ``folder`` cannot be gone on, before anything is done.

    Raises:
        ConfigError: the settings that differ, old and new.
    """
    store = Checkpoints(folder / "checkpoints")
    for step in store.steps()[:1]:
        try:
            saved = read_json(store.path(step) / PROGRESS)["recipe"]
        except (ConfigError, KeyError, TypeError):
            continue  # a damaged one, which is judged when it is read whole
        refuse_changes(recipe, saved, _free(name))


def _free(name: str) -> frozenset[str]:
    """Settings of a stage that may change."""
    return frozenset(f"{name}.train.{setting}" for setting in MAY_CHANGE)


def _due(done: int, every: int) -> bool:
    """Whether ``done`` steps are a multiple of ``every``; of 0 nothing is."""
    return every > 0 and done % every == 0


def _sample(stage: Stage, folder: Path, step: int, say: Callable[[str], None]) -> None:
    """Pictures for the eye; that they cannot be drawn is no reason to stop training."""
    try:
        stage.sample(folder / "samples" / f"{step:08}.png")
    except (SfumatoError, OSError) as problem:
        say(f"No samples of step {step:,}: {problem}")


def _accelerator(config: TrainConfig) -> Any:
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState
    except ImportError:
        raise ConfigError("Training needs accelerate: pip install 'sfumato[train]'.") from None
    AcceleratorState._reset_state()  # of an earlier stage, which may have had another precision
    try:
        # Buffers are what does not change: constants, and frozen weights.
        made = Accelerator(
            mixed_precision=config.precision, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)]
        )
    except ValueError as problem:
        raise ConfigError(f"train.precision = {config.precision!r}: {problem} Use bf16, or no.") from None
    if made.distributed_type not in ("NO", "MULTI_CPU", "MULTI_GPU"):
        raise ConfigError(
            f"accelerate was asked for {made.distributed_type.value}; here each process keeps the whole network (DDP), "
            "or its share of it (FSDP). Launch with `accelerate launch --multi_gpu` or `--use_fsdp`, or on one process."
        )
    return made


def _groups(player: str, network: nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Its parameters by the share of the learning rate that is theirs: that of the longest name they stand under."""
    groups: dict[float, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            above = (part for part in rates if f"{player}.{name}".startswith(f"{part}."))
            groups[rates[max(above, key=len)]].append(parameter)
    return [{"params": parameters, "share": share} for share, parameters in groups.items()]


def _optimizer(parameters: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"lr": config.rate.learning_rate, "betas": config.betas,
                                "weight_decay": config.weight_decay}  # fmt: skip
    if config.optimizer == "adamw8bit":
        try:
            from importlib import import_module

            eight: torch.optim.Optimizer = import_module("bitsandbytes").optim.AdamW8bit(parameters, **settings)
            return eight
        except ImportError:
            raise ConfigError("optimizer = 'adamw8bit' needs: pip install bitsandbytes. Or use adamw.") from None
    return torch.optim.AdamW(parameters, fused=True, **settings)


def _seed(seed: int, step: int, rank: int) -> int:
    return rng.key(seed, "dropout", step, rank) & 0x7FFFFFFFFFFFFFFF


@contextmanager
def _evaluating(players: Mapping[str, nn.Module]) -> Iterator[None]:
    """While open, nothing is dropped out."""
    before = {network: network.training for network in players.values()}
    try:
        for network in before:
            network.eval()
        yield
    finally:
        for network, training in before.items():
            network.train(training)


def _deaf(_: int) -> None:
    """A loader process: Ctrl-C and SIGTERM, which often go to all of a group, are for the one that trains and saves."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


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
