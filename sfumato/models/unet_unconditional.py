"""The U-Net of DDPM, conditioned on nothing or on a class (Ho et al., 2020; Dhariwal and Nichol, 2021)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sfumato.core.errors import ConfigError
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.embeddings import Times, TimestepEmbedding, sinusoid
from sfumato.nn.layers import Conv2d, GroupNorm
from sfumato.nn.resnet import Downsample, ResnetBlock, Upsample
from sfumato.nn.rows import expand_rows
from sfumato.nn.stage import Stage, call, deal_times, project_times, stages, time_widths, timed
from sfumato.nn.transformer import SpatialAttention


@dataclass(frozen=True)
class UnconditionalUNetConfig:
    """Names and values are those of ``unet/config.json`` in checkpoint folders of unconditional models.

    Raises:
        ConfigError: lists of unequal length, or channels that do not divide.
    """

    in_channels: Annotated[int, "of the input"] = 3
    out_channels: Annotated[int, "of the output; twice in_channels where the variance is learned"] = 3
    sample_size: Annotated[int | None, "width and height it was trained for; it takes any"] = None
    block_out_channels: Annotated[tuple[int, ...], "channels of each level"] = (224, 448, 672, 896)
    down_block_types: Annotated[
        tuple[Literal["DownBlock2D", "AttnDownBlock2D"], ...], "levels on the way down, the finest first"
    ] = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    mid_block_type: Annotated[Literal["UNetMidBlock2D"] | None, "at the bottom; null leaves it out"] = "UNetMidBlock2D"
    up_block_types: Annotated[
        tuple[Literal["UpBlock2D", "AttnUpBlock2D"], ...], "levels on the way up, the coarsest first"
    ] = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    layers_per_block: Annotated[int, "residual blocks a level on the way down; up: one more"] = 2
    attention_head_dim: Annotated[int | None, "channels of each head (here the name is right); null: one head"] = 8
    add_attention: Annotated[bool, "attention at the bottom"] = True
    downsample_padding: Annotated[Literal[0, 1], "1: on every side; 0: right and bottom"] = 1
    downsample_type: Annotated[Literal["conv", "resnet"], "how levels with attention halve the size"] = "conv"
    upsample_type: Annotated[Literal["conv", "resnet"], "how levels with attention double the size"] = "conv"
    dropout: Annotated[float, "share of features dropped in residual blocks while training"] = 0.0
    norm_num_groups: Annotated[int, "groups of the group normalisations"] = 32
    attn_norm_num_groups: Annotated[
        int | None, "of the attention at the bottom; null: norm_num_groups, or no norm with scale_shift"
    ] = None
    norm_eps: Annotated[float, "of the group normalisations"] = 1e-5
    resnet_time_scale_shift: Annotated[Literal["default", "scale_shift"], "the time is added, or scales too"] = (
        "default"
    )
    flip_sin_to_cos: Annotated[bool, "cosines stand first in the time's sinusoid"] = True
    freq_shift: Annotated[int, "of the time's sinusoid"] = 0
    time_embedding_dim: Annotated[int | None, "of the time's vector; null: four times the first channels"] = None
    class_embed_type: Annotated[
        Literal["timestep", "identity"] | None,
        "timestep: conditioning.labels as times; identity: conditioning.pooled as it is",
    ] = None
    num_class_embeds: Annotated[int | None, "conditioning.labels are of so many classes"] = None

    # Settings of the class that are not fields here, and the one value at which they mean this network; ...: any.
    fixed: ClassVar[Mapping[str, Any]] = {
        "act_fn": "silu", "center_input_sample": False, "mid_block_scale_factor": 1, "num_train_timesteps": ...,
        "time_embedding_type": "positional",
    }

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != levels:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: there are {levels} levels in block_out_channels.")
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise ConfigError(f"block_out_channels: {channels} is no multiple of norm_num_groups.")
        if self.class_embed_type is not None and self.num_class_embeds is not None:
            raise ConfigError("class_embed_type and num_class_embeds are two ways to use one place: leave one out.")

    @property
    def time_dim(self) -> int:
        """Of the vector in which the time reaches the residual blocks."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]


class UnconditionalUNet(nn.Module):
    """Down, middle, and up again with what the way down left behind."""

    def __init__(self, config: UnconditionalUNetConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.block_out_channels[0], config.block_out_channels[-1]
        self.conv_in = Conv2d(config.in_channels, first, 3, padding=1)
        self.time_embedding = TimestepEmbedding(first, config.time_dim)
        self.class_embedding: nn.Module | None = None
        if config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, config.time_dim)
        elif config.class_embed_type == "timestep":
            self.class_embedding = TimestepEmbedding(first, config.time_dim)
        elif config.class_embed_type == "identity":
            self.class_embedding = nn.Identity()
        self.down_blocks = nn.ModuleList(_down_stages(config))
        self.mid_block = None
        if config.mid_block_type is not None:
            groups = config.attn_norm_num_groups
            if groups is None and config.resnet_time_scale_shift == "default":
                groups = config.norm_num_groups
            self.mid_block = Stage(
                [_resnet(config, last, last), _resnet(config, last, last)],
                [_attention(config, last, groups, "mid.attentions.0")] if config.add_attention else [],
            )
        self.up_blocks = nn.ModuleList(_up_stages(config))
        self.conv_norm_out = GroupNorm(config.norm_num_groups, first, config.norm_eps)
        self.conv_out = Conv2d(first, config.out_channels, 3, padding=1)
        self._timed = timed(self)
        self.time_widths = time_widths(self._timed)

    @property
    def multiple(self) -> int:
        """What height and width must be multiples of."""
        return 1 << (len(self.config.block_out_channels) - 1)

    def prepare_times(self, t: Tensor, conditioning: Conditioning | None = None) -> Times:
        """Everything that depends on the time and not on the picture, for a whole schedule.

        Args:
            t: [T].
            conditioning: R rows; read where the network knows classes.

        Returns:
            [T, R, S], or [T, 1, S] without classes; ``times[i]`` stands for t in ``forward``.
        """
        return self._times(t[:, None], conditioning or Conditioning())

    def _times(self, t: Tensor, conditioning: Conditioning) -> Times:
        """t [..., R or 1] -> [..., R, S]."""
        config, dtype = self.config, self.time_embedding.linear_1.weight.dtype

        def wave(numbers: Tensor) -> Tensor:
            first = config.block_out_channels[0]
            return sinusoid(numbers, first, config.flip_sin_to_cos, config.freq_shift).to(dtype)

        embedding = self.time_embedding(wave(t))  # [..., R, D]
        if self.class_embedding is not None:
            name = "pooled" if config.class_embed_type == "identity" else "labels"
            label = getattr(conditioning, name)
            if label is None:
                raise ConfigError(f"This U-Net is conditioned on {name}, and the conditioning has none.")
            embedding = embedding + self.class_embedding(
                wave(label) if config.class_embed_type == "timestep" else label
            )
        return project_times(self._timed, embedding)

    def forward(
        self,
        x: Tensor,
        t: Tensor | float | Times,
        conditioning: Conditioning | None = None,
        run: Callable[..., Tensor] = call,
    ) -> Tensor:
        """What the network sees in x.

        Args:
            x: [B, in_channels, H, W]; H and W divisible by 2 at every level but the last.
            t: [B], or one for all; or a step of ``prepare_times``.
            conditioning: R rows with ``labels`` (or ``pooled``) where the config names classes, else not read. R is a
                multiple of B; row r is for picture ``r mod B``.
            run: how each residual block and attention is run; see ``sfumato.nn.stage.call``.

        Returns:
            [R or B, out_channels, H, W].

        Raises:
            ConfigError: classes are wanted and not given.
        """
        told = (conditioning or Conditioning()) if self.class_embedding is not None else Conditioning()
        rows = max(len(x), len(told))
        if not isinstance(t, Times):
            t = torch.as_tensor(t, device=x.device).reshape(-1)
            t = self._times(t if len(t) == 1 else expand_rows(t, rows), told)
        h = expand_rows(x, max(len(x), len(t))).contiguous(memory_format=torch.channels_last)
        shifts = iter(deal_times(self.time_widths, t, len(h)))

        h = self.conv_in(h)
        skips = [h]
        for stage in stages(self.down_blocks):
            for resnet, attention in stage.layers():
                h = run(resnet, h, next(shifts))  # [B, C', H, W]
                if attention is not None:
                    h = run(attention, h)
                skips.append(h)
            for downsampler in stage.downsamplers:
                h = _resample(downsampler, h, shifts)  # [B, C', H/2, W/2]
                skips.append(h)
        if self.mid_block is not None:
            for resnet, attention in self.mid_block.layers():
                h = run(resnet, h, next(shifts))
                if attention is not None:
                    h = run(attention, h)
        for stage in stages(self.up_blocks):
            for resnet, attention in stage.layers():
                h = run(resnet, torch.cat([h, skips.pop()], dim=1), next(shifts))  # [B, C', H, W]
                if attention is not None:
                    h = run(attention, h)
            for upsampler in stage.upsamplers:
                h = _resample(upsampler, h, shifts)  # [B, C', 2H, 2W]
        y: Tensor = self.conv_out(self.conv_norm_out(h, silu=True))  # [B or R, out_channels, H, W]
        return expand_rows(y, rows)  # fewer where prepared times are the same for all rows of a picture


def _resample(module: nn.Module, h: Tensor, shifts: Iterator[Tensor]) -> Tensor:
    """Residual blocks that change the size know the time; convolutions do not."""
    return call(module, h, next(shifts)) if isinstance(module, ResnetBlock) else call(module, h)


def _resnet(
    config: UnconditionalUNetConfig, channels: int, out_channels: int, resample: Literal["down", "up"] | None = None
) -> ResnetBlock:
    return ResnetBlock(
        channels, out_channels, config.time_dim, config.norm_num_groups, config.norm_eps,
        scale_shift=config.resnet_time_scale_shift == "scale_shift", dropout=config.dropout, resample=resample,
    )


def _attention(config: UnconditionalUNetConfig, channels: int, groups: int | None, name: str) -> SpatialAttention:
    heads = channels // (config.attention_head_dim or channels)
    return SpatialAttention(channels, heads, groups, config.norm_eps, name)


def _attentions(
    config: UnconditionalUNetConfig, channels: int, count: int, kind: str, name: str
) -> list[SpatialAttention]:
    if not kind.startswith("Attn"):
        return []
    return [_attention(config, channels, config.norm_num_groups, f"{name}.attentions.{i}") for i in range(count)]


def _down_stages(config: UnconditionalUNetConfig) -> Iterator[Stage]:
    channels, last = config.block_out_channels[0], len(config.block_out_channels) - 1
    for level, (width, kind) in enumerate(zip(config.block_out_channels, config.down_block_types, strict=True)):
        resnets = [_resnet(config, channels if i == 0 else width, width) for i in range(config.layers_per_block)]
        smaller: list[nn.Module] = []
        if level < last and kind == "AttnDownBlock2D" and config.downsample_type == "resnet":
            smaller = [_resnet(config, width, width, "down")]
        elif level < last:
            smaller = [Downsample(width, config.downsample_padding)]
        attentions = _attentions(config, width, len(resnets), kind, f"down.{level}")
        yield Stage(resnets, attentions, downsamplers=smaller)
        channels = width


def _up_stages(config: UnconditionalUNetConfig) -> Iterator[Stage]:
    widths, count = config.block_out_channels, config.layers_per_block
    skips = [widths[0]]  # channels of what the way down passes across
    for level, width in enumerate(widths):
        skips += [width] * (count + (level < len(widths) - 1))
    channels = widths[-1]
    for place, (level, kind) in enumerate(zip(reversed(range(len(widths))), config.up_block_types, strict=True)):
        resnets = []
        for _ in range(count + 1):
            resnets.append(_resnet(config, channels + skips.pop(), widths[level]))
            channels = widths[level]
        larger: list[nn.Module] = []
        if level > 0 and kind == "AttnUpBlock2D" and config.upsample_type == "resnet":
            larger = [_resnet(config, channels, channels, "up")]
        elif level > 0:
            larger = [Upsample(channels)]
        attentions = _attentions(config, channels, len(resnets), kind, f"up.{place}")
        yield Stage(resnets, attentions, upsamplers=larger)


DDPM_CIFAR10 = UnconditionalUNetConfig(
    sample_size=32,
    block_out_channels=(128, 256, 256, 256),
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=None,
    downsample_padding=0,
    norm_eps=1e-6,
    flip_sin_to_cos=False,
    freq_shift=1,
)
DDPM_256 = UnconditionalUNetConfig(
    sample_size=256,
    block_out_channels=(128, 128, 256, 256, 512, 512),
    down_block_types=(
        "DownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D",
    ),
    up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
    attention_head_dim=None,
    downsample_padding=0,
    norm_eps=1e-6,
    flip_sin_to_cos=False,
    freq_shift=1,
)
UNCONDITIONAL_UNETS: dict[str, UnconditionalUNetConfig] = {"ddpm-cifar10": DDPM_CIFAR10, "ddpm-256": DDPM_256}
"""The U-Nets of the published DDPM models (CIFAR-10; CelebA-HQ, church, bedroom, cat)."""
