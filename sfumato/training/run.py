"""A recipe becomes a model: each of its stages in turn, in one folder that is a model folder all along."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sfumato.adapters.trained import trained
from sfumato.checkpoints.hub import push
from sfumato.checkpoints.write import atomic_file
from sfumato.core.config import to_dict
from sfumato.core.errors import ConfigError
from sfumato.training.evaluate.during import measuring
from sfumato.training.evaluate.report import check_names
from sfumato.training.export import put_card, tidy
from sfumato.training.journal import read
from sfumato.training.loop import refuse_another, train
from sfumato.training.material import Material
from sfumato.training.recipe import Recipe, to_toml
from sfumato.training.stages import STAGES

SHOWN = ("loss", "held_out", "metrics")
"""What the model card says of a stage: how these curves end."""


def run(recipe: Recipe, out: Path, report: Callable[[str], None] = print) -> bool:
    """Train every stage of a recipe, or go on with it.

    Args:
        out: the run folder. Parts of the model lie in it as in any model folder; checkpoints, curves, samples and
            caches lie under ``training``.

    Returns:
        Whether everything is done; False where it was asked to stop.

    Raises:
        ConfigError, DataError: nothing was trained. NumericError, CapacityError, CheckpointError: see ``loop.train``.
    """
    try:
        from accelerate import PartialState
    except ImportError:
        raise ConfigError("Training needs accelerate: pip install 'sfumato[train]'.") from None
    state = PartialState()
    try:
        (out / "training").mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigError(f"{out} cannot be the folder of a run: {problem.strerror}.") from None
    with _alone(out) if state.is_main_process else nullcontext():
        return _run(recipe, out, report, state)


def _run(recipe: Recipe, out: Path, report: Callable[[str], None], state: Any) -> bool:
    say = report if state.is_main_process else lambda text: None
    data = to_dict(recipe)
    for name in recipe.stages:
        refuse_another(out / "training" / name, identity(data, name), name)
    if state.is_main_process:
        tidy(out)
        with atomic_file(out / "recipe.toml") as file:
            file.write(to_toml(data).encode())
    facts: dict[str, Any] = {"data": recipe.data.where, "resolution": recipe.data.resolution, "seed": recipe.seed}
    if recipe.diffusion is not None and recipe.diffusion.lora is not None:
        facts |= {"a LoRA for": recipe.diffusion.start}
    for name in recipe.stages:
        check_names(getattr(recipe, name).train.metrics)
    with state.main_process_first():
        material = Material(recipe.data, recipe.seed, say)
    facts |= {"pictures": len(material.training), "pictures held out": len(material.held_out)}
    for name in recipe.stages:
        with state.main_process_first():  # the first fills the caches, the others find them
            stage = STAGES.get(name)(recipe, material, out)
        folder = out / "training" / name
        measure = measuring(recipe, name, material, out, say)
        mine = identity(data, name)
        outcome = train(stage, getattr(recipe, name).train, folder, mine, recipe.seed, report, measure)
        facts[f"{name}: steps"] = outcome.step
        if state.is_main_process:
            lines = read(folder / "curves.jsonl")
            last = lines[-1] if lines else {}
            facts |= {f"{name}: {key}": value for key, value in last.items() if key.startswith(SHOWN)}
            put_card(out, recipe.name, facts, to_toml(data))
        if not outcome.finished:
            return False
    if (lora := trained(out)) is not None:
        say(f"Draw with it: sfumato \"…\" --model {lora.base} --lora {lora.file}")
    if recipe.push_to_hub is not None and state.is_main_process:
        say(f"Uploaded to {push(out, recipe.push_to_hub)}")
    return True


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep a second command from training in the same folder at the same time; the lock goes with the process.

    Raises:
        ConfigError: another one is at it.
    """
    try:
        import fcntl
    except ImportError:  # not on this system
        yield
        return
    with (out / "training/.lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, loader processes do not inherit it
        except (BlockingIOError, PermissionError):
            raise ConfigError(f"Another process is training in {out}: wait for it, or name another folder.") from None
        except OSError:
            pass  # a file system without locks
        yield


def identity(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a stage's weights depend on, of a whole recipe as plain data."""
    return {"seed": data["seed"], "data": data["data"], name: data[name]}
