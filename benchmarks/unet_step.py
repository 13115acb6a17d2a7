"""One call of SD1.5's U-Net, both guidance halves, beside diffusers' on the same weights (random, of true size).

Each subject has its own process, and the allocator that its user would have: glibc's own, or sfumato's setting of it.
Prompt and schedule are prepared beforehand, as a run of many steps does.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from benchmarks.harness import Process, compare, machine, report
from sfumato.engine.allocator import keep_freed_memory
from sfumato.engine.pack import BALANCED, LARGE, pack
from sfumato.models.unet import SD1, UNet
from sfumato.nn.conditioning import Conditioning

WORK = {32: 360e9, 64: 1606e9}
"""Operations of one call with two rows, by latent size, direct convolutions counted as such."""


def main(sizes: tuple[int, ...] = (32, 64), turns: int = 5) -> None:
    about, rows = machine(), []
    for size in sizes:
        subjects = {
            "diffusers": Process(diffusers, size),
            "sfumato, balanced": Process(sfumato, size, BALANCED),
            "sfumato, large": Process(sfumato, size, LARGE),
        }
        rows.append(compare(f"U-Net step, {size} x {size}, 2 rows", subjects, turns, work=WORK.get(size, 0.0)))
        subjects["sfumato, int8 (lossy)"] = Process(sfumato, size, BALANCED, True)
        lossy = {name: subjects[name] for name in ("diffusers", "sfumato, int8 (lossy)")}
        rows.append(
            compare(f"U-Net step, {size} x {size}, 2 rows, lossy", lossy, turns, limit=0.1, work=WORK.get(size, 0.0))
        )
        for subject in subjects.values():
            subject.end()
    report("unet_step", rows, about)


def inputs(size: int) -> tuple[Tensor, Tensor]:
    """Noisy latents [1, 4, size, size] and the text states of two prompts."""
    torch.manual_seed(1)
    return torch.randn(1, 4, size, size), torch.randn(2, 77, 768)


def network() -> Any:
    """The same in every process."""
    torch.manual_seed(0)
    built: Any = UNet2DConditionModel(cross_attention_dim=768)  # type: ignore[no-untyped-call]
    return built.eval()


def diffusers(size: int) -> tuple[Callable[[], Tensor], dict[str, str]]:
    unet = network()
    x, context = inputs(size)
    both = x.repeat(2, 1, 1, 1)
    return lambda: unet(both, 500, context).sample, {}


def sfumato(size: int, growth: float, int8: bool = False) -> tuple[Callable[[], Tensor], dict[str, str]]:
    keep_freed_memory()
    with torch.device("meta"):
        unet = UNet(SD1)
    unet.load_state_dict(network().state_dict(), assign=True)
    done = pack(unet, growth, int8=int8)
    x, context = inputs(size)
    with torch.inference_mode():
        conditioning = unet.prepare(Conditioning(context=context))
        times = unet.prepare_times(torch.tensor([500.0]))[0]
    weights = f"{done.after / done.before:.2f} of plain, {done.winograd} transformed"
    return lambda: unet(x, times, conditioning), {"int8" if int8 else f"weights at growth {growth}": weights}


if __name__ == "__main__":
    main()
