"""Inpainting: part of a picture is painted anew, by a model made for it or by any other."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from sfumato.sampling.known import keep
from sfumato.tasks.image_to_image import Redrawing
from sfumato.tasks.picture import Picture
from sfumato.tasks.text_to_image import Beginning


class Inpainting(Redrawing):
    """A request with an image and a mask on its way.

    A model made for inpainting is given the mask and the latents of what it leaves beside the noisy ones (Rombach et
    al., 2022, appendix E.2.2). Any other is shown the known part at every question, as noisy as the question is.
    """

    def prepare(self) -> None:
        """Encode what the request holds, what the mask leaves of the image too."""
        super().prepare()
        self.mask = self.given.latent_mask(self.model.latent.factor).to(self.model.device)  # [1, 1, h, w]
        if self.settled.beside:
            self.left = self.encoded(self.given.hidden)

    def begin(self, seeds: Sequence[int]) -> Beginning:
        """The image with noise; where all steps are done, noise alone."""
        streams, first = self.streams(seeds), self.settled.sigmas[0]
        blank, beside = self.settled.request.strength == 1.0, self.settled.beside > 0
        mask = self.mask.expand(len(seeds), -1, -1, -1)
        known = None if beside and blank else self.drawn(self.seen, streams)
        noise = streams()
        x = noise * self.noise_scale() if blank or known is None else known + noise * first
        left = torch.cat([mask, self.drawn(self.left, streams)], dim=1) if beside else None  # [n, 1 + C, h, w]
        if known is None and len(self.runs) > 1:  # the refiner may be of the other kind
            known = self.drawn(self.seen, streams)
        if known is None:
            return Beginning(x, streams, beside=left)
        kept = partial(keep, known=known, mask=mask, noise=noise, blank=first if blank else None)
        return Beginning(x, streams, kept, left)

    def decode(self, latents: Tensor, seeds: Sequence[int]) -> tuple[list[Picture], list[str]]:
        """Pictures of latents on the image as it was."""
        pictures, warnings = super().decode(latents, seeds)
        return [self.given.onto(picture) for picture in pictures], warnings
