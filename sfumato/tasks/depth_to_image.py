"""Depth to image: a picture is drawn anew with what is near and what is far left where it was.

For models that are given a picture of depths beside the latents (Stability AI, Stable Diffusion 2, 2022), as MiDaS
makes them (Ranftl et al., 2020): of inverse depth, so that what is near is white.
"""

from collections.abc import Sequence

from sfumato.tasks.image_to_image import Redrawing
from sfumato.tasks.text_to_image import Beginning


class DepthToImage(Redrawing):
    """A request with an image and its depths on its way."""

    def prepare(self) -> None:
        """Encode what the request holds."""
        super().prepare()
        self.depths = self.given.latent_depth(self.model.latent.factor).to(self.model.device)  # [1, 1, h, w]

    def begin(self, seeds: Sequence[int]) -> Beginning:
        """The image with noise, its depths beside it."""
        return super().begin(seeds)._replace(beside=self.depths.expand(len(seeds), -1, -1, -1))
