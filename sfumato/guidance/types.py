"""What guidance is: arithmetic around the denoiser."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Guidance(Protocol):
    """Names the conditionings that it wants answered, and makes one answer of them.

    ``combine`` acts on network outputs (whatever they mean), ``constrain`` on the clean picture that results: guidance
    is linear in both, but rescaling is defined on the one and thresholding on the other.
    """

    def wants(self, sigma: float) -> tuple[str, ...]:
        """The names of the conditionings to be answered at ``sigma``, of ``"positive"``, ``"negative"``, ….

        What is not named is not computed.
        """

    def combine(self, outputs: Mapping[str, Tensor], sigma: float) -> Tensor:
        """One network output [B, C, H, W] made of those that ``wants`` named."""

    def constrain(self, x0: Tensor, sigma: float) -> Tensor:
        """The clean picture, made to obey (thresholding); most return it as it is."""
