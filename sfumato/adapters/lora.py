"""Low-rank adaptation: Hu et al., "LoRA: low-rank adaptation of large language models", 2021, section 4.1.

The change of a layer's weight is a product of two thin matrices, scaled by ``alpha / rank``. A convolution's is the
same with the kernel in the first factor ("LoCon"), or with a small kernel of its own between two 1 x 1 convolutions.
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
    """``W + strength * alpha / rank * up @ down``."""

    name: ClassVar = "lora"
    endings: ClassVar[Mapping[str, str]] = {
        ".alpha": "alpha", ".lora_mid.weight": "mid",
        **{down: "down" for down, _ in _PAIRS}, **{up: "up" for _, up in _PAIRS},
    }
    needed: ClassVar = frozenset({"down", "up"})

    @staticmethod
    def change(weight: Tensor, factors: Mapping[str, Tensor], strength: float) -> Tensor:
        """See ``Form``. ``down`` [r, in, …], ``up`` [out, r, …], ``mid`` [r, r, k, k]; ``alpha``: r unless given."""
        down, up = factors["down"], factors["up"]
        rank = down.shape[0]
        if "mid" in factors:
            product = torch.einsum("oa,abhw,bi->oihw", up.flatten(1), factors["mid"], down.flatten(1))
        else:
            product = up.flatten(1) @ down.flatten(1)  # [out, in * k * k]
        scale = strength * factors["alpha"] / rank if "alpha" in factors else strength
        return weight + scale * product.reshape(weight.shape)
