"""Image to image: a picture is drawn anew from some way back into noise (Meng et al., "SDEdit", 2022, section 3.3)."""

from collections.abc import Sequence

from torch import Tensor

from sfumato.engine.encode import encode
from sfumato.engine.streams import Streams
from sfumato.models.latents import Gaussian
from sfumato.tasks.given import Given
from sfumato.tasks.picture import Picture
from sfumato.tasks.text_to_image import Beginning, Drawing


class Redrawing(Drawing):
    """A request with an image on its way."""

    @property
    def given(self) -> Given:
        """The image, framed."""
        assert self.settled.given is not None  # a request for this task has one
        return self.settled.given

    def prepare(self) -> None:
        """Encode what the request holds, the image too."""
        super().prepare()
        self.warnings: dict[str, None] = {}
        self.seen = self.encoded(self.given.pixels)

    def encoded(self, pixels: Tensor) -> Gaussian:
        """What the autoencoder makes of [1, 3, H, W]."""
        self.keeper.use(self.model, "vae")
        latents, note = encode(self.model, pixels, self.holding.tile)
        self.warnings |= dict.fromkeys([note] if note else [])
        return latents

    def drawn(self, seen: Gaussian, streams: Streams) -> Tensor:
        """[n, C, h, w] in the diffusion model's scale, each picture's own draw."""
        return self.model.latent.from_autoencoder(seen.sample(streams()))

    def begin(self, seeds: Sequence[int]) -> Beginning:
        """The image, with as much noise as the first sigma has."""
        streams = self.streams(seeds)
        known = self.drawn(self.seen, streams)
        return Beginning(known + streams() * self.settled.sigmas[0], streams)

    def decode(self, latents: Tensor, seeds: Sequence[int]) -> tuple[list[Picture], list[str]]:
        """Pictures of latents, and what was to be said of the image beside."""
        pictures, warnings = super().decode(latents, seeds)
        return pictures, [*self.warnings, *warnings]
