"""The transformer between a U-Net's residual blocks: pictures attend to themselves and to a text."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from sfumato.nn.attention import attend
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.layers import GEGLU, Conv2d, GroupNorm, LayerNorm, Linear
from sfumato.nn.merging import Merge, share_at
from sfumato.nn.rows import expand_rows

PROJECTIONS, FUSED = ("to_q", "to_k", "to_v"), "to_qkv"
"""Of an attention, on the way in; and what stands for them where they are fused."""


class Attention(nn.Module):
    """The projections around ``attend``.

    Attributes:
        width: channels of a head.
        to_qkv: stands for the three projections in where they were fused.
        native: attend by the native kernel, which gives no gradients.

    Args:
        dim: of the tokens that ask.
        context_dim: of the tokens that answer; None: the same.
        heads: they share ``dim`` evenly.
        bias: of the three projections in; the one out always has it.
        upcast: attend in float32 where the tokens are in half precision.
        name: the place in the network, for the tap.
    """

    def __init__(
        self, dim: int, heads: int, context_dim: int | None = None, bias: bool = False, upcast: bool = False,
        name: str = "",
    ) -> None:
        super().__init__()
        self.heads, self.width, self.upcast, self.name = heads, dim // heads, upcast, name
        self.native = False
        self.to_q = Linear(dim, dim, bias=bias)
        self.to_k = Linear(context_dim or dim, dim, bias=bias)
        self.to_v = Linear(context_dim or dim, dim, bias=bias)
        self.to_out = nn.ModuleList([Linear(dim, dim)])
        self.to_qkv: nn.Module | None = None

    def fuse(self) -> None:
        """Make the three projections of the same tokens one, for inference; exact to rounding.

        Their weights are replaced by one matrix, which is saved as the three under their own names.
        """
        if self.to_qkv is not None:
            return
        layers = [cast(nn.Linear, getattr(self, name)) for name in PROJECTIONS]
        with torch.device("meta"):
            whole = Linear(layers[0].in_features, 3 * layers[0].out_features, bias=layers[0].bias is not None)
        for kind, _ in [*whole.named_parameters()]:
            joined = torch.cat([layer.get_parameter(kind).detach() for layer in layers])
            setattr(whole, kind, nn.Parameter(joined, requires_grad=False))
        for name in PROJECTIONS:
            delattr(self, name)
        self.to_qkv = whole.train(self.training)
        self.register_state_dict_post_hook(_apart)  # type: ignore[no-untyped-call]

    def split(self, x: Tensor) -> Tensor:
        """[B, N, heads * d] -> [B, heads, N, d], a view."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def queries(self, x: Tensor) -> Tensor:
        """[B, N, dim] -> [B, heads, N, d]."""
        return self.split(self.to_q(x))

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, context_dim] -> keys and values, [B, heads, L, d] each."""
        return self.split(self.to_k(context)), self.split(self.to_v(context))

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, dim] -> queries, keys and values of the same tokens, [B, heads, N, d] each."""
        if self.to_qkv is None:
            return self.queries(x), *self.keys_values(x)
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        return self.split(q), self.split(k), self.split(v)

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, residual: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Attend, join the heads, project and add: [B, heads, N, d] -> [B, N, dim]."""
        if self.upcast and q.dtype in (torch.float16, torch.bfloat16):
            y = attend(q.float(), k.float(), v.float(), mask, name=self.name).to(q.dtype)
        else:
            y = attend(q, k, v, mask, name=self.name, native=self.native)
        out: Tensor = self.to_out[0](y.transpose(1, 2).flatten(2), residual)
        return out


def _apart(attention: nn.Module, state: dict[str, Tensor], prefix: str, _: object) -> None:
    """A fused projection's weights as the three that checkpoints know."""
    for kind in ("weight", "bias"):
        whole = state.pop(f"{prefix}{FUSED}.{kind}", None)
        if whole is not None:
            parts = zip(PROJECTIONS, whole.chunk(3), strict=True)
            state.update({f"{prefix}{name}.{kind}": part for name, part in parts})


class SelfAttention(Attention):
    """Every token attends to every other."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[B, N, dim] -> ``residual`` + attention, [B, N, dim]."""
        return self.mix(*self.qkv(x), residual)


class CrossAttention(Attention):
    """Every token attends to the conditioning's context.

    Attributes:
        index: which of the network's cross-attentions this is, in the order in which they run.
    """

    index = 0

    def fuse(self) -> None:
        """Leave it: the keys and values are computed once a prompt."""

    def forward(self, x: Tensor, residual: Tensor, conditioning: Conditioning) -> Tensor:
        """``residual`` + attention.

        Args:
            x, residual: [B, N, dim].
            conditioning: R rows, a multiple of B; row r is for row ``r mod B`` of x.

        Returns:
            [R, N, dim].
        """
        if conditioning.keys_values is not None:
            k, v = conditioning.keys_values[self.index]
        else:
            k, v = self.keys_values(cast(Tensor, conditioning.context))
        mask = conditioning.context_mask
        return self.mix(
            expand_rows(self.queries(x), len(k)), k, v, expand_rows(residual, len(k)),
            None if mask is None else mask[:, None, None, :],
        )


class FeedForward(nn.Module):
    """Four times as wide inside, gated or not.

    Args:
        widen: makes the layer into the inside.
    """

    def __init__(self, dim: int, widen: Callable[[int, int], nn.Module] = GEGLU) -> None:
        super().__init__()
        self.net = nn.ModuleList([widen(dim, 4 * dim), nn.Identity(), Linear(4 * dim, dim)])

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[B, N, dim] -> ``residual`` + network, [B, N, dim]."""
        y: Tensor = self.net[2](self.net[0](x), residual)
        return y


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward, each normed on the way in (Rombach et al., 2022, appendix E.2).

    Args:
        only_cross: the first attention is to the context too.
    """

    def __init__(
        self, dim: int, heads: int, context_dim: int, only_cross: bool = False, upcast: bool = False, name: str = ""
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn1: SelfAttention | CrossAttention
        if only_cross:
            self.attn1 = CrossAttention(dim, heads, context_dim, upcast=upcast, name=f"{name}.cross1")
        else:
            self.attn1 = SelfAttention(dim, heads, upcast=upcast, name=f"{name}.self")
        self.norm2 = LayerNorm(dim)
        self.attn2 = CrossAttention(dim, heads, context_dim, upcast=upcast, name=f"{name}.cross")
        self.norm3 = LayerNorm(dim)
        self.ff = FeedForward(dim)
        self.only_cross = only_cross

    def forward(self, x: Tensor, conditioning: Conditioning, size: torch.Size) -> Tensor:
        """[B, N, dim] -> [rows of the conditioning, N, dim]; ``size`` is (h, w), h * w = N."""
        h = self.norm1(x)
        if self.only_cross:
            x = self.attn1(h, x, conditioning)  # [R, N, dim]
        elif share := share_at(size):
            merge = Merge.of(h, size, share)
            x = x + merge.part(self.attn1(merge.join(h), None))
        else:
            x = self.attn1(h, x)
        x = self.attn2(self.norm2(x), x, conditioning)  # [R, N, dim]
        return cast(Tensor, self.ff(self.norm3(x), x))


class SpatialTransformer(nn.Module):
    """Transformer blocks on a picture's positions, between two projections.

    Args:
        depth: how many blocks.
        linear: the projections are linear layers; else 1 x 1 convolutions, the same arithmetic under another shape.
    """

    def __init__(
        self, channels: int, heads: int, context_dim: int, depth: int = 1, linear: bool = False, groups: int = 32,
        only_cross: bool = False, upcast: bool = False, name: str = "",
    ) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels) if linear else Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(channels, heads, context_dim, only_cross, upcast, f"{name}.blocks.{i}")
            for i in range(depth)
        )
        self.proj_out = Linear(channels, channels) if linear else Conv2d(channels, channels, 1)
        self.linear = linear

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        """[B, C, H, W] in channels-last memory -> [rows of the conditioning, C, H, W]."""
        size = x.shape[-2:]
        h = self.norm(x)
        h = self.proj_in(tokens(h)) if self.linear else tokens(self.proj_in(h))  # [B, H * W, C]
        for block in self.transformer_blocks:
            h = block(h, conditioning, size)  # [R, H * W, C]
        x = expand_rows(x, len(h))
        if self.linear:
            return picture(self.proj_out(h, tokens(x)), size)  # [R, C, H, W]
        return cast(Tensor, self.proj_out(picture(h, size), residual=x))


class SpatialAttention(Attention):
    """Self-attention on a picture's positions, normalised on the way in (Ho et al., 2020, appendix B).

    Args:
        groups: of the norm; None: there is no norm.
    """

    def __init__(self, channels: int, heads: int, groups: int | None, eps: float, name: str = "") -> None:
        super().__init__(channels, heads, bias=True, name=name)
        self.group_norm = None if groups is None else GroupNorm(groups, channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] in channels-last memory -> the same shape."""
        h = tokens(x if self.group_norm is None else self.group_norm(x))  # [B, H * W, C]
        return picture(self.mix(*self.qkv(h), tokens(x)), x.shape[-2:])


def tokens(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H * W, C], a view of channels-last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def picture(x: Tensor, size: torch.Size) -> Tensor:
    """[B, H * W, C] -> [B, C, H, W] in channels-last memory, a view."""
    return x.view(len(x), *size, -1).permute(0, 3, 1, 2)
