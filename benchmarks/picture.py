"""From prompt to pixels, and the text encoding alone, beside diffusers: SD1.5 of true size, float32, the same noise.

``python -m benchmarks.picture SIDE STEPS TURNS``; unless told otherwise 256 pixels, 20 steps, 3 turns.
"""

import sys
from typing import Any

import torch
from torch import Tensor

import sfumato
from benchmarks import fullsize
from benchmarks.harness import compare, machine, report
from sfumato.core.request import Request
from sfumato.engine.allocator import keep_freed_memory

PROMPT, NEGATIVE = "a red apple on a wooden table, soft light, photograph", "blurred, dark"


def main(side: int = 256, steps: int = 20, turns: int = 3) -> None:
    keep_freed_memory()
    place = fullsize.folder()
    theirs: Any = fullsize.peer(place)
    pipe = sfumato.load(str(place), device="cpu")
    about = machine()

    def encode_theirs() -> Tensor:
        positive, negative = theirs.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
        return torch.cat([positive, negative])

    def encode_ours() -> Tensor:
        request = Request(PROMPT, negative_prompt=NEGATIVE)
        rows = pipe.model.family.condition(pipe.model, request, ("positive", "negative")).conditionings
        return torch.cat([c.context for c in rows.values() if c.context is not None])

    def draw_theirs() -> Tensor:
        seeded = torch.Generator().manual_seed(1)
        found: Tensor = theirs(
            PROMPT, negative_prompt=NEGATIVE, width=side, height=side, num_inference_steps=steps, generator=seeded,
            output_type="pt",
        ).images
        return found * 255.0

    def draw_ours() -> Tensor:
        result = pipe(PROMPT, negative_prompt=NEGATIVE, width=side, height=side, steps=steps, seed=1, noise="torch")
        return torch.from_numpy(result.pictures[0].pixels).permute(2, 0, 1)[None].float()

    text = compare("text encoding, two prompts", {"diffusers": encode_theirs, "sfumato": encode_ours}, turns)
    # Pixels are rounded to 8 bits on one side only: half a step of 255 is within the limit.
    whole = compare(
        f"whole picture, {side} x {side}, {steps} steps", {"diffusers": draw_theirs, "sfumato": draw_ours}, turns,
        warmups=1, limit=5e-3,
    )
    report(f"picture_{side}", [text, whole], about)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
