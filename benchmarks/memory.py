"""Predicted peak memory and time beside measured ones: each row is a picture drawn in a fresh process.

What is measured is the high-water mark of the process's resident memory (VmHWM): its own pages and those of the mapped
weight files that it touched. Models are of Stable Diffusion 1's shape with random weights; ``middle`` has the text
encoder of true size and half the channels elsewhere, ``true`` is of true size (4.3 GB in float32).
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from benchmarks.harness import status
from benchmarks.report import RESULTS, machine
from sfumato.checkpoints.diffusers import Folder, write_folder
from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.parts import Part
from sfumato.core.request import Request
from sfumato.engine.pack import LARGE
from sfumato.engine.residence import USUAL, Holding
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.clip_text import CLIP_L
from sfumato.models.unet import UNetConfig
from sfumato.text import tokenizer

WIDTHS = {"middle": ((160, 320, 640, 640), (64, 128, 256, 256)), "true": ((320, 640, 1280, 1280), (128, 256, 512, 512))}
"""Channels of U-Net and autoencoder."""

PROGRAM = "sfumato.tasks.pipeline"
"""What a process imports that draws."""

LIMIT = 0.15
"""How far a prediction may be from what is measured."""


@dataclass(frozen=True)
class Case:
    """One row: a model, a picture, and how the model is held."""

    model: str
    stored: str
    size: int
    holding: Holding = USUAL
    count: int = 1
    steps: int = 2
    edits: bool = False  # half of a picture that is given, as large


CASES = (
    Case("middle", "float32", 256),
    Case("middle", "float32", 256, Holding(growth=LARGE)),
    Case("middle", "float16", 256, Holding(growth=LARGE)),
    Case("middle", "float32", 256, Holding("parts")),
    Case("middle", "float32", 256, Holding("layers")),
    Case("middle", "float16", 256),
    Case("middle", "float16", 256, Holding("parts")),
    Case("middle", "float32", 512),
    Case("middle", "float32", 512, Holding("parts", 2, 32)),
    Case("middle", "float32", 256, count=4),
    Case("middle", "float32", 512, edits=True),
    Case("middle", "float32", 512, Holding("parts", 2, 32), edits=True),
    Case("middle", "float32", 256, Holding("layers"), edits=True),
    Case("true", "float16", 256, Holding("parts")),
    Case("true", "float16", 512, Holding("layers", 2, 32)),
)


def make(name: str, stored: str, folder: Path) -> None:
    """A model folder with random weights."""
    unet, vae = WIDTHS[name]
    configs = {
        "text_encoder": ("CLIPTextModel", CLIP_L),
        "unet": ("UNet2DConditionModel", UNetConfig(sample_size=64, cross_attention_dim=768, block_out_channels=unet)),
        "vae": ("AutoencoderKL", AutoencoderConfig(block_out_channels=vae)),
    }
    torch.manual_seed(0)
    parts = {}
    for part, (kind, config) in configs.items():
        module: nn.Module = Part(kind, config, {}, part).build().to(getattr(torch, stored))
        parts[part] = Part(kind, config, lazy_all(module.state_dict()), part)
    words = folder.parent / f"words-{folder.name}"
    tokenizer.builtin().save(words)
    write_folder(folder, Folder(
        "StableDiffusionPipeline", parts, {"scheduler": {"_class_name": "EulerDiscreteScheduler"}},
        {"tokenizer": words},
    ))  # fmt: skip


def bring(place: Path, side: int) -> None:
    """A picture, and a mask of its right half."""
    from PIL import Image

    noise = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(place / "image.png")
    half = Image.new("L", (side, side), 0)
    half.paste(255, (side // 2, 0, side, side))
    half.save(place / "mask.png")


def measure(source: str, case: Case, place: Path) -> dict[str, float]:
    """Draw in this process, which has done nothing else, and tell what it took and what was predicted."""
    from sfumato.engine.rates import NOMINAL, rates
    from sfumato.engine.ready import make_ready
    from sfumato.families.load import open_model
    from sfumato.tasks import TASKS
    from sfumato.tasks.forecast import Forecaster
    from sfumato.tasks.text_to_image import draw

    request = Request("a red apple", seed=1, width=case.size, height=case.size, steps=case.steps, count=case.count)
    if case.edits:
        request = replace(request, task="inpaint", image=str(place / "image.png"), mask=str(place / "mask.png"))
    model = open_model(source, device="cpu", asleep=case.holding.where != "resident")
    if case.holding.growth is not None:
        shapes = Forecaster(model, request, NOMINAL).shapes(case.holding)
        make_ready(model, growth=case.holding.growth, shapes=shapes)
    begin = time.perf_counter()
    draw(TASKS.get(request.task), model, request, holding=case.holding)
    seconds, peak = time.perf_counter() - begin, status("VmHWM")
    own, mapped = status("RssAnon"), status("RssFile")
    before = open_model(source, device="cpu", asleep=True)  # predicted as it is before anything is read or packed
    found = Forecaster(before, request, rates(model.device, model.dtype, PROGRAM), packs=True).forecast(case.holding)
    return {"seconds": seconds, "peak": peak, "predicted": found.peak, "predicted_seconds": found.seconds,
            "own_at_end": own, "mapped_at_end": mapped}  # fmt: skip


def rows(cases: tuple[Case, ...], place: Path) -> Iterator[tuple[Case, dict[str, float]]]:
    """Each case in a process of its own."""
    from sfumato.engine.rates import rates

    rates(torch.device("cpu"), torch.float32, PROGRAM)
    for case in cases:
        folder = place / f"{case.model}-{case.stored}"
        if not folder.exists():
            subprocess.run([sys.executable, "-m", __name__, "make", case.model, case.stored, str(folder)], check=True)
        bring(place, case.size)
        line = [sys.executable, "-m", __name__, "draw", str(folder), json.dumps(asdict(case)), str(place)]
        done = subprocess.run(line, check=True, capture_output=True, text=True)
        yield case, json.loads(done.stdout.splitlines()[-1])


def main(cases: tuple[Case, ...] = CASES) -> None:
    found = []
    print(f"{'model':<7} {'stored':<8} {'px':>4} {'n':>2} {'held':<9} {'rows':>4} {'tile':>4} {'':<4} {'growth':>6} "
          f"{'measured':>9} {'predicted':>9} {'ratio':>6} {'s':>7} {'pred. s':>8}")  # fmt: skip
    with TemporaryDirectory() as place:
        for case, row in rows(cases, Path(place)):
            ratio = row["predicted"] / row["peak"]
            found.append({**asdict(case), **row, "ratio": ratio})
            print(f"{case.model:<7} {case.stored:<8} {case.size:>4} {case.count:>2} {case.holding.where:<9} "
                  f"{case.holding.rows:>4} {case.holding.tile or '-':>4} {'edit' if case.edits else '':<4} "
                  f"{'-' if case.holding.growth is None else case.holding.growth:>6} {row['peak'] / 1e6:>6.0f} MB "
                  f"{row['predicted'] / 1e6:>6.0f} MB {ratio:>6.2f} {row['seconds']:>7.1f} "
                  f"{row['predicted_seconds']:>8.1f} {'' if abs(ratio - 1) <= LIMIT else 'MISSED'}",
                  flush=True)  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.json").write_text(json.dumps({"machine": machine(), "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    elif sys.argv[1:2] == ["draw"]:
        told = json.loads(sys.argv[3])
        case = Case(**{**told, "holding": Holding(**told["holding"])})
        print(json.dumps(measure(sys.argv[2], case, Path(*sys.argv[4:]))))
    else:
        main()
