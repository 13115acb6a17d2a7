"""CLIP's text encoder (Radford et al., 2021; OpenCLIP's larger ones: Cherti et al., 2023).

Parameter names are those of transformers' ``CLIPTextModelWithProjection``, ``text_model.`` in front, as in every
checkpoint folder of the field.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.core.errors import RequestError
from sfumato.models.clip_encoder import Activation, Encoder, check_heads
from sfumato.nn.layers import Linear

LEGACY_EOS = 2
"""What old config files call the end-of-text token, wrongly: there it is the greatest id of the vocabulary."""


@dataclass(frozen=True)
class ClipTextConfig:
    """Field names are those of transformers' config.json."""

    vocab_size: Annotated[int, "number of tokens"] = 49408
    hidden_size: Annotated[int, "width D of the text states"] = 768
    intermediate_size: Annotated[int, "width inside the feed-forward layers"] = 3072
    num_hidden_layers: Annotated[int, "number of transformer layers"] = 12
    num_attention_heads: Annotated[int, "heads of each attention"] = 12
    max_position_embeddings: Annotated[int, "the longest sequence, in tokens"] = 77
    hidden_act: Annotated[Activation, "quick_gelu (OpenAI) or gelu (OpenCLIP)"] = "quick_gelu"
    layer_norm_eps: Annotated[float, "of every layer norm"] = 1e-5
    projection_dim: Annotated[int, "width P of the space shared with pictures"] = 768
    bos_token_id: Annotated[int, "start of text"] = 49406
    eos_token_id: Annotated[int, "end of text, where the sequence is pooled; 2: the greatest id (old files)"] = 49407
    pad_token_id: Annotated[int, "what fills a sequence up"] = 1
    with_projection: Annotated[bool, "has text_projection"] = False

    def __post_init__(self) -> None:
        check_heads("ClipTextConfig", self.hidden_size, self.num_attention_heads)


class TextStates(NamedTuple):
    """What the encoder says of B sequences of L tokens."""

    last: Tensor  # [B, L, D], after the last layer that was not skipped and the final norm
    hidden: tuple[Tensor, ...]  # layers + 1 of [B, L, D]: the embeddings, then each layer's output, not normalised
    pooled: Tensor  # [B, D], at the end of text, after all layers and the final norm
    projected: Tensor | None  # [B, P], pooled in the space shared with pictures


class Embeddings(nn.Module):
    """Tokens and positions to vectors."""

    def __init__(self, vocabulary: int, positions: int, dim: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, dim)
        self.position_embedding = nn.Embedding(positions, dim)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, ids: Tensor) -> Tensor:
        """[B, L] integers -> [B, L, D]."""
        y: Tensor = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        return y


class TextTransformer(nn.Module):
    """The tower without its projection."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config.vocab_size, config.max_position_embeddings, config.hidden_size)
        self.encoder = Encoder(
            config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size,
            config.hidden_act, config.layer_norm_eps,
        )
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor, layers_skipped: int = 0, seen: Tensor | None = None) -> TextStates:
        """See ``ClipText.forward``; nothing is projected here."""
        layers, longest = self.config.num_hidden_layers, self.config.max_position_embeddings
        if not 0 <= layers_skipped < max(1, layers):
            raise RequestError(f"{layers_skipped} layers cannot be skipped: this text encoder has {layers}.")
        if ids.shape[1] > longest:
            raise RequestError(f"{ids.shape[1]} tokens are too many: this text encoder takes {longest} at a time.")
        mask = None
        if seen is not None:
            before = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
            mask = before & seen[:, None, None, :]  # [B, 1, L, L]
        hidden = self.encoder(self.embeddings(ids), causal=mask is None, mask=mask)
        full = self.final_layer_norm(hidden[-1])  # [B, L, D]
        pooled = full[torch.arange(len(ids), device=ids.device), self.end(ids)]  # [B, D]
        last = full if layers_skipped == 0 else self.final_layer_norm(hidden[-1 - layers_skipped])
        return TextStates(last, hidden, pooled, None)

    def end(self, ids: Tensor) -> Tensor:
        """[B, L] -> [B], the position of the first end-of-text token of each sequence."""
        if self.config.eos_token_id != LEGACY_EOS:
            return (ids == self.config.eos_token_id).int().argmax(-1)
        # Tokens added to the vocabulary (textual inversion) have greater ids still, and end nothing.
        return ids.where(ids < self.config.vocab_size, 0).argmax(-1)


class ClipText(nn.Module):
    """Token ids to text states."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)
        self.text_projection = None
        if config.with_projection:
            self.text_projection = Linear(config.hidden_size, config.projection_dim, bias=False)
            nn.init.normal_(self.text_projection.weight, std=config.hidden_size**-0.5)

    def forward(self, ids: Tensor, layers_skipped: int = 0, seen: Tensor | None = None) -> TextStates:
        """Encode sequences of tokens; each attends to itself and to what stands before it.

        Args:
            ids: [B, L] integers, L at most ``max_position_embeddings``; a batch of sequences is padded after the end
                of text, which nothing before it sees.
            layers_skipped: layers left out at the end for ``last``; ``pooled`` and ``projected`` are always of all.
            seen: [B, L] bool, False at tokens that no token is to attend to; the first must be seen. None: all are.

        Raises:
            RequestError: more layers skipped than there are, or a sequence that is too long.
        """
        states: TextStates = self.text_model(ids, layers_skipped, seen)
        if self.text_projection is None:
            return states
        return states._replace(projected=self.text_projection(states.pooled))


CLIP_L = ClipTextConfig(eos_token_id=LEGACY_EOS, bos_token_id=0)
"""OpenAI's ViT-L/14: Stable Diffusion 1.x, and the first encoder of XL."""

SD2_TEXT = ClipTextConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu",
    projection_dim=512, eos_token_id=LEGACY_EOS, bos_token_id=0,
)
"""OpenCLIP's ViT-H/14 without its last layer: Stable Diffusion 2.x."""

OPENCLIP_H = ClipTextConfig(
    hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, hidden_act="gelu",
    projection_dim=1024, with_projection=True,
)
"""OpenCLIP's ViT-H/14, whole."""

OPENCLIP_BIGG = ClipTextConfig(
    hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu",
    projection_dim=1280, eos_token_id=LEGACY_EOS, bos_token_id=0, with_projection=True,
)
"""OpenCLIP's ViT-bigG/14: the second encoder of XL, the only one of its refiner."""
