"""The conditional U-Net of Stable Diffusion 1, 2 and XL (Rombach et al., 2022; Podell et al., 2023)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from sfumato.core.errors import ConfigError
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.deep import Deep
from sfumato.nn.embeddings import Times, TimestepEmbedding, sinusoid
from sfumato.nn.layers import Conv2d, GroupNorm
from sfumato.nn.resnet import Downsample, ResnetBlock, Upsample
from sfumato.nn.rows import expand_rows
from sfumato.nn.stage import Stage, call, deal_times, project_times, stages, time_widths, timed
from sfumato.nn.transformer import CrossAttention, SpatialTransformer

T = TypeVar("T")
DownType = Literal["CrossAttnDownBlock2D", "DownBlock2D"]
MidType = Literal["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"]
UpType = Literal["CrossAttnUpBlock2D", "UpBlock2D"]


@dataclass(frozen=True)
class EncoderConfig:
    """What says how the way down and the middle are built; names and values are those of config.json in checkpoints.

    Where a field holds one value or one a level, levels are listed from the finest, for the way down; the way up
    uses them reversed.

    Raises:
        ConfigError: lists of unequal length, or settings that contradict each other.
    """

    in_channels: Annotated[int, "of the input: noisy latents and whatever stands beside them"] = 4
    block_out_channels: Annotated[tuple[int, ...], "channels of each level"] = (320, 640, 1280, 1280)
    down_block_types: Annotated[tuple[DownType, ...], "levels on the way down, the finest first"] = (
        "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D",
    )
    mid_block_type: Annotated[
        MidType | None, "at the bottom; UNetMidBlock2D: a residual block alone; null leaves it out"
    ] = "UNetMidBlock2DCrossAttn"
    layers_per_block: Annotated[int | tuple[int, ...], "residual blocks a level on the way down; up: one more"] = 2
    attention_head_dim: Annotated[
        int | tuple[int, ...], "the NUMBER of heads, all or a level: the name is a slip that 40,000 checkpoints repeat"
    ] = 8
    transformer_layers_per_block: Annotated[int | tuple[int, ...], "transformer blocks after a residual block"] = 1
    cross_attention_dim: Annotated[int, "of the context's vectors"] = 1280
    only_cross_attention: Annotated[
        bool | tuple[bool, ...], "the transformer's first attention is to the context too (not in the middle)"
    ] = False
    use_linear_projection: Annotated[bool, "linear layers around the transformers, else 1 x 1 convolutions"] = False
    upcast_attention: Annotated[bool, "attend in float32 where the rest is in half precision"] = False
    resnet_time_scale_shift: Annotated[Literal["default", "scale_shift"], "the time is added, or scales too"] = (
        "default"
    )
    norm_num_groups: Annotated[int, "groups of the group normalisations"] = 32
    norm_eps: Annotated[float, "of the group normalisations outside the transformers"] = 1e-5
    downsample_padding: Annotated[Literal[0, 1], "1: on every side; 0: right and bottom"] = 1
    flip_sin_to_cos: Annotated[bool, "cosines stand first in the time's sinusoid"] = True
    freq_shift: Annotated[int, "of the time's sinusoid"] = 0
    class_embed_type: Annotated[
        Literal["timestep", "projection"] | None,
        "timestep: conditioning.labels as times; projection: conditioning.pooled",
    ] = None
    num_class_embeds: Annotated[int | None, "conditioning.labels are of so many classes"] = None
    addition_embed_type: Annotated[Literal["text_time"] | None, "conditioning.pooled and .sizes (XL)"] = None
    addition_time_embed_dim: Annotated[int | None, "of the sinusoid of each of conditioning.sizes"] = None
    projection_class_embeddings_input_dim: Annotated[
        int | None, "of conditioning.pooled, with the sinusoids of conditioning.sizes where text_time"
    ] = None
    time_cond_proj_dim: Annotated[int | None, "of the sinusoid of conditioning.guidance (LCM)"] = None

    # Settings of the class that are not fields here, and the one value at which they mean this network; ...: any.
    fixed: ClassVar[Mapping[str, Any]] = {
        "act_fn": "silu", "addition_embed_type_num_heads": ..., "attention_type": "default",
        "center_input_sample": False, "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3,
        "cross_attention_norm": None, "dropout": 0.0, "dual_cross_attention": False, "encoder_hid_dim": None,
        "encoder_hid_dim_type": None, "mid_block_only_cross_attention": ..., "mid_block_scale_factor": 1,
        "num_attention_heads": None, "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False,
        "reverse_transformer_layers_per_block": None, "time_embedding_act_fn": None, "time_embedding_dim": None,
        "time_embedding_type": "positional", "timestep_post_act": None,
    }

    def __post_init__(self) -> None:
        self._check_levels(
            "down_block_types", "layers_per_block", "attention_head_dim", "transformer_layers_per_block",
            "only_cross_attention",
        )
        for channels, heads in zip(self.block_out_channels, self.each(self.attention_head_dim), strict=True):
            if channels % heads or channels % self.norm_num_groups:
                raise ConfigError(
                    f"block_out_channels: {channels} has to be a multiple of its {heads} heads and of "
                    f"norm_num_groups = {self.norm_num_groups}."
                )
        if self.addition_embed_type == "text_time" and self.addition_time_embed_dim is None:
            raise ConfigError("addition_embed_type = 'text_time' needs addition_time_embed_dim.")
        projected = self.addition_embed_type == "text_time" or self.class_embed_type == "projection"
        if projected and self.projection_class_embeddings_input_dim is None:
            raise ConfigError("Conditioning on pooled vectors needs projection_class_embeddings_input_dim.")
        if self.class_embed_type is not None and self.num_class_embeds is not None:
            raise ConfigError("class_embed_type and num_class_embeds are two ways to use one place: leave one out.")

    def _check_levels(self, *names: str) -> None:
        levels = len(self.block_out_channels)
        for name in names:
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise ConfigError(f"{name} = {value!r}: there are {levels} levels in block_out_channels.")

    def each(self, value: T | tuple[T, ...]) -> tuple[T, ...]:
        """One value a level."""
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    @property
    def time_dim(self) -> int:
        """Of the vector in which the time reaches the residual blocks."""
        return 4 * self.block_out_channels[0]


@dataclass(frozen=True)
class UNetConfig(EncoderConfig):
    """Of the whole network; see ``unet/config.json``."""

    out_channels: Annotated[int, "of the output"] = 4
    sample_size: Annotated[int | None, "latent width and height it was trained for; it takes any"] = None
    up_block_types: Annotated[tuple[UpType, ...], "levels on the way up, the coarsest first"] = (
        "UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_levels("up_block_types")


class UNetEncoder(nn.Module):
    """The way down and the middle: the half of a U-Net that its side networks copy."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        first = config.block_out_channels[0]
        self.conv_in = Conv2d(config.in_channels, first, 3, padding=1)
        self.time_embedding = TimestepEmbedding(first, config.time_dim, config.time_cond_proj_dim)
        self.class_embedding: nn.Module | None = None
        if config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, config.time_dim)
        elif config.class_embed_type == "timestep":
            self.class_embedding = TimestepEmbedding(first, config.time_dim)
        elif config.class_embed_type == "projection":
            self.class_embedding = TimestepEmbedding(_pooled_dim(config), config.time_dim)
        self.add_embedding: nn.Module | None = None
        if config.addition_embed_type == "text_time":
            self.add_embedding = TimestepEmbedding(_pooled_dim(config), config.time_dim)

        self.down_blocks = nn.ModuleList(_down_stages(config))
        self.mid_block = None
        if config.mid_block_type is not None:
            last, attends = config.block_out_channels[-1], config.mid_block_type == "UNetMidBlock2DCrossAttn"
            self.mid_block = Stage(
                [_resnet(config, last, last) for _ in range(1 + attends)],
                [_transformer(config, -1, "mid.attentions.0", only_cross=False)] if attends else [],
            )
        self._number()

    def _number(self) -> None:
        """Look for what is found in each run, once; layers within may be replaced later, these are not."""
        self._timed = timed(self)
        self.time_widths = time_widths(self._timed)
        self._cross = [module for module in self.modules() if isinstance(module, CrossAttention)]
        for index, attention in enumerate(self._cross):
            attention.index = index

    def cross_attentions(self) -> list[CrossAttention]:
        """All of them, in the order in which they run."""
        return self._cross

    def prepare(self, conditioning: Conditioning) -> Conditioning:
        """Keys and values of all cross-attentions, computed once a prompt; the context is then needed no more."""
        if conditioning.keys_values is not None:
            return conditioning
        context = _need(conditioning, "context")
        found = tuple(attention.keys_values(context) for attention in self.cross_attentions())
        return replace(conditioning, context=None, keys_values=found)

    def prepare_times(self, t: Tensor, conditioning: Conditioning | None = None) -> Times:
        """Everything that depends on the time and not on the picture, for a whole schedule.

        ``forward`` takes one step of it, ``times[i]``, in place of t, with the same result.

        Args:
            t: [T].
            conditioning: R rows; read where labels, pooled vectors, sizes or a guidance scale are added to the time.

        Returns:
            [T, R, S], or [T, 1, S] where the time depends on nothing else.
        """
        return self._times(t[:, None], conditioning or Conditioning())

    def _times(self, t: Tensor, conditioning: Conditioning) -> Times:
        """t [..., R or 1] -> [..., R, S]."""
        config = self.config
        first, flip, shift = config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift
        dtype = self.time_embedding.linear_1.weight.dtype
        told = None
        if config.time_cond_proj_dim is not None:
            scale = 1000 * (_need(conditioning, "guidance").float() - 1)
            told = sinusoid(scale, config.time_cond_proj_dim, cosine_first=False, freq_shift=1).to(dtype)
        embedding = self.time_embedding(sinusoid(t, first, flip, shift).to(dtype), told)  # [..., R, D]
        if self.class_embedding is not None:
            if config.class_embed_type == "projection":
                label = _need(conditioning, "pooled").to(dtype)
            elif config.class_embed_type == "timestep":
                label = sinusoid(_need(conditioning, "labels"), first, flip, shift).to(dtype)
            else:
                label = _need(conditioning, "labels")
            embedding = embedding + self.class_embedding(label)
        if self.add_embedding is not None and config.addition_time_embed_dim is not None:
            sizes = sinusoid(_need(conditioning, "sizes"), config.addition_time_embed_dim, flip, shift).flatten(1)
            added = torch.cat([_need(conditioning, "pooled").to(dtype), sizes.to(dtype)], dim=-1)  # [R, P + S * dim]
            embedding = embedding + self.add_embedding(added)
        return project_times(self._timed, embedding)

    def _start(
        self, x: Tensor, t: Tensor | float | Times, conditioning: Conditioning
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """The picture with no more rows than need be, in channels-last memory, and each residual block's shift."""
        rows = max(len(x), len(conditioning))
        if not isinstance(t, Times):
            t = torch.as_tensor(t, device=x.device).reshape(-1)
            own = self.time_embedding.cond_proj or self.class_embedding or self.add_embedding
            t = self._times(t if own is None or len(t) == 1 else expand_rows(t, rows), conditioning)
        if len(t) > len(x):
            x = expand_rows(x, len(t))
        return x.contiguous(memory_format=torch.channels_last), deal_times(self.time_widths, t, rows)

    def _down(
        self, h: Tensor, shifts: Iterator[Tensor], conditioning: Conditioning, run: Callable[..., Tensor],
        most: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """From the first convolution's output to the bottom; what is passed across on the way.

        Args:
            most: it goes no further than so many that are passed across.
        """
        skips = [h]
        for stage in stages(self.down_blocks):
            for resnet, attention in stage.layers():
                if len(skips) == most:
                    return h, skips
                h = run(resnet, h, next(shifts)[: len(h)])  # [B, C', H, W]
                if attention is not None:
                    h = run(attention, h, conditioning)  # [R, C', H, W]
                skips.append(h)
            for downsampler in stage.downsamplers:
                if len(skips) == most:
                    return h, skips
                h = call(downsampler, h)  # [R, C', H/2, W/2]
                skips.append(h)
        if self.mid_block is not None:
            for resnet, attention in self.mid_block.layers():
                h = run(resnet, h, next(shifts)[: len(h)])
                if attention is not None:
                    h = run(attention, h, conditioning)
        return h, skips


class UNet(UNetEncoder):
    """Down, middle, and up again with what the way down left behind."""

    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        self.up_blocks = nn.ModuleList(_up_stages(config))
        first = config.block_out_channels[0]
        self.conv_norm_out = GroupNorm(config.norm_num_groups, first, config.norm_eps)
        self.conv_out = Conv2d(first, config.out_channels, 3, padding=1)
        self._number()

    @property
    def blocks_up(self) -> int:
        """Residual blocks on the way up."""
        return len([*self._ups()])

    def _ups(self) -> Iterator[tuple[nn.Module, nn.Module | None, nn.Module | None]]:
        """The way up: each residual block, the attention after it, and the upsampler where a level ends."""
        for stage in stages(self.up_blocks):
            *inner, (resnet, attention) = stage.layers()
            yield from ((*layer, None) for layer in inner)
            yield resnet, attention, next(iter(stage.upsamplers), None)

    def forward(
        self,
        x: Tensor,
        t: Tensor | float | Times,
        conditioning: Conditioning,
        down_residuals: Sequence[Tensor] | None = None,
        mid_residual: Tensor | None = None,
        run: Callable[..., Tensor] = call,
        deep: Deep | None = None,
    ) -> Tensor:
        """What the network sees in x: its noise, its velocity, whatever it was trained to tell.

        The conditioning may have k times the rows of x: row r is then for picture ``r mod B`` (guidance: the positive
        conditions of all pictures, then the negative ones). What does not depend on the condition is computed for B
        rows only: up to the first cross-attention, or nothing where labels, pooled vectors, sizes or a guidance scale
        enter the time with more rows than B.

        Args:
            x: [B, in_channels, H, W]; any H and W.
            t: [B], or one for all; or a step of ``prepare_times``.
            conditioning: R rows; ``context`` or the ``keys_values`` of ``prepare``, and what the config names.
            down_residuals: added to what is passed across, [B or R, C, H, W] each, in the order of the way down.
            mid_residual: added at the bottom, [B or R, C, H, W].
            run: how each residual block and transformer is run; see ``sfumato.nn.stage.call``.
            deep: what the last ``outer`` residual blocks of the way up find when they begin. With a value, what lies
                below them is not run: the way down ends where nothing more is passed across to them.

        Returns:
            [R, out_channels, H, W].

        Raises:
            ConfigError: the conditioning lacks a field that the config names.
        """
        if conditioning.keys_values is None:
            _need(conditioning, "context")
        x, shifts = self._start(x, t, conditioning)
        ups = [*self._ups()]
        first, most = 0, None
        if deep is not None:
            if not 0 < deep.outer < len(ups):
                raise ConfigError(f"This U-Net has {len(ups)} blocks on its way up; 1 to {len(ups) - 1} are outer.")
            if deep.value is not None:
                first, most = len(ups) - deep.outer, deep.outer
        h, skips = self._down(self.conv_in(x), iter(shifts), conditioning, run, most)
        if down_residuals is not None:
            residuals = down_residuals[: len(skips)] if first else down_residuals
            skips = [_plus(skip, residual) for skip, residual in zip(skips, residuals, strict=True)]
        if mid_residual is not None and not first:
            h = _plus(h, mid_residual)
        for place, (resnet, attention, upsampler) in enumerate(ups[first:], first):
            if deep is not None and place == len(ups) - deep.outer:
                h = deep.pass_through(h)
            skip = skips.pop()
            h = torch.cat([h, expand_rows(skip, len(h))], dim=1)  # [R, C + C', H, W]
            h = run(resnet, h, shifts[place - len(ups)][: len(h)])  # [R, C', H, W]
            if attention is not None:
                h = run(attention, h, conditioning)
            if upsampler is not None:
                h = call(upsampler, h, skips[-1].shape[-2:])  # [R, C', 2H, 2W]
        y: Tensor = self.conv_out(self.conv_norm_out(h, silu=True))  # [R, out_channels, H, W]
        return y


def _plus(x: Tensor, residual: Tensor) -> Tensor:
    """Their sum, with the rows of whichever has more."""
    rows = max(len(x), len(residual))
    return expand_rows(x, rows) + expand_rows(residual, rows)


def _need(conditioning: Conditioning, name: str) -> Tensor:
    """A field of the conditioning that this network cannot do without."""
    value: Tensor | None = getattr(conditioning, name)
    if value is None:
        raise ConfigError(f"This U-Net is conditioned on {name}, and the conditioning has none.")
    return value


def _pooled_dim(config: EncoderConfig) -> int:
    assert config.projection_class_embeddings_input_dim is not None  # the config was checked
    return config.projection_class_embeddings_input_dim


def _resnet(config: EncoderConfig, channels: int, out_channels: int) -> ResnetBlock:
    return ResnetBlock(
        channels, out_channels, config.time_dim, config.norm_num_groups, config.norm_eps,
        scale_shift=config.resnet_time_scale_shift == "scale_shift",
    )


def _transformer(config: EncoderConfig, level: int, name: str, only_cross: bool) -> SpatialTransformer:
    return SpatialTransformer(
        config.block_out_channels[level],
        heads=config.each(config.attention_head_dim)[level],
        context_dim=config.cross_attention_dim,
        depth=config.each(config.transformer_layers_per_block)[level],
        linear=config.use_linear_projection,
        groups=config.norm_num_groups,
        only_cross=only_cross,
        upcast=config.upcast_attention,
        name=name,
    )


def _attentions(config: EncoderConfig, level: int, count: int, kind: str, name: str) -> list[SpatialTransformer]:
    if not kind.startswith("CrossAttn"):
        return []
    only_cross = config.each(config.only_cross_attention)[level]
    return [_transformer(config, level, f"{name}.attentions.{i}", only_cross) for i in range(count)]


def _down_stages(config: EncoderConfig) -> Iterator[Stage]:
    channels, last = config.block_out_channels[0], len(config.block_out_channels) - 1
    for level, out_channels in enumerate(config.block_out_channels):
        count = config.each(config.layers_per_block)[level]
        yield Stage(
            [_resnet(config, channels if i == 0 else out_channels, out_channels) for i in range(count)],
            _attentions(config, level, count, config.down_block_types[level], f"down.{level}"),
            downsamplers=[Downsample(out_channels, config.downsample_padding)] if level < last else [],
        )
        channels = out_channels


def skip_widths(config: EncoderConfig) -> Iterator[int]:
    """Channels of what the way down passes across, in its order."""
    widths, counts = config.block_out_channels, config.each(config.layers_per_block)
    yield widths[0]
    for level, (width, count) in enumerate(zip(widths, counts, strict=True)):
        yield from (width,) * (count + (level < len(widths) - 1))


def _up_stages(config: UNetConfig) -> Iterator[Stage]:
    widths, counts = config.block_out_channels, config.each(config.layers_per_block)
    skips, channels = [*skip_widths(config)], widths[-1]
    for place, level in enumerate(reversed(range(len(widths)))):
        resnets = []
        for _ in range(counts[level] + 1):
            resnets.append(_resnet(config, channels + skips.pop(), widths[level]))
            channels = widths[level]
        yield Stage(
            resnets,
            _attentions(config, level, len(resnets), config.up_block_types[place], f"up.{place}"),
            upsamplers=[Upsample(channels)] if level > 0 else [],
        )


SD1 = UNetConfig(sample_size=64, cross_attention_dim=768)
SD2 = replace(
    SD1, sample_size=96, attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True,
    upcast_attention=True,
)
SDXL = UNetConfig(
    sample_size=128,
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=(5, 10, 20),
    transformer_layers_per_block=(1, 2, 10),
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=1280 + 6 * 256,
)
SDXL_REFINER = replace(
    SDXL,
    block_out_channels=(384, 768, 1536, 1536),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=(6, 12, 24, 24),
    transformer_layers_per_block=4,
    cross_attention_dim=1280,
    projection_class_embeddings_input_dim=1280 + 5 * 256,
)
X4_UPSCALER = UNetConfig(
    in_channels=7,
    sample_size=128,
    block_out_channels=(256, 512, 512, 1024),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    cross_attention_dim=1024,
    only_cross_attention=(True, True, True, False),
    use_linear_projection=True,
    num_class_embeds=1000,
)
UNETS: dict[str, UNetConfig] = {
    "sd1": SD1,
    "sd1-inpaint": replace(SD1, in_channels=9),
    "sd1-lcm": replace(SD1, time_cond_proj_dim=256),
    "sd2": SD2,
    "sd2-base": replace(SD2, sample_size=64, upcast_attention=False),
    "sd2-inpaint": replace(SD2, in_channels=9, sample_size=64, upcast_attention=False),
    "sd2-depth": replace(SD2, in_channels=5, sample_size=64, upcast_attention=False),
    "sd2-unclip": replace(SD2, class_embed_type="projection", projection_class_embeddings_input_dim=2048),
    "x4-upscaler": X4_UPSCALER,
    "sdxl": SDXL,
    "sdxl-inpaint": replace(SDXL, in_channels=9),
    "sdxl-lcm": replace(SDXL, time_cond_proj_dim=256),
    "sdxl-refiner": SDXL_REFINER,
}
"""The U-Nets of the published models."""
