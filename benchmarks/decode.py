"""SD1.5's decoder beside diffusers' on the same weights (random, of true size), at 256 and 512 pixels.

Each subject has its own process, and the allocator that its user would have: glibc's own, or sfumato's setting of it.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from benchmarks.harness import Process, compare, machine, report
from sfumato.engine.allocator import keep_freed_memory
from sfumato.engine.pack import FAST, pack
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig

WORK = {256: 622e9, 512: 2514e9}
"""Operations of one picture, by its side in pixels, direct convolutions counted as such."""


def main(sizes: tuple[int, ...] = (256, 512), turns: int = 5) -> None:
    about, rows = machine(), []
    for size in sizes:
        subjects = {"diffusers": Process(diffusers, size), "sfumato": Process(sfumato, size)}
        rows.append(compare(f"decode, {size} x {size} pixels", subjects, turns, work=WORK.get(size, 0.0)))
        for subject in subjects.values():
            subject.end()
    report("decode", rows, about)


def latent(size: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(1, 4, size // 8, size // 8)


def network() -> Any:
    """The same in every process."""
    torch.manual_seed(0)
    built: Any = AutoencoderKL(  # type: ignore[no-untyped-call]
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512), layers_per_block=2,
    )
    return built.eval()


def diffusers(size: int) -> tuple[Callable[[], Tensor], dict[str, str]]:
    autoencoder, z = network(), latent(size)
    return lambda: autoencoder.decode(z).sample, {}


def sfumato(size: int) -> tuple[Callable[[], Tensor], dict[str, str]]:
    keep_freed_memory()
    with torch.device("meta"):
        autoencoder = Autoencoder(AutoencoderConfig())
    autoencoder.load_state_dict(network().state_dict(), assign=True)
    done, z = pack(autoencoder.eval().decoder, FAST), latent(size)
    weights = f"{done.after / done.before:.2f} of plain, {done.winograd} transformed"
    return lambda: autoencoder.decode(z), {"decoder's weights": weights}


if __name__ == "__main__":
    main()
