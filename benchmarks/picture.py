"""From prompt to pixels beside the peers: SD1.5 of true size with random weights, the same noise.

Each subject has its own process, and draws one picture in few steps before it is measured. Lossy ways are told with
the PSNR of their pictures; on random weights that says how far the computation is off, not what an eye would see (for
that see ``benchmarks.lossy``). stable-diffusion.cpp draws from noise of its own, so that its pictures are not compared.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from benchmarks import folders, openvino_peer, peers
from benchmarks.harness import Made, Process, Subject, compare, peak_rate
from benchmarks.options import options
from benchmarks.report import machine, report
from benchmarks.sd_cpp import StableDiffusionCpp
from sfumato.engine.pack import Eight

LOSSY = ("OpenVINO int8", "sfumato int8", "sfumato fast", "sfumato int8 fast", "sfumato fp8", "sfumato fp8 compiled")
SCALE = 7.5


def main(arguments: Sequence[str] = ()) -> None:
    flags = options(__doc__, rounds=3, turns=1)
    flags.add_argument("--model", choices=peers.VAES, default="sd15")
    flags.add_argument("--sizes", nargs="+", type=int, default=[256, 512], help="pixels")
    flags.add_argument("--counts", nargs="+", type=int, default=[1, 4], help="pictures at once")
    flags.add_argument("--steps", type=int, default=20)
    flags.add_argument("--device", default="cpu", help="on another than the CPU all subjects live side by side")
    flags.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    chosen = flags.parse_args(arguments)
    name = chosen.model
    folders.folder(name), folders.tiny_decoder()
    for count in chosen.counts:
        for side in chosen.sizes:
            about, told = machine(), (name, side, chosen.steps, count)
            exact = (chosen.device, chosen.dtype) == ("cpu", "float32")
            subjects = on_cpu(told) if exact else elsewhere(told, chosen.device, chosen.dtype)
            what = f"{'picture' if count == 1 else f'{count} pictures'}, {peers.TITLES[name]}"
            row = compare(
                f"{what}, {side} x {side}, {chosen.steps} steps{'' if exact else f', {chosen.dtype}'}",
                chosen.of(subjects), chosen.turns if exact else chosen.turns * chosen.rounds,
                warmups=0 if exact else 1, rounds=chosen.rounds if exact else 0, lossy=LOSSY, span=255.0,
                # Pixels are rounded to 8 bits on one side only: half a step of 255 is within the limit. In half
                # precision each step rounds what the last one left.
                limit=5e-3 if exact else 0.1, work=work(name, side, chosen.steps, count),
                rate=None if exact else partial(peak_rate, 8192, 8, chosen.device, getattr(torch, chosen.dtype)),
            )  # fmt: skip
            kind = f"picture_{name}_{side}" + (f"_x{count}" if count > 1 else "")
            report(kind if exact else f"{kind}_{chosen.device}_{chosen.dtype}", [row], about, chosen.trial)


def on_cpu(told: tuple[str, int, int, int]) -> dict[str, Subject]:
    """All peers, in float32."""
    return {
        "diffusers": Process(diffusers, *told),
        "diffusers compiled": Process(diffusers, *told, True),
        "OpenVINO": Process(openvino, *told),
        "stable-diffusion.cpp": StableDiffusionCpp(*told[1:]),
        "sfumato": Process(sfumato, *told),
        "OpenVINO int8": Process(openvino, *told, True),
        "sfumato int8": Process(sfumato, *told, "int8"),
        "sfumato fast": Process(sfumato, *told, "fast"),
        "sfumato int8 fast": Process(sfumato, *told, "int8 fast"),
    }


def elsewhere(told: tuple[str, int, int, int], device: str, dtype: str) -> dict[str, Subject]:
    """Beside diffusers, eager and compiled."""
    return {
        "diffusers": Process(diffusers, *told, False, device, dtype),
        "diffusers compiled": Process(diffusers, *told, True, device, dtype),
        "diffusers compiled, CUDA graphs": Process(diffusers, *told, True, device, dtype, "reduce-overhead"),
        "sfumato": Process(sfumato, *told, "", device, dtype),
        "sfumato compiled": Process(sfumato, *told, "compiled", device, dtype),
        "sfumato fp8": Process(sfumato, *told, "fp8", device, dtype),
        "sfumato fp8 compiled": Process(sfumato, *told, "fp8 compiled", device, dtype),
    }


def work(name: str, side: int, steps: int, count: int) -> float:
    """Operations from prompt to pixels, the text's encoding left out."""
    size = side // 8
    return steps * peers.unet_work(peers.UNETS[name], size, count) + peers.decoder_work(peers.VAES[name], size, count)


def diffusers(
    name: str, side: int, steps: int, count: int, compiled: bool = False, device: str = "cpu", dtype: str = "float32",
    mode: str | None = None,
) -> Made:
    theirs = folders.peer(name, torch_dtype=getattr(torch, dtype)).to(device)
    if compiled:
        theirs.unet, theirs.vae.decode = torch.compile(theirs.unet, mode=mode), torch.compile(theirs.vae.decode)
    return drawn_by(theirs, side, steps, count), {}


def openvino(name: str, side: int, steps: int, count: int, int8: bool = False) -> Made:
    unet = openvino_peer.unet_of_folder(name, 2 * count, side // 8, int8)
    decoder = openvino_peer.decoder_of_folder(name, count, side // 8)
    theirs = folders.peer(name, unet=None, vae=None)
    theirs.unet, theirs.vae = unet, decoder
    return drawn_by(theirs, side, steps, count), {}


def drawn_by(theirs: Any, side: int, steps: int, count: int) -> "partial[Tensor]":
    """What a pipeline of diffusers draws; it has drawn once."""
    draw = partial(draw_theirs, theirs, side, count)
    draw(2)
    return partial(draw, steps)


@torch.inference_mode()
def draw_theirs(theirs: Any, side: int, count: int, steps: int) -> Tensor:
    """[count, 3, side, side] in [0, 255]."""
    # Left to draw its own, in half precision it draws other numbers.
    shape = 1, 4, side // 8, side // 8
    noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(1 + i)) for i in range(count)])
    found: Tensor = theirs(
        folders.PROMPT, negative_prompt=folders.NEGATIVE, width=side, height=side, num_inference_steps=steps,
        guidance_scale=SCALE, num_images_per_prompt=count, latents=noise.to(theirs.dtype), output_type="pt",
    ).images  # fmt: skip
    return found.float().cpu() * 255.0


def sfumato(
    name: str, side: int, steps: int, count: int, how: str = "", device: str = "cpu", dtype: str = "float32"
) -> Made:
    """``how``: ``int8``, ``fp8``, ``fast``, ``compiled``, several of them, or none."""
    import sfumato
    from sfumato.engine.allocator import keep_freed_memory

    keep_freed_memory()
    ways = how.split()
    fast = "fast" in ways
    pipe = sfumato.load(
        str(folders.folder(name)), device=device, dtype=dtype, compile="default" if "compiled" in ways else None,
        quantize=next((way for way in get_args(Eight) if way in ways), None),
        vae_tiny=folders.tiny_decoder() if fast else None,
    )  # fmt: skip

    def draw(steps: int) -> Tensor:
        result = pipe(
            folders.PROMPT, negative_prompt=folders.NEGATIVE, width=side, height=side, steps=steps, cfg_scale=SCALE,
            seed=1, count=count, noise="torch", lossy=("fast",) if fast else (),
        )  # fmt: skip
        said = (note.partition(" Measured on")[0] for note in result.notes if note.startswith("Lossy"))
        notes.update({f"sfumato {how}": note for note in said})
        return torch.from_numpy(np.stack([picture.pixels for picture in result.pictures])).movedim(-1, 1).float()

    notes: dict[str, str] = {}
    draw(2)
    return partial(draw, steps), notes


if __name__ == "__main__":
    main(sys.argv[1:])
