"""``sfumato replay``."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sfumato.cli import naming
from sfumato.cli.loading import Loading
from sfumato.cli.progress import bar
from sfumato.core.config import from_dict, table
from sfumato.core.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from sfumato.tasks.picture import Picture


@dataclass(frozen=True)
class Replay:
    """Draw a picture again from the recipe that it holds, with the model that it names unless --model names another.

    How the model was opened (--vae, --refiner, --dtype, …) is in the recipe too; a flag given here goes before it.
    """

    file: Annotated[Path, "a picture that sfumato drew"]
    image: Annotated[str | None, "where the image is that it began from, if not where the recipe says"] = None
    mask: Annotated[str | None, "where its mask is, if not where the recipe says"] = None
    depth: Annotated[str | None, "where its picture of depths is, if not where the recipe says"] = None
    control: Annotated[str | None, "where its control picture is, if not where the recipe says"] = None
    loading: Loading = field(default_factory=Loading)
    verify: Annotated[bool, "compare the pixels and save nothing; exit code 1 where they differ"] = False
    output: Annotated[Path | None, "file to save as, or folder to save into; out/SEED-WORDS.png unless given"] = None
    quiet: Annotated[bool, "no progress bar, no notes"] = False

    spellings: ClassVar = {"output": ("-o",), "model": ("-m",)}

    def run(self) -> int:
        from sfumato.tasks.given import BROUGHT
        from sfumato.tasks.picture import Picture

        old = Picture.open(self.file)
        if "request" not in old.recipe:
            raise RequestError(f"{self.file} does not hold a recipe of sfumato; `sfumato info` shows what it holds.")
        if "grid" in old.recipe:
            raise RequestError(f"{self.file} is a grid of several pictures; replay one of them.")
        if "explained" in old.recipe:
            raise RequestError(f"{self.file} shows the words of a picture; replay the picture, which lies beside it.")
        target = None if self.verify else naming.destination(self.output)
        moved: dict[str, Any] = {name: getattr(self, name) for name in BROUGHT}
        request = replace(old.reading().request, **{name: path for name, path in moved.items() if path is not None})
        pipeline = loading_of(old.recipe, self.loading, f"the recipe in {self.file}").open()
        with bar("drawing", shown=not self.quiet and sys.stderr.isatty()) as on_step:
            (new,) = pipeline(request, on_step=on_step).pictures

        if not self.quiet:
            for line in changes(old.recipe, new.recipe):
                print(f"note: {line}", file=sys.stderr)
        if target is not None:
            path = naming.place(*target, new.seed, request.prompt, 0, 1)
            new.save(path)
            print(path)
            return 0
        return self.compare(old, new)

    def compare(self, old: "Picture", new: "Picture") -> int:
        if old.image.size != new.image.size:
            print(f"DIFFERENT: {self.file} has {old.image.size} pixels, drawn again {new.image.size}")
            return 1
        off = abs(old.pixels.astype(int) - new.pixels.astype(int))
        if not off.any():
            print("identical: every pixel")
            return 0
        share = (off.max(axis=-1) > 0).mean()
        print(f"DIFFERENT: {share:.2%} of the pixels, by up to {off.max()} of 255, {off.mean():.3f} on average")
        if self.file.suffix.lower() != ".png":
            print("JPEG and WebP change pixels when they are saved; only a PNG can be verified exactly.")
        return 1


def loading_of(recipe: Mapping[str, Any], asked: Loading, where: str) -> Loading:
    """How a recipe's models were opened, except for what is asked for now.

    Raises:
        ConfigError: the recipe names something that no model is opened with.
    """
    given = {name: value for name, value in vars(asked).items() if value is not None}
    model = table(recipe, "model")
    own = {} if "model" in given else {**table(model, "opened"), "model": model.get("name")}
    beside = {name: table(recipe, name).get("name") for name in ("refiner", "vae_tiny", "control_model")}
    told = {"dtype": recipe.get("dtype"), **beside, **own}
    found = from_dict(Loading, {**told, **given}, where)
    if found.model is None:
        raise ConfigError(f"{where} does not say with which model it was drawn. Name a model with --model.")
    return found


def changes(old: Any, new: Any, name: str = "") -> list[str]:
    """What differs between two recipes: one line each, where what they both tell is not the same."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [line for key in old if key in new for line in changes(old[key], new[key], f"{name}.{key}".strip("."))]
    return [] if old == new or name == "model.name" else [f"{name} was {old}, is {new}"]
