"""Puts trained runs into the package, as the model that comes with sfumato: float16, without what training needs.

    python recipes/ship.py runs/emoji runs/emoji_more runs/emoji_finish data/emoji
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.store import open_file
from sfumato.checkpoints.write import save_file
from sfumato.core.shipped import FOLDERS, SHIPPED
from sfumato.families.convert import convert

CARD = Path(__file__).with_name("emoji_card.md")
LIMIT = 60_000_000
"""Bytes of the whole folder."""


def ship(runs: Sequence[Path], data: Path, out: Path) -> int:
    """Write the folder anew, and tell its size in bytes.

    Args:
        runs: each went on from that before it; the first trained CLIP, and the last draws.
    """
    first = runs[0]
    convert(runs[-1], out, dtype=torch.float16, overwrite=True)
    (out / "clip").mkdir()
    halves = {n: t.read().half() for n, t in open_file(first / "clip" / "model.safetensors").tensors.items()}
    save_file(out / "clip" / "model.safetensors", lazy_all(halves))
    shutil.copy(first / "clip" / "config.json", out / "clip")
    for run in runs:
        shutil.copy(run / "recipe.toml", out / f"recipe{run.name.removeprefix(first.name)}.toml")
    shutil.copy(CARD.parents[1] / "LICENSE", out / "LICENSE-noto-emoji")  # Apache 2.0
    shutil.copy(data / "LICENSE-cldr", out)
    card = CARD.read_text(encoding="utf-8")
    for title, run in zip(("From nothing", *["From there on"] * (len(runs) - 1)), runs, strict=True):
        figures = (run / "README.md").read_text(encoding="utf-8").partition("Trained with sfumato.\n")[2]
        card += f"\n## {title}\n{figures.replace('## Recipe', '### Recipe')}"
    (out / "README.md").write_text(card, encoding="utf-8")
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    *runs, data = map(Path, sys.argv[1:])
    size = ship(runs, data, FOLDERS[SHIPPED])
    print(f"{size / 1e6:.1f} MB")
    sys.exit(size > LIMIT and f"More than {LIMIT / 1e6:.0f} MB")
