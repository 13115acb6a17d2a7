"""``sfumato eval``."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar


@dataclass(frozen=True)
class Eval:
    """Measure a run or a model folder; the figures are written beside it as JSON."""

    model: Annotated[Path, "a run folder, or any model folder with --data"]
    data: Annotated[str | None, "what to measure on; the run's own data set unless given"] = None
    layout: Annotated[str | None, "how it is laid out, where that is not plain"] = None
    resolution: Annotated[int | None, "pixels of a side; the run's own, or 64, unless given"] = None
    held_out: Annotated[float | None, "0 to below 1: share kept back, by names; the run's own unless given"] = None
    measures: Annotated[tuple[str, ...], "see below; all that fit but sweep unless given"] = ()
    pictures: Annotated[int | None, "captions that are drawn (default: 200)"] = None
    steps: Annotated[int | None, "of the sampler (default: 25)"] = None
    sampler: Annotated[str | None, "see `sfumato samplers`; the model's own unless given"] = None
    cfg_scale: Annotated[float | None, "classifier-free guidance (default: 4)"] = None
    seed: Annotated[int | None, "of the first picture (default: 0)"] = None
    clip: Annotated[Path | None, "folder of a CLIP with both towers; the run's own unless given"] = None
    features: Annotated[Path | None, "Inception's file or DINOv2's folder, for FID and the like; else CLIP"] = None
    perceptual_weights: Annotated[Path | None, "VGG-16's and LPIPS's, for LPIPS; or a CLIP's folder"] = None
    captions: Annotated[Path | None, "what the nearest-neighbour test draws, one a line"] = None
    sweep: Annotated[tuple[str, ...] | None, "sampler:steps of the sweep, as ddim:50"] = None
    scales: Annotated[tuple[float, ...] | None, "guidance scales of the sweep"] = None
    output: Annotated[Path | None, "folder of the figures; MODEL/training/eval or MODEL/eval unless given"] = None
    json: Annotated[bool, "print JSON"] = False

    spellings: ClassVar = {"output": ("-o",)}

    def run(self) -> int:
        from sfumato.core.config import from_dict
        from sfumato.core.errors import ConfigError
        from sfumato.training.evaluate.report import evaluate
        from sfumato.training.evaluate.subject import EvaluateConfig, Subject
        from sfumato.training.recipe import DataConfig, load

        if not self.model.is_dir():
            raise ConfigError(f"There is no folder {self.model}.")
        names = {field.name for field in fields(EvaluateConfig)}
        config = EvaluateConfig(**{n: v for n, v in vars(self).items() if n in names and v is not None})
        told = {"where": self.data, "layout": self.layout, "resolution": self.resolution, "held_out": self.held_out}
        data: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
        chosen: DataConfig | None = None
        if (self.model / "recipe.toml").is_file():
            own = load(self.model / "recipe.toml").data
            chosen = replace(replace(own, layout=None) if self.data else own, **data)
        elif self.data:
            chosen = from_dict(DataConfig, data)
        subject = Subject(self.model, config, chosen, (lambda text: None) if self.json else print)
        found = evaluate(subject, self.measures, self.output)
        if self.json:
            print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0

    @staticmethod
    def more_help() -> str:
        """Every measure, with its meaning."""
        from sfumato.training.evaluate.measures import MEASURES

        lines = [f"  {name:<16} {(measure.run.__doc__ or '').splitlines()[0]}" for name, measure in MEASURES.items()]
        return "\n".join(["measures:", *lines])
