"""Noise for a batch of pictures, each with a stream of its own, so that no picture depends on its neighbours."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sfumato.core import rng


class Streams:
    """Standard normal noise [B, C, H, W]; row i is the next draw of the stream of ``seeds[i]``.

    ``philox`` streams are functions of (seed, number of the draw). ``torch`` streams are one CPU ``torch.Generator`` a
    picture, which gives what diffusers gives for the same seeds. Both are drawn on the CPU in float32 and moved, so
    every device sees the same numbers.
    """

    def __init__(
        self, seeds: Sequence[int], shape: tuple[int, ...], device: torch.device, kind: Literal["philox", "torch"]
    ) -> None:
        """Args:
            shape: of one picture's latent, (C, H, W).
        """
        self.seeds, self.shape, self.device, self.kind = list(seeds), shape, device, kind
        self.draws = 0
        # torch takes seeds below 2^64 as they are.
        self.generators = [torch.Generator().manual_seed(s) for s in self.seeds] if kind == "torch" else []

    def __call__(self, shape: tuple[int, ...] | None = None) -> Tensor:
        """The next draw of every stream.

        Args:
            shape: of one picture's draw, (C, H, W), if it is another than usual.
        """
        shape = shape or self.shape
        if self.kind == "torch":
            drawn = [torch.randn((1, *shape), generator=g) for g in self.generators]
        else:
            count = torch.Size(shape).numel()
            drawn = [
                torch.from_numpy(rng.normal(seed, count, self.draws)).float().reshape(1, *shape)
                for seed in self.seeds
            ]
        self.draws += 1
        return torch.cat(drawn).to(self.device)
