"""How few steps will do: samplers, steps and guidance scales, each with the same captions and seeds."""

import time
from pathlib import Path
from typing import Any

from sfumato.core.errors import ConfigError
from sfumato.sampling import resolve
from sfumato.training.evaluate.captions import choose, numbered
from sfumato.training.evaluate.distributions import frechet, kid
from sfumato.training.evaluate.retrieval import retrieval
from sfumato.training.evaluate.scoring import check_all
from sfumato.training.evaluate.subject import Subject

Row = dict[str, Any]


def settings(words: tuple[str, ...]) -> list[tuple[str, int]]:
    """``"ddim:50"`` -> ("ddim", 50).

    Raises:
        ConfigError: it reads otherwise. RequestError: there is no such sampler.
    """
    found = []
    for word in words:
        sampler, _, steps = word.rpartition(":")
        if not sampler or not steps.isdecimal() or int(steps) < 1:
            raise ConfigError(f"sweep: {word!r} should read sampler:steps, as ddim:50 does.")
        name, _ = resolve(sampler)
        found.append((name, int(steps)))
    return found


def sweep(subject: Subject, folder: Path) -> dict[str, Any]:
    """Draw with every setting, and measure.

    Captions of shapes are drawn unseen, and scored by the checker; others are chosen from the data set's, and scored by
    CLIP where there is one. FID and KID are to the data set's pictures.

    Args:
        folder: where ``sweep.md`` and ``sweep.png`` go.
    """
    config = subject.config
    captions = subject.unseen() if subject.scenes else choose(subject.material.captions, config.pictures)
    real = subject.features.pictures(subject.real())
    rows: list[Row] = []
    for scale in config.scales or (config.cfg_scale,):
        for sampler, steps in settings(config.sweep):
            begun = time.perf_counter()
            pictures = subject.draw(captions, sampler=sampler, steps=steps, cfg_scale=scale)
            seconds = (time.perf_counter() - begun) / len(captions)
            row: Row = {"sampler": sampler, "steps": steps, "cfg_scale": scale}
            if subject.scenes:
                row |= check_all(pictures, captions)
            features = subject.features.pictures(pictures)
            if subject.has_clip:
                same = numbered(captions, captions)
                row["clip_score"] = retrieval(subject.clip.texts(captions), features, same)["clip_score"]
            row |= {"fid": frechet(real, features), "kid": kid(real, features), "seconds_a_picture": seconds}
            subject.report("  ".join(cells(row)))
            rows.append(row)
    (folder / "sweep.md").write_text(table(rows), encoding="utf-8")
    plot(rows, folder / "sweep.png")
    return {"rows": rows, "captions": len(captions), "features": subject.features.name}


def cells(row: Row) -> list[str]:
    """A row as it is printed."""
    return [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()]


def table(rows: list[Row]) -> str:
    """In Markdown."""
    heads = [name.replace("_", " ") for name in rows[0]]
    lines = [heads, ["---"] * len(heads), *map(cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot(rows: list[Row], path: Path) -> None:
    """The score and KID against the steps, a line for each sampler and guidance scale."""
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("The plot needs matplotlib: pip install 'sfumato[train]'.") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = {"everything": "checker: everything right", "clip_score": "CLIP score", "kid": "KID, lower is better"}
    shown = [name for name in names if name in rows[0]]
    figure, axes = plt.subplots(1, len(shown), figsize=(5 * len(shown), 3.6), squeeze=False)
    for name, axis in zip(shown, axes[0], strict=True):
        for key in dict.fromkeys((row["sampler"], row["cfg_scale"]) for row in rows):
            own = sorted((r["steps"], r[name]) for r in rows if (r["sampler"], r["cfg_scale"]) == key)
            axis.plot(*zip(*own, strict=True), marker="o", label=f"{key[0]}, guidance {key[1]:g}")
        axis.set_xscale("log")
        axis.set_xlabel("steps")
        axis.set_title(names[name], fontsize=9)
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
