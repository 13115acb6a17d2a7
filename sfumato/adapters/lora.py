"""Low-rank adaptation: Hu et al., "LoRA: low-rank adaptation of large language models", 2021, section 4.1.

The change of a layer's weight is a product of two thin matrices. A convolution's is the same with the kernel in the
first factor ("LoCon"), or with a small kernel of its own between two 1 x 1 convolutions.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

_PAIRS = (
    (".lora_down.weight", ".lora_up.weight"),  # kohya
    (".lora_A.weight", ".lora_B.weight"),  # peft
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora.down.weight", ".lora.up.weight"),  # diffusers
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (".lora_conv_layer.down.weight", ".lora_conv_layer.up.weight"),
)


class Lora:
    """``up @ down``: ``down`` [r, in, …], ``up`` [out, r, …], and perhaps ``mid`` [r, r, k, k] between them."""

    name: ClassVar = "lora"
    parameter: ClassVar = "weight"
    endings: ClassVar[Mapping[str, str]] = {
        ".lora_mid.weight": "mid", **{down: "down" for down, _ in _PAIRS}, **{up: "up" for _, up in _PAIRS},
    }
    needed: ClassVar = (frozenset({"down", "up"}),)

    @staticmethod
    def rank(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """See ``Form``."""
        return shapes["down"][0]

    @staticmethod
    def delta(factors: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        """See ``Form``."""
        down, up = factors["down"].flatten(1), factors["up"].flatten(1)
        if "mid" in factors:
            return torch.einsum("oa,abhw,bi->oihw", up, factors["mid"], down)
        return (up @ down).reshape(shape)  # from [out, in * k * k]
