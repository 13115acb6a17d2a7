"""Measures of a run while it is trained: what the loop writes into its curves."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sfumato.core.errors import SfumatoError
from sfumato.training.evaluate.report import evaluate, numbers
from sfumato.training.evaluate.subject import EvaluateConfig, Subject
from sfumato.training.material import Material
from sfumato.training.recipe import Recipe, TrainConfig


def measuring(
    recipe: Recipe, stage: str, material: Material, root: Path, report: Callable[[str], None] = lambda text: None
) -> Callable[[int], dict[str, float]] | None:
    """What measures the run folder ``root`` as it is, for a stage that asks for it; else None.

    The function is given the steps done, which name the folder of the figures and pictures, and returns every number
    as ``metrics.MEASURE.NAME``. A measure that is not possible is reported and left out: it is no reason to stop
    training.
    """
    train: TrainConfig = getattr(recipe, stage).train
    if not train.metrics:
        return None
    if recipe.data.buckets:
        material = Material(replace(recipe.data, buckets=False, check=False), recipe.seed)
    config = EvaluateConfig(pictures=train.metrics_pictures)
    if recipe.diffusion is not None:
        config = replace(config, steps=recipe.diffusion.sample_steps, cfg_scale=recipe.diffusion.cfg_scale)
    if recipe.autoencoder is not None and recipe.autoencoder.perceptual_weights is not None:
        config = replace(config, perceptual_weights=recipe.autoencoder.perceptual_weights)

    def measure(done: int) -> dict[str, float]:
        found: dict[str, float] = {}
        subject = Subject(root, config, report=report, material=material)  # opens what was exported last
        for name in train.metrics:
            try:
                folder = root / "training" / stage / "metrics" / f"{done:08}"
                figures = evaluate(subject, [name], folder)[name]
            except SfumatoError as problem:
                report(f"No {name} of step {done:,}: {problem}")
                continue
            found |= {key: value for key, value in numbers(figures, f"metrics.{name}.").items()
                      if not key.endswith(".seconds")}  # fmt: skip
        return found

    return measure
