"""Checkpoints are whole or not there, whatever fails at whatever moment; and what is loaded is what was saved."""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.errors import CapacityError, CheckpointError, ConfigError, SfumatoError
from sfumato.training.state import Checkpoints, optimizer_tensors, refuse_changes, restore_optimizer


def groups(value: float) -> dict[str, dict[str, Tensor]]:
    return {"model": {"a.weight": torch.full((3, 2), value)}, "optimizer": {"step.a.weight": torch.tensor(value)}}


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "run")
    store.save(7, groups(1.5), {"epoch": 2})
    snapshot, damaged = store.load()
    assert (snapshot.step, snapshot.progress["epoch"], damaged) == (7, 2, [])
    assert snapshot.groups["model"]["a.weight"].equal(torch.full((3, 2), 1.5))
    assert not [p for p in (tmp_path / "run").rglob("*") if p.suffix in (".pt", ".pkl", ".bin")]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=2)
    for step, score in ((1, 0.5), (2, 0.2), (3, 0.9), (4, None), (5, 0.3)):
        store.save(step, groups(step), {}, score)
    assert store.steps() == [5, 4, 2]
    assert store.best() == 2
    assert store.load(2)[0].groups["model"]["a.weight"][0, 0] == 2


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, harm: str) -> None:
    store = Checkpoints(tmp_path)
    store.save(1, groups(1), {})
    store.save(2, groups(2), {})
    file = store.path(2) / "model.safetensors"
    content = bytearray(file.read_bytes())
    if harm == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    elif harm == "cut":
        file.write_bytes(content[:-4])
    elif harm == "remove":
        file.unlink()
    else:
        (store.path(2) / "manifest.json").write_text("{")
    snapshot, damaged = store.load()
    assert snapshot.step == 1
    assert len(damaged) == 1
    assert "checkpoint-2" in damaged[0]
    with pytest.raises(CheckpointError, match="checkpoint-2"):
        store.load(2)


def test_without_a_whole_checkpoint_loading_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        Checkpoints(tmp_path).load()


class Failing:
    """Makes the n-th of the calls that touch the disk fail, wherever in a save it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
        self.left, self.code, self.hit = number, code, ""
        for module, name in ((os, "fsync"), (os, "replace"), (os, "open"), (os, "mkdir")):
            monkeypatch.setattr(module, name, self.wrap(name, getattr(module, name)))
        real = os.fdopen

        def fdopen(*args: Any, **kwargs: Any) -> Any:
            file = real(*args, **kwargs)
            if isinstance(file, io.BufferedRandom):
                return Writer(file, self)
            return file

        monkeypatch.setattr(os, "fdopen", fdopen)

    def tick(self, name: str) -> None:
        self.left -= 1
        if self.left == 0:
            self.hit = name
            raise OSError(self.code, os.strerror(self.code))

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name != "open" or (len(args) > 1 and args[1] & os.O_CREAT):
                self.tick(name)
            return real(*args, **kwargs)

        return call


class Writer:
    """A file whose writes may fail."""

    def __init__(self, file: Any, failing: Failing) -> None:
        self.file, self.failing = file, failing

    def write(self, data: Any) -> Any:
        self.failing.tick("write")
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failure_at_any_step_of_a_save_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    hits: set[str] = set()
    for number in range(1, 200):
        store = Checkpoints(tmp_path / str(number))
        store.save(1, groups(1), {})
        with monkeypatch.context() as patch:
            failing = Failing(patch, number, code)
            said: SfumatoError | None = None
            try:
                store.save(2, groups(2), {})
            except SfumatoError as problem:
                said = problem
        if not failing.hit:
            break
        hits.add(failing.hit)
        if said is None:  # making a folder that is there already may fail: nothing was lost
            assert (failing.hit, store.steps()) == ("mkdir", [2, 1])
            continue
        assert isinstance(said, CapacityError) == (code == errno.ENOSPC)
        assert f"last good checkpoint is {store.path(store.steps()[0])}" in str(said)
        snapshot, damaged = store.load()
        assert damaged == []
        assert snapshot.groups["model"]["a.weight"][0, 0] == snapshot.step
        assert [p.name for p in store.folder.iterdir() if p.name.startswith(".")] == []
    assert hits == {"fsync", "replace", "open", "mkdir", "write"}
    assert store.steps() == [2, 1]


def test_leftovers_of_killed_saves_are_cleaned(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    store.save(1, groups(1), {})
    (tmp_path / ".checkpoint-2.abc.part").mkdir()
    (tmp_path / ".checkpoint-0.removed").mkdir()
    (tmp_path / ".mine").mkdir()
    store.clean()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mine", "checkpoint-1"]


def trained(steps: int, resume_at: int | None = None) -> tuple[nn.Module, list[float]]:
    """A few steps of AdamW; the optimiser rebuilt from its tensors at ``resume_at``."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    losses = []
    for step in range(steps):
        if step == resume_at:
            state = {k: v.clone() for k, v in optimizer_tensors(optimizer, network).items()}
            weights = {k: v.clone() for k, v in network.state_dict().items()}
            network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
            network.load_state_dict(weights)
            optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
            restore_optimizer(optimizer, network, state)
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        loss = (network(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return network, losses


def test_an_optimiser_resumes_bit_for_bit() -> None:
    whole, losses = trained(12)
    resumed, again = trained(12, resume_at=5)
    assert losses == again
    assert all(a.equal(b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_moments_of_convolutions_lie_in_memory_as_their_weights_do(tmp_path: Path) -> None:
    """A fused optimiser does not look at strides: it would take one weight's moments for another's."""
    found = []
    for resumed in (False, True):
        network: nn.Module = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        made = torch.optim.AdamW(network.parameters(), 1e-2, fused=True)
        for step in range(3):
            if resumed and step == 2:
                store = Checkpoints(tmp_path)
                store.save(step, {"optimizer": optimizer_tensors(made, network)}, {})
                restore_optimizer(made, network, store.load()[0].groups["optimizer"])
            generator = torch.Generator().manual_seed(step)
            for parameter in network.parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(drawn) if step == 0 else None
                parameter.grad = torch.empty_like(parameter).copy_(drawn)
            made.step()
        found.append([*network.parameters()])
    assert all(a.equal(b) for a, b in zip(*found, strict=True))


def test_a_number_that_an_optimiser_keeps_is_one_again() -> None:
    network = nn.Linear(2, 2)
    ours, theirs = (torch.optim.SGD(network.parameters(), 1e-2) for _ in range(2))
    ours.state[network.weight] = {"step": 7, "moments": torch.ones(2, 2, dtype=torch.uint8)}
    restore_optimizer(theirs, network, optimizer_tensors(ours, network))
    found = theirs.state[network.weight]
    assert isinstance(found["step"], int)
    assert found["step"] == 7
    assert found["moments"].dtype == torch.uint8


def test_the_state_of_another_network_is_refused() -> None:
    network = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"other\.weight"):
        restore_optimizer(torch.optim.AdamW(network.parameters()), network, {"exp_avg.other.weight": torch.ones(1)})


def test_a_changed_recipe_is_refused_with_its_differences() -> None:
    saved = {"data": {"batch": 8, "sizes": [1, 2]}, "seed": 0, "save_every": 10}
    same = {"data": {"batch": 8, "sizes": (1, 2)}, "seed": 0, "save_every": 5}
    refuse_changes(same, saved, frozenset({"save_every"}))
    with pytest.raises(ConfigError, match=r"data\.batch: was 8, is 16"):
        refuse_changes({"data": {"batch": 16, "sizes": [1, 2]}, "seed": 0, "save_every": 10}, saved, frozenset())
