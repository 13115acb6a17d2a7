"""Differences themselves, of weights and of biases: layers that an adapter changes wholly."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor


class Difference:
    """Of a weight, a norm's too."""

    name: ClassVar = "difference"
    parameter: ClassVar = "weight"
    endings: ClassVar[Mapping[str, str]] = {".diff": "difference", ".w_norm": "difference"}
    needed: ClassVar = (frozenset({"difference"}),)

    @staticmethod
    def rank(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """See ``Form``."""
        return None

    @staticmethod
    def delta(factors: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        """See ``Form``."""
        return factors["difference"].reshape(shape)


class BiasDifference(Difference):
    """Of a bias."""

    name: ClassVar = "difference of biases"
    parameter: ClassVar = "bias"
    endings: ClassVar[Mapping[str, str]] = {".diff_b": "difference", ".b_norm": "difference"}
