"""How a step to a lower sigma is split into a longer step down and fresh noise up."""

import math


def split(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """(down, up) with down^2 + up^2 = sigma_next^2, up being eta times the deviation of the posterior of DDPM.

    In the variance-exploding frame the posterior of x at sigma_next, given x at sigma and x0, has the variance
    sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2 whatever the schedule (Song et al., 2021, eq. 16), so the split is
    as right for flow matching as for DDPM. ``up`` never exceeds ``sigma_next``.
    """
    if eta == 0.0 or sigma_next >= sigma:
        return sigma_next, 0.0
    up = min(sigma_next, eta * sigma_next * math.sqrt((sigma - sigma_next) * (sigma + sigma_next)) / sigma)
    return math.sqrt((sigma_next - up) * (sigma_next + up)), up
