"""Permenter and Yuan, "Interpreting and improving diffusion models from an optimization perspective", 2024."""

from itertools import pairwise

import torch
from torch import Tensor

from sfumato.sampling.types import Noise, Query, Sampler, Sigmas


def gradient_estimation(x: Tensor, sigmas: Sigmas, noise: Noise, *, gamma: float = 2.0) -> Sampler:
    """Algorithm 2: Euler along gamma * slope + (1 - gamma) * last slope, in which the answers' errors partly cancel.

    Args:
        gamma: 1 is Euler's method; the paper's choice is 2.
    """
    last: Tensor | None = None
    for sigma, sigma_next in pairwise(sigmas):
        x0 = (yield Query(x, sigma)).x0
        slope = (x - x0) / sigma
        x = torch.lerp(x0, x, sigma_next / sigma)
        if last is not None and sigma_next > 0:  # the last step is taken to the answer itself
            x = x + (slope - last) * ((gamma - 1.0) * (sigma_next - sigma))
        last = slope
    return x
