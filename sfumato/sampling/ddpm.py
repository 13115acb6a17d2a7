"""DDPM: Ho et al., "Denoising diffusion probabilistic models", 2020, algorithm 2."""

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from sfumato.core.errors import RequestError
from sfumato.sampling.types import Noise, Query, Sampler, Sigmas

Variance = Literal["fixed_small", "fixed_large", "learned_range"]


def ddpm(x: Tensor, sigmas: Sigmas, noise: Noise, *, variance: Variance = "fixed_small") -> Sampler:
    """Ancestral sampling (Ho et al., 2020, algorithm 2) on any subset of the steps.

    Args:
        variance: of the noise. ``fixed_small`` is that of the posterior (Ho et al., eq. 7), ``fixed_large`` is beta,
            ``learned_range`` what the network says between the two, in logarithms (Nichol and Dhariwal, 2021, eq. 15).
            beta is a notion of variance-preserving schedules, so the latter two are for those only.

    Raises:
        RequestError: a learned variance is wanted and the network says none.
    """
    for sigma, sigma_next in pairwise(sigmas):
        answer = yield Query(x, sigma)
        ratio = sigma_next / sigma
        x = torch.lerp(answer.x0, x, ratio**2)
        if sigma_next == 0:
            return x
        gap = (sigma - sigma_next) * (sigma + sigma_next)
        small, large = ratio**2 * gap, gap * (1.0 + sigma_next**2) / (1.0 + sigma**2)
        if variance == "learned_range":
            if answer.log_variance is None:
                raise RequestError("This model learned no variance: use the sampler with fixed_small or fixed_large.")
            share = (answer.log_variance + 1.0) / 2.0
            middle = share * math.log(large) + (1.0 - share) * math.log(small)
            x = x + noise() * (0.5 * middle).exp()
        else:
            x = x + noise() * math.sqrt(small if variance == "fixed_small" else large)
    return x
