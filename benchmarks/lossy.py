"""What each lossy mode gains and costs on sfumato's own model: seconds and PSNR beside the exact picture.

``python -m benchmarks.lossy --model FOLDER --vae-tiny FOLDER --prompts N``. A turn is one prompt, drawn exactly and in
each mode, at the model's default steps and guidance; a model that is told nothing (``recipes/emoji-dit.toml``) draws
what its seeds give, in 25 steps without guidance. What is found goes to ``benchmarks/results`` and to
``sfumato/engine/lossy/measured.json``, which the notes of lossy pictures quote; a run of fewer prompts keeps nothing.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from torch import Tensor

import sfumato
from benchmarks.harness import turn
from benchmarks.report import Measured, Row, machine, report, table
from benchmarks.shipped import MODEL, PROMPTS, prompts_of, shown
from sfumato.engine import lossy
from sfumato.engine.allocator import keep_freed_memory
from sfumato.engine.pack import Eight
from sfumato.training.evaluate.likeness import psnr

KEPT = Path(lossy.__file__).with_name("measured.json")
EIGHT: tuple[Eight, ...] = get_args(Eight)
"""Not modes of a request but ways to open the model (``quantize``), measured beside them."""
UNTIMED = "fp8"
"""A CPU has no instructions for it: what it takes there says nothing."""


def main(arguments: Sequence[str] = ()) -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--model", default=MODEL)
    flags.add_argument("--vae-tiny")
    flags.add_argument("--prompts", type=int, default=len(PROMPTS), choices=range(1, len(PROMPTS) + 1))
    chosen = flags.parse_args(arguments)
    model, vae_tiny, prompts = chosen.model, chosen.vae_tiny, chosen.prompts
    keep_freed_memory()
    plain = sfumato.load(model, device="cpu", vae_tiny=vae_tiny)
    coarse = {eight: sfumato.load(model, device="cpu", quantize=eight) for eight in EIGHT}
    about = machine()

    subjects: dict[str, tuple[Any, tuple[str, ...]]] = {"exact": (plain, ())}
    for name in lossy.LOSSY:
        mode = lossy.mode_of(name)
        if why := mode.unfit(plain.model):
            print(f"{name} is left out: {why}.")
        else:
            subjects[str(mode)] = (plain, (name,))
    fast = ",".join(map(str, lossy.read(("fast",), plain.model)))
    subjects[fast] = plain, ("fast",)
    subjects.update((eight, (pipe, ())) for eight, pipe in coarse.items())

    texts = prompts_of(model) if plain.model.text_parts else [""] * len(PROMPTS)
    asked: dict[str, Any] = {} if plain.model.text_parts else {"steps": 25, "cfg_scale": 1.0}

    def draw(label: str, seed: int) -> Tensor:
        pipe, modes = subjects[label]
        made = pipe(texts[seed], seed=seed, lossy=modes, **asked)
        return torch.from_numpy(made.pictures[0].pixels)

    for label in subjects:
        draw(label, 0)
    measured = {label: Measured() for label in subjects}
    drawn: dict[str, list[Tensor]] = {label: [] for label in subjects}
    for seed in range(prompts):
        for label in subjects:
            found = turn(partial(draw, label, seed), keep=True)
            assert found.output is not None
            drawn[label].append(found.output)
            measured[label].seconds.append(found.seconds)
            measured[label].processor.append(found.processor)
            measured[label].memory = max(measured[label].memory, found.memory)
    pictures = {label: torch.stack(some) for label, some in drawn.items()}  # [N, H, W, 3]
    exact = pictures["exact"]
    quality = {label: psnr(exact, made).tolist() for label, made in pictures.items() if label != "exact"}
    for label, found_psnr in [*quality.items()]:
        if min(found_psnr) == inf:
            print(f"{label} is left out: it changes nothing in this model.")
            del quality[label], measured[label]

    timed = {label: taken for label, taken in measured.items() if label != UNTIMED}
    settled = plain(texts[0], seed=0, **asked).pictures[0].recipe["request"]
    size = f"{settled['width']} x {settled['height']}, {settled['steps']} steps, guidance {settled['cfg_scale']:g}"
    row = Row(
        f"{shown(model)}, {size}, {prompts} prompts", timed,
        {label: float((pictures[label].double() - exact).norm() / exact.double().norm()) for label in timed},
        notes={f"PSNR of {label}": f"{median(q):.1f} dB ({min(q):.1f}-{max(q):.1f})" for label, q in quality.items()},
        lossy=[label for label in quality if label in timed],
        psnr={label: median(q) for label, q in quality.items() if label in timed},
    )  # fmt: skip
    if prompts < len(PROMPTS):
        print(table([row]))
        return
    report("lossy" if model == MODEL else f"lossy_{shown(model)}", [row], about)
    costs = {label: {"psnr": round(median(q), 2)} for label, q in quality.items()}
    for label, cost in costs.items():
        if label in timed:
            cost["faster"] = round(median(timed["exact"].seconds) / median(timed[label].seconds), 3)
    where = f"{row.name} (medians; {about['processor']}, {about['threads']} threads)"
    kept = {**json.loads(KEPT.read_text(encoding="utf-8")), shown(model): {"on": where, "modes": costs}}
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
