"""Upscale: a picture becomes four times as large, by a model that is given the small one beside the latents.

The small one is made a little noisy first, and the model is told how much, so that it mistrusts what it sees by as much
(Ho et al., "Cascaded diffusion models for high fidelity image generation", 2022, section 4.2).
"""

from collections.abc import Sequence

import torch

from sfumato.sampling.diffusers_config import from_diffusers
from sfumato.tasks.text_to_image import Beginning, Drawing


class Upscaling(Drawing):
    """A request with a small image on its way."""

    def begin(self, seeds: Sequence[int]) -> Beginning:
        """Noise, and the small image beside it."""
        streams, given, level = self.streams(seeds), self.settled.given, self.settled.request.noise_level
        assert given is not None  # a request for this task has both
        assert level is not None
        small = given.pixels.to(self.model.device)  # [1, 3, h, w]
        schedule = from_diffusers(self.model.low_resolution).schedule
        sigma = schedule.sigma(torch.tensor(float(level), dtype=torch.float64))
        noisy = (small + streams(small.shape[1:]) * float(sigma)) * float(schedule.alpha(sigma))  # [n, 3, h, w]
        return Beginning(streams() * self.noise_scale(), streams, beside=noisy)
