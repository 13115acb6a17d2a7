"""DDIM: Song et al., "Denoising diffusion implicit models", 2021, eq. 12 and 16."""

from itertools import pairwise

import torch
from torch import Tensor

from sfumato.sampling.ancestral import split
from sfumato.sampling.types import Noise, Query, Sampler, Sigmas


def ddim(x: Tensor, sigmas: Sigmas, noise: Noise, *, eta: float = 0.0, s_noise: float = 1.0) -> Sampler:
    """DDIM (Song et al., 2021, eq. 12). In this frame it is Euler's step, and with eta = 1 the ancestral one.

    Args:
        eta: the share of fresh noise, 0 (none) to 1 (as much as DDPM's posterior).
        s_noise: a factor on the fresh noise.
    """
    for sigma, sigma_next in pairwise(sigmas):
        x0 = (yield Query(x, sigma)).x0
        down, up = split(sigma, sigma_next, eta)
        x = torch.lerp(x0, x, down / sigma)
        if up > 0:
            x = x + noise() * (s_noise * up)
    return x
