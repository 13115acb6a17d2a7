"""Linear multistep method of k-diffusion (K-LMS): Adams-Bashforth with the integrals of the actual steps."""

import torch
from torch import Tensor

from sfumato.sampling.adams import in_sigma
from sfumato.sampling.types import Noise, Query, Sampler, Sigmas


def lms(x: Tensor, sigmas: Sigmas, noise: Noise, *, order: int = 4) -> Sampler:
    """Adams-Bashforth on dx / dsigma = (x - x0) / sigma for steps of any lengths (k-diffusion; Liu et al., 2022, 3.3).

    This is also what is called rho-AB-DEIS (Zhang and Chen, 2023) and iPNDM with variable steps.

    Args:
        order: 1 to 4 answers are used.
    """
    slopes: list[Tensor] = []  # newest first
    for i in range(len(sigmas) - 1):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        x0 = (yield Query(x, sigma)).x0
        slopes = [(x - x0) / sigma, *slopes[: order - 1]]
        nodes = [sigmas[i - j] for j in range(len(slopes))]
        x = torch.lerp(x0, x, sigma_next / sigma)
        # The weights sum to the step, so what is left over beside Euler's step are differences of slopes.
        for weight, older in zip(in_sigma(nodes, sigma, sigma_next)[1:], slopes[1:], strict=True):
            x = x + (older - slopes[0]) * weight
    return x
