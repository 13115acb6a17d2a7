"""Painting part of a picture: Lugmayr et al., "RePaint", 2022, section 4.1, without its resampling."""

import torch
from torch import Tensor

from sfumato.sampling.types import Query, Sampler


def keep(
    sampler: Sampler, end: float, known: Tensor, mask: Tensor, noise: Tensor, blank: float | None = None
) -> Sampler:
    """A sampler whose picture is known where the mask is 0: there each question shows the picture at its noise.

    Args:
        end: the sigma at which the result is, in the known part too.
        known: [B, C, H, W] the clean picture.
        mask: [B, 1, H, W], 1 where the sampler paints, 0 where the picture stays.
        noise: [B, C, H, W] standard normal, the same in all questions.
        blank: the sigma at which questions show what the sampler asks everywhere, which is noise alone.
    """
    query = next(sampler)
    while True:
        x, sigma = query
        estimate = yield Query(x if sigma == blank else torch.lerp(known + noise * sigma, x, mask), sigma)
        try:
            query = sampler.send(estimate._replace(x0=torch.lerp(known, estimate.x0, mask)))
        except StopIteration as stop:
            result: Tensor = torch.lerp(known + noise * end, stop.value, mask)
            return result
