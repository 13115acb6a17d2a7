"""What a picture will be, seen while it condenses: a linear map from latents to colours, which costs nothing."""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sfumato.families.types import LatentFormat


def preview(x0: Tensor, latent: LatentFormat) -> list[Image.Image]:
    """Rough pictures of the clean latents, as large as the finished ones.

    Args:
        x0: [B, C, h, w] in the diffusion model's scale, as ``driver.Progress`` has it.
        latent: whose ``rgb`` is the map; without one, the first three channels stand for red, green and blue.
    """
    channels = x0.shape[1]
    rgb = torch.tensor(latent.rgb or torch.eye(channels, 3).div(2).tolist())  # [C, 3]
    colours = torch.einsum("bchw,cr->brhw", x0.float().cpu(), rgb)  # [B, 3, h, w]
    colours = F.interpolate(colours, scale_factor=latent.factor, mode="bilinear")
    pixels = ((colours + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pixels]
