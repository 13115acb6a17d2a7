"""Latent consistency models: Luo et al., "Latent consistency models", 2023, algorithm 3."""

from itertools import pairwise

from torch import Tensor

from sfumato.sampling.types import Noise, Query, Sampler, Sigmas


def lcm(x: Tensor, sigmas: Sigmas, noise: Noise) -> Sampler:
    """Multistep consistency sampling (Song et al., 2023, algorithm 1; Luo et al., 2023, algorithm 3).

    The boundary coefficients of the paper are 0 and 1 to within 1e-5 from the first training step on, and left out.
    """
    for sigma, sigma_next in pairwise(sigmas):
        x = (yield Query(x, sigma)).x0
        if sigma_next > 0:
            x = x + noise() * sigma_next
    return x
