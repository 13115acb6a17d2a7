"""What every autoencoder has in common: pictures in [-1, 1] become a distribution over latents, and come back."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """A diagonal Gaussian over latents (Kingma and Welling, "Auto-encoding variational Bayes", 2014).

    Autoencoders without a variance (tiny, VQ) return one of variance zero, so that every caller may ``sample``.
    """

    mean: Tensor  # [B, C, h, w]
    log_variance: Tensor  # [B, C, h, w]; -inf where the latent is certain

    @staticmethod
    def of_moments(moments: Tensor) -> "Gaussian":
        """[B, 2 C, h, w], mean then log-variance; the latter is held in [-30, 20], where exp stays finite."""
        mean, log_variance = moments.chunk(2, dim=1)
        return Gaussian(mean, log_variance.clamp(-30.0, 20.0))

    @staticmethod
    def point(latent: Tensor) -> "Gaussian":
        """All the probability at one latent."""
        return Gaussian(latent, torch.full_like(latent, -torch.inf))

    def mode(self) -> Tensor:
        """[B, C, h, w] the most probable latent."""
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """[B, C, h, w] a draw; ``noise`` is standard normal, in the shape of the mean."""
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def kl(self) -> Tensor:
        """[B] divergence from the standard normal, in nats a picture (ibid., appendix B)."""
        terms = self.mean.square() + self.log_variance.exp() - 1.0 - self.log_variance
        return 0.5 * terms.flatten(1).sum(1)


class Codec(Protocol):
    """What the engine and the trainers know of an autoencoder."""

    @property
    def factor(self) -> int:
        """Pixels a latent position, along each side."""

    def encode(self, x: Tensor) -> Gaussian:
        """[B, 3, H, W] in [-1, 1] -> a distribution over [B, C, H / factor, W / factor]."""

    def decode(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, h * factor, w * factor], about [-1, 1], not clamped."""
