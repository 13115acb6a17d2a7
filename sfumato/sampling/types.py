"""What passes between a sampler and whoever drives it."""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple, TypeAlias

from torch import Tensor


class Query(NamedTuple):
    """What a sampler asks: what clean picture do you see in this?"""

    x: Tensor  # [B, C, H, W], in the variance-exploding frame: x0 + sigma * noise
    sigma: float


class Estimate(NamedTuple):
    """What it is told."""

    x0: Tensor  # [B, C, H, W]
    log_variance: Tensor | None = None  # [B, C, H, W] in [-1, 1], of networks that learn it (Nichol and Dhariwal, 2021)


Sampler: TypeAlias = Generator[Query, Estimate, Tensor]
"""A running sampler: yields queries, is sent estimates, returns the final x (in the frame, at the last sigma)."""

Noise: TypeAlias = Callable[[], Tensor]
"""Fresh standard normal noise in the shape of x, at each call."""

Sigmas: TypeAlias = Sequence[float]
"""Decreasing; n steps have n + 1 of them; the last is 0 unless the schedule ends above it."""
