"""The diffusion transformer DiT (Peebles and Xie, "Scalable diffusion models with transformers", 2023).

A picture's patches are the tokens. Time and class reach them in one way only: scale, shift and gate of every block
(adaLN-Zero, section 3.2), which depend on nothing else and so are computed once a schedule. Parameter names are
diffusers' (``DiTTransformer2DModel``).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import ConfigError
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.deep import Deep
from sfumato.nn.embeddings import Times, TimestepEmbedding, sinusoid
from sfumato.nn.layers import Conv2d, Linear, ModulatedNorm, TanhGELU, gated_sum
from sfumato.nn.rows import expand_rows
from sfumato.nn.stage import call
from sfumato.nn.transformer import FeedForward, SelfAttention, tokens

WAVES = 256
"""Numbers of the time's sinusoid."""
NORM_EPS = 1e-6
"""Of every norm but that before the feed-forward network, whose is ``norm_eps``."""


@dataclass(frozen=True)
class DiTConfig:
    """Names and values are those of ``transformer/config.json`` in checkpoint folders.

    Raises:
        ConfigError: sizes that do not divide.
    """

    num_attention_heads: Annotated[int, "in every block"] = 16
    attention_head_dim: Annotated[int, "channels of a head; the width is that times the heads"] = 72
    in_channels: Annotated[int, "of a latent"] = 4
    out_channels: Annotated[int | None, "twice in_channels where the variance is learned; null: in_channels"] = None
    num_layers: Annotated[int, "blocks"] = 28
    sample_size: Annotated[int, "latent width and height it was trained for; others stretch the positions"] = 32
    patch_size: Annotated[int, "latent pixels of a patch's side"] = 2
    num_embeds_ada_norm: Annotated[int, "classes, beside the one for none of them; 0: it knows no classes"] = 1000
    upcast_attention: Annotated[bool, "attend in float32 where the rest is in half precision"] = False
    norm_eps: Annotated[float, "of the norm before the feed-forward network (the authors' own: 1e-6)"] = 1e-5
    freq_shift: Annotated[int, "of the time's sinusoid: 1 as diffusers computes it, 0 as the authors trained it"] = 1

    own: ClassVar[tuple[str, ...]] = ("freq_shift",)
    # Settings of the class that are not fields here, and the one value at which they mean this network; ...: any.
    fixed: ClassVar[Mapping[str, Any]] = {
        "activation_fn": "gelu-approximate", "attention_bias": True, "attention_type": "default",
        "caption_channels": None, "cross_attention_dim": None, "double_self_attention": False, "dropout": 0.0,
        "interpolation_scale": None, "norm_elementwise_affine": False, "norm_num_groups": ...,
        "norm_type": "ada_norm_zero", "num_vector_embeds": None, "only_cross_attention": False,
        "use_additional_conditions": None, "use_linear_projection": False,
    }

    def __post_init__(self) -> None:
        if self.sample_size % self.patch_size:
            raise ConfigError(f"sample_size = {self.sample_size}: must be a multiple of patch_size {self.patch_size}.")
        if self.width % 4:
            raise ConfigError(f"{self.num_attention_heads} heads of {self.attention_head_dim} channels: the width has "
                              "to be a multiple of 4, for sines and cosines in two directions.")  # fmt: skip

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def predicted_channels(self) -> int:
        """Of the output."""
        return self.in_channels if self.out_channels is None else self.out_channels


def positions(
    width: int, grid: tuple[int, int], side: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Sines and cosines of each patch's column, then of its row (Vaswani et al., 2017, section 3.5, for each).

    Args:
        width: channels of a token.
        grid: patches in a column, in a row.
        side: patches that the positions run over, whatever the grid.

    Returns:
        [1, patches, width], which is kept for the next time.
    """
    return _positions(width, grid, side, device, dtype)


@lru_cache(maxsize=8)
def _positions(width: int, grid: tuple[int, int], side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    frequencies = 1.0 / 10_000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4.0))

    def waves(count: int) -> Any:
        angles = np.outer(np.arange(count, dtype=np.float32) / (count / side), frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # [count, width / 2]

    rows, columns = grid
    shape = (rows, columns, width // 2)
    both = [np.broadcast_to(waves(columns)[None], shape), np.broadcast_to(waves(rows)[:, None], shape)]
    with torch.inference_mode(False):  # what is kept may be used in training too
        table = torch.from_numpy(np.concatenate(both, axis=-1).astype(np.float32)).reshape(1, rows * columns, width)
        return table.to(device, dtype)


class TimeLinear(Linear):
    """A linear layer that runs once a schedule, where speed is no question."""


class ClassEmbedding(nn.Module):
    """A vector for each class, and a last one for none."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, labels: Tensor) -> Tensor:
        """[R] -> [R, width]."""
        found: Tensor = self.embedding_table(labels)
        return found


class TimeAndClass(nn.Module):
    """Both as one vector."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(WAVES, width)
        self.class_embedder = ClassEmbedding(classes, width)

    def forward(self, waves: Tensor, labels: Tensor) -> Tensor:
        """[..., R or 1, 256], [R] -> [..., R, width]."""
        found: Tensor = self.timestep_embedder(waves) + self.class_embedder(labels)
        return found


class AdaNorm(nn.Module):
    """What a block makes of time and class, and its first norm.

    Args:
        embeds: it has an embedding of its own.
    """

    STARTS = (0.0, 1.0, 0.0, 0.0, 1.0, 0.0)
    """Shift, scale and gate of attention, then of the feed-forward network, where the linear layer says nothing."""

    def __init__(self, classes: int, width: int, embeds: bool) -> None:
        super().__init__()
        self.emb = TimeAndClass(classes, width) if embeds else None
        self.linear = TimeLinear(width, len(self.STARTS) * width)
        self.norm = ModulatedNorm(width, NORM_EPS)

    def modulation(self, active: Tensor) -> Tensor:
        """[..., width] -> [..., 6 width]."""
        return started(self.linear(active), self.STARTS)


def started(said: Tensor, starts: tuple[float, ...]) -> Tensor:
    """[..., n width], the start of each of the n added."""
    parts = said.view(*said.shape[:-1], len(starts), -1)
    found: Tensor = (parts + torch.tensor(starts, dtype=said.dtype, device=said.device)[:, None]).flatten(-2)
    return found


class DiTBlock(nn.Module):
    """Attention and a feed-forward network, each normed, scaled and shifted on the way in and gated on the way out."""

    def __init__(self, config: DiTConfig, embeds: bool, name: str) -> None:
        super().__init__()
        width = config.width
        self.norm1 = AdaNorm(config.num_embeds_ada_norm, width, embeds)
        self.attn1 = SelfAttention(
            width, config.num_attention_heads, bias=True, upcast=config.upcast_attention, name=f"{name}.self"
        )
        self.norm3 = ModulatedNorm(width, config.norm_eps)
        self.ff = FeedForward(width, TanhGELU)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """[R, N, width], [R or 1, 6, width] -> [R, N, width]."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff = modulation.unsqueeze(-2).unbind(1)  # [R or 1, 1, width] each
        x = gated_sum(x, gate, self.attn1(self.norm1.norm(x, shift, scale)))
        return gated_sum(x, gate_ff, self.ff(self.norm3(x, shift_ff, scale_ff)))


class PatchEmbedding(nn.Module):
    """Each patch of a picture as a token."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, patches, width], row by row."""
        return tokens(self.proj(x.contiguous(memory_format=torch.channels_last)))


class DiT(nn.Module):
    """Patches to tokens, blocks, tokens to patches.

    Args:
        shared: all blocks have one embedding of time and class, as the paper has it, kept under the first block's name
            alone. Checkpoint folders hold one a block, equal or not, so it is for training; see ``unshared``.
    """

    def __init__(self, config: DiTConfig, shared: bool = False) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size
        self.pos_embed = PatchEmbedding(config.in_channels, width, patch)
        self.transformer_blocks = nn.ModuleList(
            DiTBlock(config, i == 0 or not shared, f"blocks.{i}") for i in range(config.num_layers)
        )
        self.norm_out = ModulatedNorm(width, NORM_EPS)
        self.proj_out_1 = TimeLinear(width, 2 * width)
        self.proj_out_2 = Linear(width, patch * patch * config.predicted_channels)
        self._initialise()

    def _initialise(self) -> None:
        """As the authors do: every block starts as the identity, the output as zero."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, TimestepEmbedding):
                nn.init.normal_(module.linear_1.weight, std=0.02)
                nn.init.normal_(module.linear_2.weight, std=0.02)
            elif isinstance(module, SelfAttention):
                for layer in (module.to_q, module.to_k, module.to_v):  # as one matrix of three times the rows
                    nn.init.xavier_uniform_(layer.weight, gain=0.5**0.5)
                nn.init.xavier_uniform_(cast(Tensor, module.to_out[0].weight))
            elif isinstance(module, FeedForward):
                nn.init.xavier_uniform_(cast(TanhGELU, module.net[0]).proj.weight)
                nn.init.xavier_uniform_(cast(Tensor, module.net[2].weight))
            if isinstance(module, TimeLinear):
                nn.init.zeros_(module.weight)
            if isinstance(module, Linear):
                nn.init.zeros_(module.bias)
        kernel: Conv2d = self.pos_embed.proj
        nn.init.xavier_uniform_(kernel.weight.data.flatten(1))
        assert kernel.bias is not None
        nn.init.zeros_(kernel.bias)
        nn.init.zeros_(self.proj_out_2.weight)

    def blocks(self) -> Iterator[DiTBlock]:
        """In the order in which they run."""
        return iter(cast("Iterator[DiTBlock]", self.transformer_blocks))

    def _inner(self, deep: Deep) -> tuple[int, int]:
        """The first of the inner blocks, and the first behind them."""
        count = self.config.num_layers
        if not 0 < deep.outer < count:
            raise ConfigError(f"This DiT has {count} blocks; 1 to {count - 1} are outer.")
        return deep.outer // 2, count - (deep.outer + 1) // 2

    def prepare_times(self, t: Tensor, conditioning: Conditioning | None = None) -> Times:
        """Everything that depends on time and class and not on the picture, for a whole schedule.

        Args:
            t: [T].
            conditioning: R rows, of which the labels are read.

        Returns:
            [T, R, S], or [T, 1, S] where no classes are known; ``times[i]`` stands for t in ``forward``.
        """
        return self._times(t[:, None], conditioning or Conditioning())

    def _times(self, t: Tensor, conditioning: Conditioning) -> Times:
        """t [..., R or 1] -> [..., R, S]: six vectors a block, and two for the end."""
        labels = conditioning.labels
        if labels is None:
            if self.config.num_embeds_ada_norm:
                raise ConfigError("This DiT is conditioned on labels, and the conditioning has none.")
            labels = torch.zeros(1, dtype=torch.long, device=t.device)
        waves = sinusoid(t, WAVES, freq_shift=self.config.freq_shift).to(self.proj_out_1.weight.dtype)
        first = active = None
        found = []
        for block in self.blocks():
            if block.norm1.emb is not None:
                active = F.silu(block.norm1.emb(waves, labels))  # [..., R, width]
                first = active if first is None else first
            assert active is not None  # the first block has an embedding
            found.append(block.norm1.modulation(active))
        assert first is not None
        return Times(torch.cat([*found, started(self.proj_out_1(first), (0.0, 1.0))], dim=-1))

    def forward(
        self,
        x: Tensor,
        t: Tensor | float | Times,
        conditioning: Conditioning | None = None,
        run: Callable[..., Tensor] = call,
        deep: Deep | None = None,
    ) -> Tensor:
        """What the network sees in x: its noise, its velocity, whatever it was trained to tell.

        Args:
            x: [B, in_channels, H, W]; H and W multiples of ``patch_size``.
            t: [B], or one for all; or a step of ``prepare_times``.
            conditioning: R rows with ``labels`` where the config names classes; the number of classes itself stands
                for none of them. R is a multiple of B; row r is for picture ``r mod B``.
            run: how each block is run; see ``sfumato.nn.stage.call``.
            deep: what the inner blocks add to the tokens. With a value they are not run: it is added in their place.
                Of ``outer`` blocks one half stands before them, the other (and the odd one) behind them.

        Returns:
            [R, out_channels, H, W]; where the variance is learned, its half is the second.

        Raises:
            ConfigError: labels are wanted and not given; H or W cannot be cut into patches; no block is an inner one.
        """
        patch, width = self.config.patch_size, self.config.width
        height, across = (side // patch for side in x.shape[-2:])
        if (height * patch, across * patch) != tuple(x.shape[-2:]):
            raise ConfigError(f"Latents of {x.shape[-2]} x {x.shape[-1]} cannot be cut into patches of {patch}.")
        told = conditioning or Conditioning()
        rows = max(len(x), len(told))
        if not isinstance(t, Times):
            t = torch.as_tensor(t, device=x.device).reshape(-1)
            t = self._times(t if len(t) == 1 else expand_rows(t, rows), told)
        h = self.pos_embed(x)  # [B, N, width]
        h = h + positions(width, (height, across), self.config.sample_size // patch, h.device, h.dtype)
        h = expand_rows(h, max(len(x), len(t)))  # [R, N, width]; [B, N, width] where all rows of a picture are equal
        shifts = t.shifts if len(t) == 1 else expand_rows(t.shifts, len(h))
        shifts = shifts.reshape(len(shifts), -1, width)  # [R or 1, 6 a block and 2, width]
        blocks = [(block, shifts[:, 6 * i : 6 * i + 6]) for i, block in enumerate(self.blocks())]
        first, last = (0, len(blocks)) if deep is None else self._inner(deep)
        for block, shift in blocks[:first]:
            h = run(block, h, shift)
        if deep is not None and deep.value is not None:
            h = h + deep.value[: len(h)]  # further rows are those of the same pictures
        else:
            before = None if deep is None else h
            for block, shift in blocks[first:last]:
                h = run(block, h, shift)
            if deep is not None and before is not None:
                deep.value = h - before
        for block, shift in blocks[last:]:
            h = run(block, h, shift)
        shift, scale = shifts[:, -2:, None].unbind(1)  # [R or 1, 1, width] each
        y = self.proj_out_2(self.norm_out(h, shift, scale))  # [R, N, patch * patch * C]
        y = y.view(len(y), height, across, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
        return expand_rows(y.reshape(len(y), -1, *x.shape[-2:]), rows)  # [R, C, H, W]


def unshared(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The weights of a ``shared`` DiT as folders hold them: every block has its copy of the embedding."""
    first = "transformer_blocks.0.norm1.emb."
    copies = {
        f"transformer_blocks.{i}.norm1.emb.{name.removeprefix(first)}": tensor
        for name, tensor in weights.items() if name.startswith(first) for i in range(layers)
    }
    return {**weights, **copies}


_SIZES = {
    "s": DiTConfig(num_attention_heads=6, attention_head_dim=64, num_layers=12),
    "b": DiTConfig(num_attention_heads=12, attention_head_dim=64, num_layers=12),
    "l": DiTConfig(num_attention_heads=16, attention_head_dim=64, num_layers=24),
    "xl": DiTConfig(num_attention_heads=16, attention_head_dim=72, num_layers=28),
}
DITS: dict[str, DiTConfig] = {
    f"dit-{size}{patch}": replace(config, patch_size=patch, out_channels=8)
    for size, config in _SIZES.items() for patch in (2, 4, 8)
}
"""The paper's twelve (table 1), for 256 x 256 pixels; ``sample_size = 64`` makes them those for 512 x 512."""
