"""What a network's output means, written down once, for training (``target``) and for sampling (``to_x0``).

All in the model's own frame: ``x = alpha * x0 + sigma * noise``. ``alpha`` and ``sigma`` are tensors that broadcast
against x, or plain numbers.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Scalar = Tensor | float


class Prediction(Protocol):
    """A pair of inverse readings: ``to_x0(alpha * x0 + sigma * n, target(x0, n, ...), ...) == x0``."""

    def to_x0(self, x: Tensor, output: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """The clean picture that the network's ``output`` at ``x`` stands for."""

    def target(self, x0: Tensor, noise: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        """What the network should have said."""


@dataclass(frozen=True)
class Epsilon:
    """The noise (Ho et al., "Denoising diffusion probabilistic models", 2020, eq. 14)."""

    def to_x0(self, x: Tensor, output: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        return (x - sigma * output) / alpha

    def target(self, x0: Tensor, noise: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        return noise


@dataclass(frozen=True)
class Velocity:
    """v = alpha * noise - sigma * x0, where alpha^2 + sigma^2 = 1 (Salimans and Ho, 2022, section 4)."""

    def to_x0(self, x: Tensor, output: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        return alpha * x - sigma * output

    def target(self, x0: Tensor, noise: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        return alpha * noise - sigma * x0


@dataclass(frozen=True)
class Sample:
    """The clean picture itself."""

    def to_x0(self, x: Tensor, output: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        return output

    def target(self, x0: Tensor, noise: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        return x0


@dataclass(frozen=True)
class Flow:
    """noise - x0, where alpha = 1 - t and sigma = t (Lipman et al., 2023; Liu et al., 2023)."""

    def to_x0(self, x: Tensor, output: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        return x - sigma * output

    def target(self, x0: Tensor, noise: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        return noise - x0


@dataclass(frozen=True)
class Preconditioned:
    """EDM's unit-variance output (Karras et al., 2022, table 1), whose own frame is x_ve / sqrt(sigma^2 + data^2).

    With c_in = alpha and c_in * sigma_ve = sigma: c_skip * x_ve = data^2 * alpha * x, and c_out = data * sigma.
    """

    data: float = 0.5

    def to_x0(self, x: Tensor, output: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        return self.data**2 * alpha * x + self.data * sigma * output

    def target(self, x0: Tensor, noise: Tensor, alpha: Scalar, sigma: Scalar) -> Tensor:
        # (x0 - data^2 alpha (alpha x0 + sigma n)) / (data sigma), with 1 - data^2 alpha^2 = sigma^2 cancelled by hand.
        return (sigma * x0 - self.data**2 * alpha * noise) / self.data


PREDICTIONS: dict[str, Prediction] = {
    "epsilon": Epsilon(), "v_prediction": Velocity(), "sample": Sample(), "flow": Flow(), "edm": Preconditioned(),
}
"""The names under which configs and checkpoints speak of them (diffusers' ``prediction_type``)."""
