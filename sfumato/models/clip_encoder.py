"""The transformer inside both of CLIP's towers (Radford et al., 2021, section 2.4).

Parameter names are transformers'.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import ConfigError
from sfumato.nn.attention import attend
from sfumato.nn.layers import Linear

Activation = Literal["quick_gelu", "gelu"]


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The exact GELU, or OpenAI's approximation x * sigmoid(1.702 x) (Hendrycks and Gimpel, 2016, section 2)."""
    return x * torch.sigmoid(1.702 * x) if activation == "quick_gelu" else F.gelu(x)


def check_heads(where: str, hidden_size: int, heads: int) -> None:
    """Raises a ConfigError where heads do not divide the width."""
    if heads < 1 or hidden_size % heads:
        raise ConfigError(f"{where}: hidden_size = {hidden_size} cannot be split in num_attention_heads = {heads}.")


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = Linear(dim, dim)
        self.v_proj = Linear(dim, dim)
        self.q_proj = Linear(dim, dim)
        self.out_proj = Linear(dim, dim)

    def forward(self, x: Tensor, residual: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
        """[B, L, D], and what is added to the result -> [B, L, D]."""
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, L, d]
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = attend(q, k, v, mask, causal).transpose(1, 2).flatten(2)  # [B, L, D]
        y: Tensor = self.out_proj(mixed, residual=residual)
        return y


class MLP(nn.Module):
    """Two linear layers and the activation between them."""

    def __init__(self, dim: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation
        self.fc1 = Linear(dim, inner)
        self.fc2 = Linear(inner, dim)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """[B, L, D], and what is added to the result -> [B, L, D]."""
        y: Tensor = self.fc2(activate(self.fc1(x), self.activation), residual=residual)
        return y


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, dim: int, heads: int, inner: int, activation: Activation, eps: float) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, heads)
        self.layer_norm1 = nn.LayerNorm(dim, eps=eps)
        self.mlp = MLP(dim, inner, activation)
        self.layer_norm2 = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor, causal: bool, mask: Tensor | None) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        x = self.self_attn(self.layer_norm1(x), residual=x, causal=causal, mask=mask)
        y: Tensor = self.mlp(self.layer_norm2(x), residual=x)
        return y


class Encoder(nn.Module):
    """A stack of layers that keeps what each of them said."""

    def __init__(
        self, layers: int, dim: int, heads: int, inner: int, activation: Activation, eps: float,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, heads, inner, activation, eps) for _ in range(layers))
        self._initialise(dim)

    def _initialise(self, dim: int) -> None:
        """OpenAI's initialisation, which shrinks what is added to the residual stream by the depth."""
        deep = dim**-0.5 * (2 * max(1, len(self.layers))) ** -0.5
        for layer in self.layers:
            assert isinstance(layer, Layer)
            attention, mlp = layer.self_attn, layer.mlp
            for module, std in (
                (attention.q_proj, dim**-0.5), (attention.k_proj, dim**-0.5), (attention.v_proj, dim**-0.5),
                (attention.out_proj, deep), (mlp.fc1, (2 * dim) ** -0.5), (mlp.fc2, deep),
            ):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, causal: bool, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """[B, L, D] -> the input and the output of each layer, layers + 1 of [B, L, D].

        Args:
            mask: broadcastable to [B, heads, L, L], True attends; in place of ``causal``.
        """
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], causal, mask))
        return tuple(states)
