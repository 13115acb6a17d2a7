"""How like two pictures are, pixel by pixel."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.errors import ConfigError


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """[B, 3, H, W] uint8, twice -> [B] peak signal-to-noise ratio in dB; infinite where every pixel is the same."""
    error = (a.double() - b.double()).square().flatten(1).mean(1)
    return 10.0 * torch.log10(255.0**2 / error)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al., 2004, eq. 13; Gaussian windows of 11 pixels, deviation 1.5, K = 0.01, 0.03).

    Args:
        a, b: [B, C, H, W] uint8, sides of at least 11 pixels.

    Returns:
        [B], at most 1; the mean over channels and over the windows that lie wholly within the picture.

    Raises:
        ConfigError: smaller pictures, which hold no window.
    """
    if min(a.shape[-2:]) < 11:
        raise ConfigError(f"SSIM is taken over windows of 11 pixels; these pictures are {a.shape[-1]} x {a.shape[-2]}.")
    x, y = a.double() / 255.0, b.double() / 255.0
    at = torch.arange(11, dtype=torch.float64) - 5.0
    line = torch.exp(-at.square() / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2  # [11, 11]
    kernel = window.expand(x.shape[1], 1, 11, 11)

    def local(z: Tensor) -> Tensor:
        return F.conv2d(z, kernel, groups=z.shape[1])

    mean_x, mean_y = local(x), local(y)
    var_x, var_y = local(x * x) - mean_x**2, local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return found.flatten(1).mean(1)
