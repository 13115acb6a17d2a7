"""Many captions drawn together: each row of a forward is another caption's picture."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sfumato.core.request import Request
from sfumato.engine.decode import decode
from sfumato.engine.denoiser import Denoiser
from sfumato.engine.driver import run
from sfumato.families.types import Model
from sfumato.tasks.text_to_image import Drawing

TOGETHER = 32


@torch.inference_mode()
def draw(model: Model, requests: Sequence[Request]) -> Tensor:
    """Pictures of one size, what ``text_to_image`` gives for each request of one picture up to rounding.

    Returns:
        [N, 3, H, W] uint8.
    """
    pictures = []
    for start in range(0, len(requests), TOGETHER):
        drawings = [Drawing(model, request) for request in requests[start : start + TOGETHER]]
        jobs = []
        shared: Denoiser | None = None
        for drawing in drawings:
            drawing.prepare()
            [made] = drawing.runs
            shared = shared or replace(made.denoiser(), rows=2 * TOGETHER)
            begun = drawing.begin(drawing.settled.seeds)
            jobs.append(made.job(begun.x, begun, None, shared))
        latents = torch.cat([drawing.end(x) for drawing, x in zip(drawings, run(jobs), strict=True)])
        pictures.append(decode(model, latents)[0])
    return torch.cat(pictures)

