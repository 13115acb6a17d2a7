"""What an objective gives back."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor


class Loss(NamedTuple):
    """A loss to go down by, and what it is made of.

    Attributes:
        total: scalar, float32, differentiable.
        parts: scalars by name, detached, unweighted, for the curves.
        each: [B] the loss of each picture, detached.
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    each: Tensor
