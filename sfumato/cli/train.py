"""``sfumato train``."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

from sfumato.core.config import fields


@dataclass(frozen=True)
class Train:
    """Train what a recipe says, or go on with it. Exit code 1 if it was asked to stop before its end."""

    recipe: Annotated[Path, "a TOML file"]
    out: Annotated[Path | None, "the run folder, which is a model folder; runs/NAME unless given"] = None
    set: Annotated[tuple[str, ...], "change the recipe: --set diffusion.train.steps=2000"] = ()
    spellings: ClassVar[dict[str, tuple[str, ...]]] = {"out": ("-o",)}

    def run(self) -> int:
        from sfumato.training.recipe import load
        from sfumato.training.run import run

        recipe = load(self.recipe, self.set)
        return 0 if run(recipe, self.out or Path("runs") / recipe.name) else 1

    @staticmethod
    def more_help() -> str:
        """Every setting of a recipe, with its meaning."""
        from sfumato.training.recipe import Recipe

        return "\n".join(["recipe settings (TOML; tables by their dotted names):", *_settings(Recipe, "")])


def _settings(cls: type, prefix: str) -> Iterator[str]:
    for field in fields(cls):
        inner = next((t for t in (field.type, *get_args(field.type)) if dataclasses.is_dataclass(t)), None)
        name = f"{prefix}{field.name}"
        if isinstance(inner, type):
            yield f"\n[{name}]  {field.doc}"
            yield from _settings(inner, f"{name}.")
        else:
            yield f"  {name:<48} {field.doc}{_default(field.default)}"


def _default(value: Any) -> str:
    return "" if value in (None, "", ()) or value is dataclasses.MISSING else f" (default: {value})"
