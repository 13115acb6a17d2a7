"""The autoencoder of models that denoise pixels: none."""

from torch import Tensor, nn

from sfumato.models.latents import Gaussian


class Pixels(nn.Module):
    """A picture is its own latent, of three channels, or of one that is its grey.

    Args:
        channels: 3 or 1.
    """

    factor = 1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.decoder = nn.Identity()

    def encode(self, x: Tensor) -> Gaussian:
        """[B, 3, H, W] -> [B, channels, H, W], for certain."""
        return Gaussian.point(x.mean(1, keepdim=True) if self.channels == 1 else x)

    def decode(self, z: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, 3, H, W]."""
        x: Tensor = self.decoder(z)
        return x.expand(-1, 3, -1, -1) if self.channels == 1 else x
