"""The shipped model's picture, from a cold start and warm, beside a diffusers pipeline of the same size.

The peer has the same U-Net, text encoder and tokenizer, with the same weights. diffusers has no autoencoder of the
shipped one's kind (patches and a shortcut at the ends), so it has its own kind with as many parameters, random; and
since its pipeline does not take the shipped scheduler, both draw warm with DPM-Solver++ (2M) on the same sigmas.
There each turn goes on to pixels, and the latents are compared. A cold start is a fresh process, from its start to the
file with the picture; the files that it reads are in the system's cache.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.harness import Made, Process, Program, Subject, compare
from benchmarks.options import options
from benchmarks.report import machine, report
from sfumato.checkpoints.hashes import file_hashes
from sfumato.checkpoints.write import atomic_folder
from sfumato.core.shipped import FOLDERS, SHIPPED
from sfumato.families.load import find
from sfumato.models.autoencoder import AutoencoderConfig

UNET = FOLDERS[SHIPPED] / "unet" / "diffusion_pytorch_model.safetensors"
PLACE = Path(gettempdir()) / f"sfumato-benchmark-shipped-peer-{file_hashes(UNET).autov2}"
"""By the weights' hash: once trained anew, the model needs another peer."""
PROMPT, STEPS, SCALE = "pizza", 25, 3.0
VAE = AutoencoderConfig(
    block_out_channels=(16, 32, 96, 192), down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=48, norm_num_groups=16,
    mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False,
)  # fmt: skip
"""The shipped one has 5.9 M parameters, and so has this; pictures are 8 times as wide as their latents."""
SCHEDULER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.0, "steps_offset": 1}
LOSSY = ("sfumato int8", "sfumato fast")
COLD = f"""
import torch
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained({str(PLACE)!r}, dtype=torch.float32, safety_checker=None)
pipeline.set_progress_bar_config(disable=True)
seeded = torch.Generator().manual_seed(0)
made = pipeline({PROMPT!r}, num_inference_steps={STEPS}, guidance_scale={SCALE}, generator=seeded)
made.images[0].save("{{out}}")
"""


def main(arguments: Sequence[str] = ()) -> None:
    chosen = options(__doc__, rounds=0, turns=5).parse_args(arguments)
    peer_folder()
    about = machine()
    draw = [sys.executable, "-m", "sfumato", PROMPT, "--seed", "0", "--quiet", "-o", "{out}"]
    cold: dict[str, Subject] = {
        "diffusers": Program([sys.executable, "-c", COLD], ".png"), "sfumato": Program(draw, ".png"),
    }  # fmt: skip
    rows = [compare("first picture from a cold start, the shipped model", chosen.of(cold), chosen.turns)]
    warm: dict[str, Subject] = {
        "diffusers": Process(diffusers), "sfumato": Process(sfumato), "sfumato int8": Process(sfumato, "int8"),
        "sfumato fast": Process(sfumato, "fast"),
    }  # fmt: skip
    name = f"picture, the shipped model, {STEPS} steps, warm"
    # The weights are stored in half precision and the latents drift apart by what rounding each step adds.
    rows.append(compare(name, chosen.of(warm), chosen.turns, lossy=LOSSY, limit=1e-3))
    report("first_picture", rows, about, chosen.trial)


def peer_folder() -> None:
    """What diffusers opens."""
    if PLACE.exists():
        return
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    theirs = FOLDERS[SHIPPED]
    unet: Any = UNet2DConditionModel
    scheduler: Any = DPMSolverMultistepScheduler
    pipeline: Any = StableDiffusionPipeline
    with atomic_folder(PLACE) as made:
        pipeline(
            peers.autoencoder(VAE).half(), CLIPTextModel.from_pretrained(theirs / "text_encoder"),
            CLIPTokenizer.from_pretrained(theirs / "tokenizer"), unet.from_pretrained(theirs / "unet"),
            scheduler(**SCHEDULER), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        ).to(torch.float16).save_pretrained(made)  # fmt: skip


def diffusers() -> Made:
    from diffusers import StableDiffusionPipeline

    kind: Any = StableDiffusionPipeline
    pipeline = kind.from_pretrained(PLACE, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    found: dict[str, Tensor] = {}

    def after(_: Any, step: int, time: Any, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        found.update(kept)
        return kept

    def draw() -> Tensor:
        pipeline(
            PROMPT, num_inference_steps=STEPS, guidance_scale=SCALE, generator=torch.Generator().manual_seed(0),
            callback_on_step_end=after,
        )  # fmt: skip
        return found["latents"]

    return draw, {}


def sfumato(how: str = "") -> Made:
    """``how``: ``int8``, ``fast``, or neither."""
    import sfumato
    from sfumato.engine.allocator import keep_freed_memory

    keep_freed_memory()
    pipe = sfumato.load(device="cpu", quantize="int8" if how == "int8" else None)
    pipe.model.scheduler = find(PLACE).scheduler
    draw = partial(
        pipe, PROMPT, steps=STEPS, cfg_scale=SCALE, seed=0, noise="torch", lossy=("fast",) if how == "fast" else ()
    )
    return lambda: draw().latents, {}


if __name__ == "__main__":
    main(sys.argv[1:])
