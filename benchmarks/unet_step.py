"""One call of a U-Net, both guidance halves, beside the peers' on the same weights (random, of true size).

Prompt and schedule are prepared beforehand, as a run of many steps does. Each subject has its own process, and the
allocator that its user would have: glibc's own, or sfumato's setting of it. No two are in memory at once, since XL's
weights alone are 10.3 GB; it is not quantised for OpenVINO, and not packed for the most memory, which would not fit
into 24 GB.
"""

import sys
from collections.abc import Sequence

import torch

from benchmarks import openvino_peer, peers
from benchmarks.harness import Made, Process, Subject, compare
from benchmarks.options import options
from benchmarks.report import machine, report

LOSSY = ("OpenVINO int8", "sfumato int8")
SIZES = {"sd15": [32, 64], "sdxl": [64, 128], "tiny": [16]}
"""Of the latents: an eighth of the picture's side."""


def main(arguments: Sequence[str] = ()) -> None:
    flags = options(__doc__, rounds=3, turns=3)
    flags.add_argument("--models", nargs="+", choices=peers.UNETS, default=["sd15", "sdxl"])
    flags.add_argument("--sizes", nargs="+", type=int, help="of the latents")
    chosen = flags.parse_args(arguments)
    for name in chosen.models:
        for size in chosen.sizes or SIZES[name]:
            about, config = machine(), peers.UNETS[name]
            subjects: dict[str, Subject] = {
                "diffusers": Process(peers.made_unet, config, size),
                "diffusers compiled": Process(peers.made_unet, config, size, True),
                "OpenVINO": Process(openvino_peer.made_unet, name, size),
                "sfumato": Process(sfumato, name, size, name == "sdxl"),
                "sfumato balanced": Process(sfumato, name, size, True),
                "OpenVINO int8": Process(openvino_peer.made_unet, name, size, True),
                "sfumato int8": Process(sfumato, name, size, False, True),
            }
            if name == "sdxl":
                del subjects["sfumato balanced"], subjects["OpenVINO int8"]
            row = compare(
                f"U-Net step, {peers.TITLES[name]}, {size} x {size}, 2 rows", chosen.of(subjects), chosen.turns,
                work=peers.unet_work(config, size), rounds=chosen.rounds, lossy=LOSSY,
            )  # fmt: skip
            report(f"unet_step_{name}_{size}", [row], about, chosen.trial)


def sfumato(name: str, size: int, balanced: bool = False, int8: bool = False) -> Made:
    from sfumato.checkpoints.load import outlines
    from sfumato.engine.allocator import keep_freed_memory
    from sfumato.engine.pack import BALANCED, LARGE, pack
    from sfumato.models.unet import UNet
    from sfumato.nn.conditioning import Conditioning
    from sfumato.nn.layers import Conv2d

    keep_freed_memory()
    config = peers.UNETS[name]
    with torch.device("meta"):
        unet = UNet(config)
    unet.load_state_dict(peers.unet(config).state_dict(), assign=True)
    asked = peers.ask(config, size)
    told = Conditioning(context=asked.context, pooled=asked.pooled, sizes=asked.sizes)
    shapes: dict[str, torch.Size] = {}  # of the pictures that convolutions are given, on which their choice depends
    with outlines(), torch.inference_mode():
        outline = UNet(config)
        for layer, module in outline.named_modules():
            if isinstance(module, Conv2d):
                module.register_forward_pre_hook(lambda _, x, layer=layer: shapes.update({layer: x[0].shape}))
        outline(asked.x.to("meta"), torch.tensor([float(asked.time)]), told.map(lambda tensor: tensor.to("meta")))
    done = pack(unet, BALANCED if balanced else LARGE, eight="int8" if int8 else None, shapes=shapes)
    with torch.inference_mode():
        conditioning = unet.prepare(told)
        times = unet.prepare_times(torch.tensor([float(asked.time)]), told)[0]
    label = "sfumato int8" if int8 else "sfumato balanced" if balanced and name != "sdxl" else "sfumato"
    weights = f"weights {done.after / done.before:.2f} of plain, {done.winograd} transformed, {done.eight} in 8 bits"
    return lambda: unet(asked.x, times, conditioning), {label: done.why or weights}


if __name__ == "__main__":
    main(sys.argv[1:])
