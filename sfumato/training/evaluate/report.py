"""Measuring a model, and writing down what was found beside it."""

import time
from collections.abc import Sequence
from pathlib import Path

from sfumato import __version__
from sfumato.checkpoints.write import save_json
from sfumato.core.config import to_dict
from sfumato.core.errors import ConfigError, nearest
from sfumato.training.evaluate.measures import MEASURES, USUAL, Figures
from sfumato.training.evaluate.subject import Subject


def evaluate(subject: Subject, names: Sequence[str] = (), folder: Path | None = None) -> dict[str, Figures]:
    """Measure.

    Args:
        names: of ``MEASURES``; the usual ones that the subject has the parts for unless given.
        folder: where ``NAME.json`` and pictures go; in the model's folder unless given.

    Returns:
        The figures by measure, each with its settings and seconds.

    Raises:
        ConfigError: a name that is not known, or a measure for which a part is missing; nothing was measured.
    """
    check_names(names)
    for name in names:
        if not MEASURES[name].possible(subject):
            raise ConfigError(f"{name} needs {MEASURES[name].needs}; {subject.root} with this data has not.")
    wanted = list(names) or [name for name in USUAL if MEASURES[name].possible(subject)]
    if not wanted:
        raise ConfigError(f"{subject.root} has no part that could be measured.")
    folder = folder or subject.root / ("training/eval" if (subject.root / "training").is_dir() else "eval")
    folder.mkdir(parents=True, exist_ok=True)
    told = {"sfumato": __version__, "data": to_dict(subject.material.config), "settings": to_dict(subject.config)}
    found = {}
    for name in wanted:
        begun = time.perf_counter()
        figures = MEASURES[name].run(subject, folder)
        figures["seconds"] = round(time.perf_counter() - begun, 3)
        save_json(folder / f"{name}.json", {"measure": name, **figures, **told})
        found[name] = figures
        subject.report(f"{name}: " + "  ".join(words(figures)))
    return found


def check_names(names: Sequence[str]) -> None:
    """Refuse names that are no measures (ConfigError)."""
    for name in names:
        if name not in MEASURES:
            raise ConfigError(f"There is no measure {name!r}{nearest(name, MEASURES)}")


def numbers(figures: Figures, prefix: str = "") -> dict[str, float]:
    """The numbers among figures; those of tables inside under dotted names."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            found |= numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = float(value)
    return found


def words(figures: Figures, prefix: str = "") -> list[str]:
    """Figures in a row; those of tables inside under dotted names, lists left out."""
    parts: list[str] = []
    for name, value in figures.items():
        if isinstance(value, dict):
            parts += words(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            parts.append(f"{prefix}{name} {value:.4g}" if isinstance(value, float) else f"{prefix}{name} {value}")
    return parts
