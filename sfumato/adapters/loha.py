"""Low-rank Hadamard products: Hyeon-Woo et al., "FedPara: low-rank Hadamard product for communication-efficient
federated learning", 2022, section 2.2. LyCORIS calls them LoHa.

Two products of rank r, multiplied element by element, have a rank of up to r². A convolution's may have small kernels
of their own (ibid., proposition 3; Tucker's decomposition).
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor


class Loha:
    """``(w1_a @ w1_b) * (w2_a @ w2_b)``: [out, r] and [r, in * k * k]; with ``t1`` and ``t2`` [r, r, k, k], [r, out]
    and [r, in]."""

    name: ClassVar = "loha"
    parameter: ClassVar = "weight"
    endings: ClassVar[Mapping[str, str]] = {
        f".hada_{role}": role for role in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")
    }
    needed: ClassVar = (frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}),)

    @staticmethod
    def rank(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """See ``Form``."""
        return shapes["w1_b"][0]

    @staticmethod
    def delta(factors: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        """See ``Form``."""
        one, two = (product(factors, f"w{i}", f"t{i}") for i in (1, 2))
        return (one * two).reshape(shape)


def product(factors: Mapping[str, Tensor], name: str, kernel: str) -> Tensor:
    """``NAME_a @ NAME_b``, [out, in * k * k]; with a kernel of its own [out, in, k, k]."""
    a, b = factors[f"{name}_a"], factors[f"{name}_b"]
    return torch.einsum("abhw,ao,bi->oihw", factors[kernel], a, b) if kernel in factors else a @ b
