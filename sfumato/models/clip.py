"""CLIP: both towers, and the space in which a picture lies near its caption (Radford et al., 2021, figure 3).

Parameter names are those of transformers' ``CLIPModel``.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.models.clip_text import ClipTextConfig, TextStates, TextTransformer
from sfumato.models.clip_vision import ClipVisionConfig, VisionStates, VisionTransformer
from sfumato.nn.layers import Linear


@dataclass(frozen=True)
class ClipConfig:
    """Field names are those of transformers' config.json; the ``projection_dim`` here is the one that counts."""

    text_config: Annotated[ClipTextConfig, "the text tower"] = field(default_factory=ClipTextConfig)
    vision_config: Annotated[ClipVisionConfig, "the picture tower"] = field(default_factory=ClipVisionConfig)
    projection_dim: Annotated[int, "width P of the shared space"] = 768
    logit_scale_init_value: Annotated[float, "log of the inverse temperature at the start of training"] = 2.6592


class Similarity(NamedTuple):
    """How well B texts and B' pictures fit."""

    texts: Tensor  # [B, P] of length 1
    pictures: Tensor  # [B', P] of length 1
    logits: Tensor  # [B, B'], texts by pictures: cosine * exp(logit_scale)


class Clip(nn.Module):
    """Texts and pictures to vectors of one space."""

    MAX_LOGIT_SCALE = math.log(100.0)
    """Above which training clips ``logit_scale`` (ibid., section 2.5)."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        text, vision = config.text_config, config.vision_config
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.text_model = TextTransformer(text)
        self.vision_model = VisionTransformer(vision)
        self.visual_projection = Linear(vision.hidden_size, config.projection_dim, bias=False)
        self.text_projection = Linear(text.hidden_size, config.projection_dim, bias=False)
        nn.init.normal_(self.visual_projection.weight, std=vision.hidden_size**-0.5)
        nn.init.normal_(self.text_projection.weight, std=text.hidden_size**-0.5)

    def encode_text(self, ids: Tensor) -> TextStates:
        """[B, L] integers -> states; ``projected`` [B, P] is not normalised."""
        states: TextStates = self.text_model(ids)
        return states._replace(projected=self.text_projection(states.pooled))

    def encode_picture(self, x: Tensor) -> VisionStates:
        """[B, 3, S, S] as ``clip_vision.preprocess`` makes them -> states; ``projected`` [B, P] is not normalised."""
        states: VisionStates = self.vision_model(x)
        return states._replace(projected=self.visual_projection(states.pooled))

    def forward(self, ids: Tensor, x: Tensor) -> Similarity:
        """Compare every text with every picture.

        Args:
            ids: [B, L] integers.
            x: [B', 3, S, S] as ``clip_vision.preprocess`` makes them.
        """
        text, picture = self.encode_text(ids).projected, self.encode_picture(x).projected
        assert text is not None
        assert picture is not None
        text, picture = F.normalize(text, dim=-1), F.normalize(picture, dim=-1)
        return Similarity(text, picture, self.logit_scale.exp() * text @ picture.T)
