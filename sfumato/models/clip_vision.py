"""CLIP's picture encoder, a vision transformer (Radford et al., 2021; Dosovitskiy et al., 2021).

Parameter names are those of transformers' ``CLIPVisionModelWithProjection``, the historic spelling of
``pre_layrnorm`` included.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import ConfigError, RequestError
from sfumato.models.clip_encoder import Activation, Encoder, check_heads
from sfumato.nn.layers import Conv2d, Linear

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of each channel of CLIP's training pictures, in [0, 1]."""


@dataclass(frozen=True)
class ClipVisionConfig:
    """Field names are those of transformers' config.json."""

    hidden_size: Annotated[int, "width D of the states"] = 1024
    intermediate_size: Annotated[int, "width inside the feed-forward layers"] = 4096
    num_hidden_layers: Annotated[int, "number of transformer layers"] = 24
    num_attention_heads: Annotated[int, "heads of each attention"] = 16
    num_channels: Annotated[int, "channels of a picture"] = 3
    image_size: Annotated[int, "side of a picture, in pixels"] = 224
    patch_size: Annotated[int, "side of a patch, in pixels"] = 14
    hidden_act: Annotated[Activation, "quick_gelu (OpenAI) or gelu (OpenCLIP)"] = "quick_gelu"
    layer_norm_eps: Annotated[float, "of every layer norm"] = 1e-5
    projection_dim: Annotated[int, "width P of the space shared with texts"] = 768

    def __post_init__(self) -> None:
        check_heads("ClipVisionConfig", self.hidden_size, self.num_attention_heads)
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ConfigError(
                f"ClipVisionConfig: image_size = {self.image_size} is no multiple of patch_size = {self.patch_size}."
            )

    @property
    def patches(self) -> int:
        """Patches of a picture."""
        return (self.image_size // self.patch_size) ** 2


class VisionStates(NamedTuple):
    """What the encoder says of B pictures of N patches."""

    last: Tensor  # [B, 1 + N, D], after the last layer: the class token, then the patches; not normalised
    hidden: tuple[Tensor, ...]  # layers + 1 of [B, 1 + N, D]: what enters the first layer, then each layer's output
    pooled: Tensor  # [B, D], the class token, normalised
    projected: Tensor | None  # [B, P], pooled in the space shared with texts


class Embeddings(nn.Module):
    """Patches, class token and positions to vectors."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.class_embedding = nn.Parameter(torch.empty(dim))
        self.patch_embedding = Conv2d(
            config.num_channels, dim, config.patch_size, stride=config.patch_size, bias=False
        )
        self.position_embedding = nn.Embedding(1 + config.patches, dim)
        nn.init.normal_(self.class_embedding, std=dim**-0.5)
        nn.init.normal_(self.position_embedding.weight, std=dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + N, D]."""
        patches = self.patch_embedding(x).flatten(2).transpose(1, 2)  # [B, N, D]
        tokens = torch.cat([self.class_embedding.expand(len(x), 1, -1), patches], dim=1)
        y: Tensor = tokens + self.position_embedding.weight
        return y


class VisionTransformer(nn.Module):
    """The tower without its projection."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = Encoder(
            config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size,
            config.hidden_act, config.layer_norm_eps,
        )
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> VisionStates:
        """See ``ClipVision.forward``; nothing is projected here."""
        side = self.config.image_size
        if x.shape[-2:] != (side, side):
            raise RequestError(
                f"A picture of {x.shape[-1]} x {x.shape[-2]} pixels does not fit this encoder, which takes "
                f"{side} x {side}; use `preprocess`."
            )
        hidden = self.encoder(self.pre_layrnorm(self.embeddings(x)), causal=False)
        return VisionStates(hidden[-1], hidden, self.post_layernorm(hidden[-1][:, 0]), None)


class ClipVision(nn.Module):
    """Pictures to vectors in the space shared with texts."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionTransformer(config)
        self.visual_projection = Linear(config.hidden_size, config.projection_dim, bias=False)
        nn.init.normal_(self.visual_projection.weight, std=config.hidden_size**-0.5)

    def forward(self, x: Tensor) -> VisionStates:
        """Encode pictures.

        Args:
            x: [B, 3, image_size, image_size] as ``preprocess`` makes them.

        Raises:
            RequestError: pictures of another size.
        """
        states: VisionStates = self.vision_model(x)
        return states._replace(projected=self.visual_projection(states.pooled))


def preprocess(pictures: Tensor, size: int = 224) -> Tensor:
    """Pictures as CLIP was trained on them: shorter side resized (bicubic, antialiased), centre cropped, normalised.

    Args:
        pictures: [B, 3, H, W] in [-1, 1].
        size: side of the result, in pixels.

    Returns:
        [B, 3, size, size].
    """
    height, width = pictures.shape[-2:]
    short = min(height, width)
    new = (int(size * height / short), int(size * width / short))
    x = (pictures + 1.0) / 2.0
    if new != (height, width):
        # Bicubic curves overshoot; pictures of bytes, which is what CLIP saw, cannot.
        x = F.interpolate(x, new, mode="bicubic", align_corners=False, antialias=True).clamp(0.0, 1.0)
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    x = x[..., top : top + size, left : left + size]
    mean, std = (x.new_tensor(v)[:, None, None] for v in (MEAN, STD))
    return (x - mean) / std


CLIP_L_VISION = ClipVisionConfig()
"""OpenAI's ViT-L/14: the safety checker of Stable Diffusion 1.x, aesthetic scores."""

OPENCLIP_H_VISION = ClipVisionConfig(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, hidden_act="gelu",
    projection_dim=1024,
)
"""OpenCLIP's ViT-H/14: IP-Adapter, image variations of Stable Diffusion 2."""

OPENCLIP_BIGG_VISION = ClipVisionConfig(
    hidden_size=1664, intermediate_size=8192, num_hidden_layers=48, num_attention_heads=16, hidden_act="gelu",
    projection_dim=1280,
)
"""OpenCLIP's ViT-bigG/14."""
