"""The seeded toy run on one thread of a CPU: ``python -m tests.golden.toy [FILE]`` writes its first losses to a file.

Where a change is meant to change them, write ``tests/golden/toy_losses.json`` anew and say why in the commit.
"""

import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
FILE = Path(__file__).parent / "toy_losses.json"
STAGES = {"autoencoder": "loss.autoencoder", "diffusion": "loss.denoiser"}


def losses(folder: Path) -> dict[str, Any]:
    """Train in this process; the losses of both stages, and what their last bits hang on."""
    import torch

    from sfumato.training import journal, shapes
    from sfumato.training.recipe import load
    from sfumato.training.run import run

    torch.set_num_threads(1)
    shapes.write(folder / "data", 1000, 16)
    recipe = load(ROOT / "recipes/toy.toml", [f"data.where={json.dumps(str(folder / 'data'))}"])
    assert run(recipe, folder / "run", lambda text: None)
    found = {
        stage: [line[key] for line in journal.read(folder / f"run/training/{stage}/curves.jsonl")[:50]]
        for stage, key in STAGES.items()
    }
    return {**machine(), "losses": found}


def machine() -> dict[str, str]:
    """The version, the instructions and the maker of the processor: they decide in which order numbers are summed."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    maker = next((line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), platform.processor())
    version = torch.__version__.split("+")[0]
    return {"torch": version, "instructions": torch.backends.cpu.get_cpu_capability(), "processor": maker}


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    with tempfile.TemporaryDirectory() as made:
        content = losses(Path(made))
    Path(sys.argv[1] if len(sys.argv) > 1 else FILE).write_text(json.dumps(content, indent=1) + "\n")
