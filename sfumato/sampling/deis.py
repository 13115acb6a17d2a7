"""DEIS: Zhang and Chen, "Fast sampling of diffusion models with exponential integrator", 2023, eq. 15."""

import torch
from torch import Tensor

from sfumato.sampling.adams import in_log_sigma
from sfumato.sampling.types import Noise, Query, Sampler, Sigmas


def deis(x: Tensor, sigmas: Sigmas, noise: Noise, *, order: int = 2, lower_order_final: bool = False) -> Sampler:
    """log-rho-AB-DEIS (Zhang and Chen, 2023, eq. 15): the noise is extrapolated as a polynomial in log sigma.

    Args:
        order: 1 to 3 answers are used.
        lower_order_final: with fewer than 15 steps, end in orders 2 and 1. A last step to 0 is always of order 1.
    """
    steps = len(sigmas) - 1
    slopes: list[Tensor] = []  # newest first
    for i in range(steps):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        x0 = (yield Query(x, sigma)).x0
        slopes = [(x - x0) / sigma, *slopes[: order - 1]]
        now = min(len(slopes), steps - i) if lower_order_final and steps < 15 else len(slopes)
        x = torch.lerp(x0, x, sigma_next / sigma)
        if now > 1 and sigma_next > 0:
            nodes = [sigmas[i - j] for j in range(now)]
            for weight, older in zip(in_log_sigma(nodes, sigma, sigma_next)[1:], slopes[1:now], strict=True):
                x = x + (older - slopes[0]) * weight
    return x
