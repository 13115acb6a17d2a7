"""Kronecker products: Edalati et al., "KronA: parameter-efficient tuning with Kronecker adapter", 2022, section 3; as
LyCORIS has them for pictures (LoKr): Yeh et al., 2024.

The weight is made of blocks: ``w2``, once for every number of ``w1``, times that number. Each may be a product of two
thin matrices itself.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from sfumato.adapters.loha import product

_HALVES = ({"w1"}, {"w1_a", "w1_b"}), ({"w2"}, {"w2_a", "w2_b"})


class Lokr:
    """``kron(w1, w2)``: ``w1`` [a, b], ``w2`` [out / a, in / b, …], either of them whole or as ``…_a @ …_b``."""

    name: ClassVar = "lokr"
    parameter: ClassVar = "weight"
    endings: ClassVar[Mapping[str, str]] = {
        f".lokr_{role}": role for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    }
    needed: ClassVar = tuple(frozenset(one | two) for one in _HALVES[0] for two in _HALVES[1])

    @staticmethod
    def rank(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """See ``Form``."""
        return next((shapes[name][0] for name in ("w2_b", "w1_b") if name in shapes), None)

    @staticmethod
    def delta(factors: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        """See ``Form``."""
        one, two = (factors[n] if n in factors else product(factors, n, f"t{n[1]}") for n in ("w1", "w2"))
        return torch.kron(one.flatten(1), two.flatten(1)).reshape(shape)  # from [out, in * k * k]
