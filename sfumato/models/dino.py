"""DINOv2 (Oquab et al., 2023): a vision transformer that learned from pictures alone; its features tell sets apart.

Parameter names are those of the published files of transformers' ``Dinov2Model``.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.models.clip_encoder import check_heads
from sfumato.nn.attention import attend
from sfumato.nn.layers import Conv2d, Linear

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of each channel of ImageNet's pictures, in [0, 1]."""

SIDE = 224
"""Pixels a side of the pictures whose features are compared (Stein et al., 2023)."""


@dataclass(frozen=True)
class DinoConfig:
    """Field names are those of transformers' config.json; as it is, ViT-S/14."""

    hidden_size: Annotated[int, "width D of the states"] = 384
    num_hidden_layers: Annotated[int, "number of transformer layers"] = 12
    num_attention_heads: Annotated[int, "heads of each attention"] = 6
    mlp_ratio: Annotated[int, "width inside the feed-forward layers, in D"] = 4
    image_size: Annotated[int, "side of the pictures that the positions were learned on, in pixels"] = 518
    patch_size: Annotated[int, "side of a patch, in pixels"] = 14
    layer_norm_eps: Annotated[float, "of every layer norm"] = 1e-6

    def __post_init__(self) -> None:
        check_heads("DinoConfig", self.hidden_size, self.num_attention_heads)


class Embeddings(nn.Module):
    """Patches, class token and positions to vectors."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        dim, self.patch = config.hidden_size, config.patch_size
        self.side = config.image_size // config.patch_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))  # of training; a part of every checkpoint
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + self.side**2, dim))
        self.patch_embeddings = nn.ModuleDict({"projection": Conv2d(3, dim, self.patch, stride=self.patch)})

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + N, D]; positions are interpolated to the picture's grid."""
        patches = self.patch_embeddings["projection"](x)  # [B, D, h, w]
        first, rest = self.position_embeddings[:, :1], self.position_embeddings[:, 1:]
        if patches.shape[-2:] != (self.side, self.side):
            grid = rest.transpose(1, 2).reshape(1, -1, self.side, self.side)  # [1, D, side, side]
            grid = F.interpolate(grid, patches.shape[-2:], mode="bicubic", align_corners=False)
            rest = grid.flatten(2).transpose(1, 2)
        tokens = patches.flatten(2).transpose(1, 2) + rest
        return torch.cat([(self.cls_token + first).expand(len(x), -1, -1), tokens], dim=1)


class Attention(nn.Module):
    """Every token to every other."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention = nn.ModuleDict({name: Linear(dim, dim) for name in ("query", "key", "value")})
        self.output = nn.ModuleDict({"dense": Linear(dim, dim)})

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> the same."""
        q, k, v = (
            self.attention[name](x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )  # [B, heads, L, d]
        y: Tensor = self.output["dense"](attend(q, k, v).transpose(1, 2).flatten(2))
        return y


class Scale(nn.Module):
    """A factor a channel (Touvron et al., 2021)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> the same."""
        return x * self.lambda1


class Layer(nn.Module):
    """Attention and feed-forward, each added to what comes in."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        dim, eps = config.hidden_size, config.layer_norm_eps
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attention = Attention(dim, config.num_attention_heads)
        self.layer_scale1, self.layer_scale2 = Scale(dim), Scale(dim)
        inner = config.mlp_ratio * dim
        self.mlp = nn.ModuleDict({"fc1": Linear(dim, inner), "fc2": Linear(inner, dim)})

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> the same."""
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        y: Tensor = x + self.layer_scale2(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))
        return y


class Dino(nn.Module):
    """Pictures to features."""

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = nn.Module()
        self.encoder.layer = nn.Sequential(*(Layer(config) for _ in range(config.num_hidden_layers)))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] as ``preprocess`` makes them, sides multiples of a patch -> [B, D], the class token."""
        x = self.encoder.layer(self.embeddings(x))  # type: ignore[operator]
        y: Tensor = self.layernorm(x[:, 0])
        return y


def preprocess(pictures: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] -> [B, 3, 224, 224], resized whole (bicubic, antialiased) and normalised."""
    x = (pictures + 1.0) / 2.0
    if x.shape[-2:] != (SIDE, SIDE):
        x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True).clamp(0.0, 1.0)
    mean, std = (x.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    return (x - mean) / std
