"""Checkpoints of a run: everything that the next step depends on, whole or not there.

A checkpoint is a folder ``checkpoint-N`` of safetensors and JSON with a manifest of hashes. It is written under a
temporary name, flushed, and renamed: a process killed at any moment leaves the older ones as they were. Order and
noise need no state (see ``order``), so weights, averages, the optimiser's moments and the step are all there is.
"""

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.store import open_safetensors
from sfumato.checkpoints.write import atomic_folder, save_file, save_json
from sfumato.core.config import read_json
from sfumato.core.errors import CheckpointError, ConfigError, SfumatoError
from sfumato.training.sharded import like

MANIFEST, PROGRESS = "manifest.json", "progress.json"

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint's content.

    Attributes:
        step: optimiser steps done.
        groups: ``"model"``, ``"ema"``, ``"optimizer"``, …: name to tensor.
        progress: plain data.
    """

    step: int
    groups: Mapping[str, Tensors]
    progress: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made when the first is saved.
        keep: so many of the newest are kept, and the one of the best score besides.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        if keep < 1:
            raise ConfigError(f"keep = {keep}: at least one checkpoint has to be kept.")
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, the newest first. Their content is not looked at."""
        found = (re.fullmatch(r"checkpoint-(\d+)", p.name) for p in self.folder.glob("checkpoint-*") if p.is_dir())
        return sorted((int(m[1]) for m in found if m), reverse=True)

    def path(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}"

    def save(
        self, step: int, groups: Mapping[str, Tensors], progress: Mapping[str, Any], score: float | None = None
    ) -> Path:
        """Write a checkpoint, then remove those that are no longer kept.

        Args:
            groups: what to write; one file each.
            progress: plain data, as JSON has it.
            score: by which the best is known, lower is better; None where nothing was measured.

        Raises:
            CapacityError, CheckpointError: it could not be written. The message names the last good checkpoint, which
                is untouched.
        """
        path = self.path(step)
        if path.exists():
            if not self.damage(step):  # a step's content is a function of the recipe: it is there already
                return path
            self._remove(step)
        try:
            with atomic_folder(path) as part:
                for name, tensors in groups.items():
                    save_file(part / f"{name}.safetensors", lazy_all(tensors))
                save_json(part / PROGRESS, {"step": step, **progress})
                files = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(part.iterdir())}
                save_json(part / MANIFEST, {"step": step, "score": score, "files": files})
        except SfumatoError as problem:
            raise self.naming_last(problem) from problem
        self._prune()
        return path

    def naming_last(self, problem: SfumatoError) -> SfumatoError:
        """The same problem, whose message tells what there is to go on from."""
        last = self.last_good()
        kept = f" The last good checkpoint is {last}." if last else " There is no older checkpoint."
        return type(problem)(f"{problem}{kept}")

    def last_good(self) -> Path | None:
        """The newest checkpoint that is whole, by its hashes."""
        return next((self.path(step) for step in self.steps() if not self.damage(step)), None)

    def damage(self, step: int) -> str:
        """What is wrong with a checkpoint, naming the file; empty where it is whole."""
        path = self.path(step)
        try:
            manifest = read_json(path / MANIFEST)
            files = manifest["files"]
            for name, about in files.items():
                if not (path / name).is_file():
                    return f"{path / name} is missing"
                if (path / name).stat().st_size != about["bytes"] or _sha256(path / name) != about["sha256"]:
                    return f"{path / name} is not what was written: its hash differs"
        except (ConfigError, OSError, KeyError, TypeError, AttributeError) as problem:
            return f"{path / MANIFEST} cannot be read: {problem}"
        return ""

    def load(self, step: int | None = None) -> tuple[Snapshot, list[str]]:
        """A checkpoint (the newest that is whole unless told), and what was wrong with newer ones.

        Raises:
            CheckpointError: there is none, or the one asked for is damaged.
        """
        if step is not None:
            damage = self.damage(step)
            if damage:
                raise CheckpointError(f"{damage}. Choose another checkpoint: {self.steps()}.")
            return self._read(step), []
        damaged: list[str] = []
        for candidate in self.steps():
            damage = self.damage(candidate)
            if not damage:
                return self._read(candidate), damaged
            damaged.append(damage)
        raise CheckpointError(f"{self.folder} has no whole checkpoint. {'. '.join(damaged)}".strip())

    def best(self) -> int | None:
        """The step of the best score, among those that have one; of equal ones the earliest."""
        scores = {}
        for step in self.steps():
            try:
                score = read_json(self.path(step) / MANIFEST)["score"]
            except (ConfigError, KeyError, TypeError):
                continue
            if isinstance(score, float | int):
                scores[step] = score
        return min(scores, key=lambda s: (scores[s], s)) if scores else None

    def clean(self) -> None:
        """Remove what saves and removals that were killed left behind. For the one process that writes."""
        if self.folder.is_dir():
            for leftover in self.folder.iterdir():
                if re.fullmatch(r"\.checkpoint-\d+\..*(part|old|removed)", leftover.name):
                    shutil.rmtree(leftover, ignore_errors=True)

    def _prune(self) -> None:
        kept = {*self.steps()[: self.keep], self.best()}
        for step in self.steps():
            if step not in kept:
                self._remove(step)

    def _remove(self, step: int) -> None:
        """Renamed first: a removal that is killed leaves nothing that looks like a checkpoint."""
        doomed = self.folder / f".checkpoint-{step}.removed"
        try:
            shutil.rmtree(doomed, ignore_errors=True)
            self.path(step).rename(doomed)
        except OSError as problem:
            raise CheckpointError(f"{self.path(step)} could not be removed: {problem.strerror}.") from problem
        shutil.rmtree(doomed, ignore_errors=True)

    def _read(self, step: int) -> Snapshot:
        path = self.path(step)
        groups = {}
        for file in sorted(path.glob("*.safetensors")):
            groups[file.stem] = {name: t.read().clone() for name, t in open_safetensors(file).tensors.items()}
        return Snapshot(step, groups, read_json(path / PROGRESS))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as ``"exp_avg.conv_in.weight"`` to tensor. Rates belong to the recipe, not to the state.

    Numbers that an optimiser keeps as such become tensors of no dimension.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    found: dict[str, Tensor] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor | int | float):
                found[f"{key}.{names[parameter]}"] = value if isinstance(value, Tensor) else torch.tensor(value)
            elif value is not None:
                raise TypeError(f"{type(optimizer).__name__} keeps a {type(value).__name__} as {key!r}")
    return found


def restore_optimizer(optimizer: torch.optim.Optimizer, network: nn.Module, tensors: Tensors) -> None:
    """The inverse of ``optimizer_tensors``.

    Raises:
        CheckpointError: a parameter that the network does not have.
    """
    parameters = dict(network.named_parameters())
    for joined, tensor in tensors.items():
        key, _, name = joined.partition(".")
        if name not in parameters:
            raise CheckpointError(f"The optimiser's state is of another network: there is no parameter {name!r} here.")
        if tensor.dim() == 0 and not tensor.is_floating_point():  # it was a number
            optimizer.state[parameters[name]][key] = tensor.item()
            continue
        # AdamW counts steps on the CPU, wherever its parameters are, unless it is fused.
        device = "cpu" if key == "step" and not optimizer.defaults.get("fused") else parameters[name].device
        kept = like(tensor.to(device), parameters[name])
        if kept.shape == parameters[name].shape:  # a fused optimiser walks through memory: moments lie as weights do
            kept = torch.empty_like(parameters[name], dtype=kept.dtype).copy_(kept)
        optimizer.state[parameters[name]][key] = kept


def refuse_changes(recipe: Mapping[str, Any], saved: Mapping[str, Any], may_change: frozenset[str]) -> None:
    """Refuse to go on with another recipe than the run was started with.

    Args:
        recipe, saved: plain data, nested.
        may_change: dotted names that the result of a step does not depend on.

    Raises:
        ConfigError: the settings that differ, old and new.
    """
    old, new = _flat(saved), _flat(recipe)
    changed = [
        f"  {name}: was {old.get(name, 'not set')!r}, is {new.get(name, 'not set')!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name) and not any(name == m or name.startswith(m + ".") for m in may_change)
    ]
    if changed:
        raise ConfigError(
            "The recipe is not the one that this run was started with:\n" + "\n".join(changed)
            + "\nSet these back, or start another run in another folder."
        )


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = list(value) if isinstance(value, tuple) else value
    return found
