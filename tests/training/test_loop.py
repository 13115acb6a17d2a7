"""The loop: resumed exactly, stopped and killed at any moment, alone or with others."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from hashlib import sha256
from multiprocessing.context import ForkServerContext
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from sfumato.core.errors import CapacityError, CheckpointError, ConfigError, NumericError
from sfumato.training import journal, loop
from sfumato.training.ema import EmaConfig
from sfumato.training.late import Late
from sfumato.training.loop import train
from sfumato.training.order import Order
from sfumato.training.posthoc import of_run
from sfumato.training.state import Checkpoints
from tests.training import toy
from tests.training.toy import Toy, config, free_port, go


def state(folder: Path) -> dict[str, str]:
    """A hash of every tensor of the newest checkpoint."""
    snapshot, damaged = Checkpoints(folder / "checkpoints").load()
    assert damaged == []
    return {
        f"{snapshot.step} {group}.{name}": sha256(t.contiguous().numpy().tobytes()).hexdigest()
        for group, tensors in snapshot.groups.items() for name, t in tensors.items()
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert go(folder).finished
    return folder


def test_it_learns(tmp_path: Path) -> None:
    go(tmp_path, steps=150, save_every=150)
    losses = [line["loss.one"] for line in journal.read(tmp_path / "curves.jsonl")]
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])


def test_a_run_leaves_what_it_should(whole: Path) -> None:
    lines = journal.read(whole / "curves.jsonl")
    assert [line["step"] for line in lines] == list(range(12))
    assert lines[0]["rate"] == 5e-3
    assert Checkpoints(whole / "checkpoints").steps() == [12, 8]
    groups = Checkpoints(whole / "checkpoints").load()[0].groups
    assert set(groups) == {"one", "two", "one.optimizer", "two.optimizer", "ema"}
    assert any(name.startswith("1.") for name in groups["ema"])  # two averages of the power kind


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("at", [4, 6])
def test_a_stopped_run_goes_on_bit_for_bit(whole: Path, tmp_path: Path, workers: int, at: int) -> None:
    stage = Toy()
    stage.on_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == at else None
    outcome = go(tmp_path, stage, workers=workers)
    assert (outcome.step, outcome.finished) == (at + 1, False)
    assert stage.exported["step"] == at + 1
    assert go(tmp_path, workers=2 - workers).finished
    assert state(tmp_path) == state(whole)
    assert journal.read(tmp_path / "curves.jsonl") == journal.read(whole / "curves.jsonl")


def test_a_crash_loses_only_the_steps_since_the_checkpoint(whole: Path, tmp_path: Path) -> None:
    def crash(step: int) -> None:
        if step == 10:
            raise OSError("the disk of the data set went away")

    stage = Toy()
    stage.on_step = crash
    with pytest.raises(OSError, match="went away"):
        go(tmp_path, stage)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [8, 4]
    go(tmp_path)
    assert state(tmp_path) == state(whole)
    assert journal.read(tmp_path / "curves.jsonl") == journal.read(whole / "curves.jsonl")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_to_the_whole_group_saves_and_stops(whole: Path, tmp_path: Path, number: signal.Signals) -> None:
    """As a terminal sends Ctrl-C to all processes, those that load data among them."""
    process = forkserver().Process(target=toy.grouped, args=(str(tmp_path), {"workers": 2}))
    process.start()
    while not (tmp_path / "at-2").exists():
        assert process.is_alive()
        time.sleep(0.01)
    assert process.pid is not None
    os.killpg(process.pid, number)
    process.join(60)
    assert process.exitcode == 0
    assert 3 <= Checkpoints(tmp_path / "checkpoints").steps()[0] < 12
    assert go(tmp_path).finished
    assert state(tmp_path) == state(whole)


def test_a_full_disk_beside_the_checkpoint_names_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Toy):
        def export(self, weights: Mapping[str, torch.Tensor], progress: Mapping[str, Any]) -> None:
            raise CapacityError("no room for the model.")

    with pytest.raises(CapacityError, match=r"no room for the model\. The last good checkpoint is .*checkpoint-4"):
        go(tmp_path / "export", Full())
    stage = Toy()

    def fill_up(step: int) -> None:
        if step == 6:
            monkeypatch.setattr(journal.Journal, "flush", full)

    def full(told: journal.Journal) -> None:
        with told._explained(), open("/dev/full", "w") as device:
            device.write("x")

    stage.on_step = fill_up
    with pytest.raises(CapacityError, match=r"curves\.jsonl.*No space left.*checkpoint-4"):
        go(tmp_path / "curves", stage)
    monkeypatch.undo()
    assert go(tmp_path / "curves").finished


def test_the_last_score_outlives_a_stop(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"eval_every": 6, "keep": 9}
    go(tmp_path / "whole", **changes)
    stage = Toy()
    stage.on_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 6 else None
    go(tmp_path / "stopped", stage, **changes)
    go(tmp_path / "stopped", **changes)
    scores = []
    for name in ("whole", "stopped"):
        manifests = {s: tmp_path / name / f"checkpoints/checkpoint-{s}/manifest.json" for s in (4, 8, 12)}
        scores.append({step: json.loads(path.read_text())["score"] for step, path in manifests.items()})
    assert scores[0] == scores[1]
    assert scores[0][4] is None
    assert scores[0][8] is not None


def test_another_data_set_is_noted(whole: Path, tmp_path: Path) -> None:
    class More(Toy):
        def order(self, batch: int) -> Order:
            return Order.of(22, 0, batch)

    shutil.copytree(whole, tmp_path / "run")
    told: list[str] = []
    train(More(), config(), tmp_path / "run", toy.RECIPE, 0, told.append)
    assert any("22 pictures to train on, where it had 21 before" in line for line in told)


def forkserver() -> ForkServerContext:
    """Processes that start with torch imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.toy", "accelerate"])
    return context


def kill(folder: Path, kills: int, seed: int) -> int:
    """Run with SIGKILLs at random moments until it ends by itself; how many struck."""
    random, struck, context = Random(seed), 0, forkserver()
    changes = {"save_every": 1, "keep": 1}
    while True:
        process = context.Process(target=toy.slow, args=(str(folder), changes))
        process.start()
        process.join(random.uniform(0.05, 1.0) if struck < kills else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            struck += 1
        else:
            assert process.exitcode == 0
            return struck


def killed(tmp_path: Path, kills: int) -> None:
    struck, seed = 0, 0
    expected: dict[str, Any] = {}
    while struck < kills:
        folder = tmp_path / str(seed)
        struck += kill(folder, kills - struck, seed)
        if not expected:
            toy.go(tmp_path / "whole", save_every=1, keep=1)
            expected = state(tmp_path / "whole")
        assert state(folder) == expected
        assert [p.name for p in (folder / "checkpoints").iterdir()] == ["checkpoint-12"]
        assert journal.read(folder / "curves.jsonl") == journal.read(tmp_path / "whole/curves.jsonl")
        seed += 1


def test_three_kills_change_nothing(tmp_path: Path) -> None:
    killed(tmp_path, 3)


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    killed(tmp_path, 20)


def test_two_processes_equal_one_with_twice_the_accumulation(tmp_path: Path) -> None:
    together(tmp_path / "two", {"steps": 6})
    go(tmp_path / "one", Plain(), steps=6, accumulate=2)
    one, two = (journal.read(tmp_path / name / "curves.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 6
    for a, b in zip(one, two, strict=True):
        assert a["loss.one"] == pytest.approx(b["loss.one"], rel=1e-5)
        assert a["loss.two"] == pytest.approx(b["loss.two"], rel=1e-5)


def together(folder: Path, changes: dict[str, Any], stop_at: int | None = None, fsdp: bool = False) -> None:
    """Train the toy in two processes, as accelerate's launcher starts them."""
    context, port = forkserver(), free_port()
    ranks = [
        context.Process(target=toy.rank, args=(number, 2, port, str(folder), changes, stop_at, fsdp))
        for number in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == 0


@pytest.mark.slow
def test_two_processes_go_on_bit_for_bit(tmp_path: Path) -> None:
    together(tmp_path / "whole", {})
    together(tmp_path / "stopped", {}, stop_at=6)
    assert Checkpoints(tmp_path / "stopped/checkpoints").steps()[0] == 7
    together(tmp_path / "stopped", {})
    assert state(tmp_path / "stopped") == state(tmp_path / "whole")
    assert journal.read(tmp_path / "stopped/curves.jsonl") == journal.read(tmp_path / "whole/curves.jsonl")


@pytest.mark.slow
def test_a_network_shared_out_learns_as_a_whole_one_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    together(tmp_path / "whole", {"eval_every": 4}, fsdp=True)
    together(tmp_path / "stopped", {"eval_every": 4}, stop_at=6, fsdp=True)
    together(tmp_path / "stopped", {"eval_every": 4}, fsdp=True)
    assert state(tmp_path / "stopped") == state(tmp_path / "whole")
    go(tmp_path / "one", Plain(), accumulate=2, eval_every=4)
    one, two = (Checkpoints(tmp_path / name / "checkpoints").load()[0].groups for name in ("one", "whole"))
    for group, tensors in one.items():
        for name, tensor in tensors.items():
            assert torch.allclose(tensor, two[group][name], rtol=1e-4, atol=1e-6), f"{group}.{name}"


class Plain(Toy):
    """Without dropout, whose draws are each process's own."""

    def __init__(self) -> None:
        super().__init__()
        for module in self.players["one"].modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0


def test_nan_stops_and_names_step_and_checkpoint(tmp_path: Path) -> None:
    stage = Toy()
    stage.nan_at = 9
    with pytest.raises(NumericError, match=r"step 9.*checkpoint-8"):
        go(tmp_path, stage)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [8, 4]


class Device(Late):
    """Numbers of a device that computes on while the next step is prepared."""

    def __init__(self, numbers: torch.Tensor) -> None:
        super().__init__(numbers)
        self.arrived = Mock()


def test_numbers_that_come_late_are_the_same(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "Late", Device)
    go(tmp_path / "run")
    assert journal.read(tmp_path / "run/curves.jsonl") == journal.read(whole / "curves.jsonl")
    assert state(tmp_path / "run") == state(whole)
    stage = Toy()
    stage.nan_at = 9
    with pytest.raises(NumericError, match=r"step 9.*checkpoint-8"):
        go(tmp_path / "nan", stage)
    assert [line["step"] for line in journal.read(tmp_path / "nan/curves.jsonl")] == list(range(9))


def test_another_recipe_is_refused(whole: Path) -> None:
    changed = {"seed": 0, "toy": {"train": {"batch": 16}}}
    with pytest.raises(ConfigError, match=r"toy\.train\.batch: was 8, is 16"):
        train(Toy(), config(), whole, changed, 0, lambda text: None)


def test_moments_of_eight_bits_need_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        go(tmp_path, optimizer="adamw8bit")


def test_moments_of_eight_bits_go_on_bit_for_bit(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")

    class Wide(Toy):
        """Smaller parameters keep moments of 32 bits."""

        def __init__(self) -> None:
            super().__init__()
            one = (torch.nn.Linear(6, 128), torch.nn.Linear(128, 128), torch.nn.Linear(128, 1))
            self.players["one"] = torch.nn.Sequential(*one)

    stage = Wide()
    stage.on_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None
    go(tmp_path / "stopped", stage, optimizer="adamw8bit")
    go(tmp_path / "stopped", Wide(), optimizer="adamw8bit")
    go(tmp_path / "whole", Wide(), optimizer="adamw8bit")
    assert state(tmp_path / "stopped") == state(tmp_path / "whole")
    moments = Checkpoints(tmp_path / "whole/checkpoints").load()[0].groups["one.optimizer"]
    assert moments["state1.1.weight"].dtype == torch.uint8


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 parts"):
        go(tmp_path, accumulate=3)
    assert not tmp_path.joinpath("checkpoints").exists()


def test_accumulation_changes_the_losses_by_rounding_alone(tmp_path: Path) -> None:
    go(tmp_path / "1", Plain(), steps=5)
    go(tmp_path / "4", Plain(), steps=5, accumulate=4)
    first, fourth = (journal.read(tmp_path / n / "curves.jsonl") for n in ("1", "4"))
    for a, b in zip(first, fourth, strict=True):
        assert a["loss.one"] == pytest.approx(b["loss.one"], rel=1e-5)


def test_averages_of_other_widths_are_made_of_the_checkpoints(tmp_path: Path) -> None:
    many: dict[str, Any] = {"steps": 40, "save_every": 4, "keep": 10}
    go(tmp_path / "two", **many, ema=EmaConfig("power", widths=(0.05, 0.10)))
    go(tmp_path / "one", **many, ema=EmaConfig("power", widths=(0.07,)))
    made = of_run(Checkpoints(tmp_path / "two/checkpoints"), (0.05, 0.10), 0.07)
    kept = Checkpoints(tmp_path / "one/checkpoints").load()[0].groups["ema"]
    either = Checkpoints(tmp_path / "two/checkpoints").load()[0].groups["ema"]
    for name, tensor in made.items():
        apart = (tensor - kept[f"0.{name}"]).norm()
        assert apart < 0.6 * min((either[f"{i}.{name}"] - kept[f"0.{name}"]).norm() for i in range(2))
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        of_run(Checkpoints(tmp_path / "none"), (0.05,), 0.07)


def test_the_best_by_held_out_loss_is_kept_and_samples_are_drawn(tmp_path: Path) -> None:
    stage = Toy()
    go(tmp_path, stage, eval_every=2, sample_every=4, save_every=2, keep=1, precision="bf16")
    lines = journal.read(tmp_path / "curves.jsonl")
    scores = {line["step"] + 1: line["held_out.loss"] for line in lines if "held_out.loss" in line}
    store = Checkpoints(tmp_path / "checkpoints")
    assert store.best() == min(scores, key=lambda s: scores[s])
    assert set(store.steps()) == {12, store.best()}
    assert stage.sampled == ["00000004.png", "00000008.png", "00000012.png"]
