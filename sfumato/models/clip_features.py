"""CLIP's picture tower as a network whose inner states are compared (see ``perceptual``)."""

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.models.clip_vision import MEAN, STD, VisionTransformer


class ClipFeatures(nn.Module):
    """The patches' states after every layer.

    Pictures are brought to the tower's size whole, neither cropped nor kept in shape: what is compared is all of them.
    """

    def __init__(self, tower: VisionTransformer) -> None:
        super().__init__()
        self.tower = tower
        self.widths = (tower.config.hidden_size,) * tower.config.num_hidden_layers

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, 3, H, W] in [-1, 1] -> [B, D, S / P, S / P] each, pictures of side S and patches of side P."""
        config = self.tower.config
        size, side = (config.image_size, config.image_size), config.image_size // config.patch_size
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)  # [B, 3, S, S]
        mean, std = (x.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        states = self.tower(((x + 1.0) / 2.0 - mean) / std).hidden[1:]
        # The class token, which stands at no place, is left out.
        return [state[:, 1:].transpose(1, 2).unflatten(2, (side, side)) for state in states]
