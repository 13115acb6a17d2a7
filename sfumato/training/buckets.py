"""Aspect-ratio buckets: the few sizes among which pictures of all shapes are shared out, each to the likest one."""

import math

from sfumato.core.errors import ConfigError

Size = tuple[int, int]
"""(width, height) in pixels."""


def buckets(resolution: int, step: int = 64, most: float = 2.0) -> tuple[Size, ...]:
    """Sizes of about ``resolution`` squared pixels and never more, the square first, then by width.

    Args:
        step: both sides are multiples of it.
        most: the longer side is at most this many times the shorter.

    Raises:
        ConfigError: ``resolution`` is no multiple of ``step``.
    """
    if resolution < step or resolution % step:
        raise ConfigError(f"resolution = {resolution}: must be a multiple of {step} for aspect-ratio buckets.")
    found = {(resolution, resolution)}
    for short in range(step, resolution, step):
        long = resolution * resolution // short // step * step
        if long <= most * short:
            found |= {(short, long), (long, short)}
    # Of several heights for one width, the largest uses the memory best.
    best = {width: max(h for w, h in found if w == width) for width, _ in found}
    return tuple(sorted(best.items(), key=lambda size: (size[0] != size[1], size)))


def likest(size: Size, among: tuple[Size, ...]) -> int:
    """The index of the bucket whose aspect ratio is nearest in proportion: the one that cuts off least."""
    ratio = math.log(size[0] / size[1])
    return min(range(len(among)), key=lambda i: (abs(math.log(among[i][0] / among[i][1]) - ratio), i))
