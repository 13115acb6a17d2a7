"""The KL autoencoder of latent diffusion (Rombach et al., 2022, section 3.1).

Encoder and decoder are those of VQGAN (Esser et al., 2021), and shared with it. Parameter names are diffusers'
(``AutoencoderKL``). Scaling and shifting of latents is not done here: what ``encode`` gives and ``decode`` takes are
the network's own numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import ConfigError, RequestError
from sfumato.models.latents import Gaussian
from sfumato.nn.layers import Conv2d, GroupNorm
from sfumato.nn.resnet import Downsample, ResnetBlock, Upsample
from sfumato.nn.transformer import SpatialAttention

DownBlock = Literal["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]
UpBlock = Literal["UpDecoderBlock2D", "AttnUpDecoderBlock2D"]
EPS = 1e-6
"""Of every group norm in these networks."""


@dataclass(frozen=True)
class CoderConfig:
    """What the KL and the VQ autoencoder share; field names are those of diffusers' config.json."""

    in_channels: Annotated[int, "channels of a picture"] = 3
    out_channels: Annotated[int, "channels of a decoded picture"] = 3
    down_block_types: Annotated[tuple[DownBlock, ...] | None, "a level each, finest first; None: no attention"] = None
    up_block_types: Annotated[tuple[UpBlock, ...] | None, "a level each, coarsest first; None: no attention"] = None
    block_out_channels: Annotated[tuple[int, ...], "channels of each level, finest first; each halves but one"] = (
        128, 256, 512, 512,
    )
    layers_per_block: Annotated[int, "residual blocks a level of the encoder; the decoder has one more"] = 2
    act_fn: Annotated[Literal["silu"], "the activation"] = "silu"
    latent_channels: Annotated[int, "channels of a latent"] = 4
    norm_num_groups: Annotated[int, "groups of every group norm"] = 32
    sample_size: Annotated[int, "side in pixels of the pictures it was trained on"] = 512
    scaling_factor: Annotated[float, "what the latent format multiplies latents with; not applied here"] = 0.18215
    force_upcast: Annotated[bool, "its activations overflow float16: decode in float32 or bfloat16"] = False
    mid_block_add_attention: Annotated[bool, "attention at the bottleneck"] = True
    patch_size: Annotated[int, "squares of so many pixels a side are folded into channels first: small and quick"] = 1

    shortcut: Annotated[
        bool, "a linear map of patches to latents and back, beside the networks: they learn only what it leaves over",
    ] = False

    own: ClassVar[tuple[str, ...]] = ("patch_size", "shortcut")

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        counts = (*self.block_out_channels, self.layers_per_block, self.latent_channels, self.patch_size)
        if levels == 0 or min(counts) < 1:
            name = type(self).__name__
            raise ConfigError(f"{name}: channels, layers and patches must be at least 1, one level at least.")
        if self.down_block_types is None:
            object.__setattr__(self, "down_block_types", ("DownEncoderBlock2D",) * levels)
        if self.up_block_types is None:
            object.__setattr__(self, "up_block_types", ("UpDecoderBlock2D",) * levels)
        for name in ("down_block_types", "up_block_types"):
            if len(getattr(self, name)) != levels:
                raise ConfigError(
                    f"{type(self).__name__}: {name} names {len(getattr(self, name))} levels, "
                    f"block_out_channels {levels}."
                )
        odd = [c for c in self.block_out_channels if c % self.norm_num_groups]
        if odd:
            raise ConfigError(
                f"{type(self).__name__}: {odd[0]} channels cannot be normalised in norm_num_groups = "
                f"{self.norm_num_groups} equal groups."
            )

    @property
    def factor(self) -> int:
        """Pixels a latent position, along each side."""
        return self.patch_size << (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class AutoencoderConfig(CoderConfig):
    """diffusers' ``AutoencoderKL``."""

    shift_factor: Annotated[float | None, "what the latent format subtracts from latents; not applied here"] = None
    latents_mean: Annotated[tuple[float, ...] | None, "the same, a channel each; not applied here"] = None
    latents_std: Annotated[tuple[float, ...] | None, "the deviation of each latent channel; not applied here"] = None
    use_quant_conv: Annotated[bool, "a 1 x 1 convolution after the encoder"] = True
    use_post_quant_conv: Annotated[bool, "a 1 x 1 convolution before the decoder"] = True


def _residual(channels: int, out_channels: int, groups: int) -> ResnetBlock:
    return ResnetBlock(channels, out_channels, time_dim=None, groups=groups, eps=EPS)


def _attention(channels: int, groups: int) -> SpatialAttention:
    """One head as wide as the channels."""
    return SpatialAttention(channels, 1, groups, EPS)


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention if asked for; then the way to the next one."""

    def __init__(
        self, channels: int, out_channels: int, layers: int, groups: int, attention: bool,
        down: bool = False, up: bool = False,
    ) -> None:
        super().__init__()
        widths = [channels] + [out_channels] * layers
        self.resnets = nn.ModuleList(_residual(a, out_channels, groups) for a in widths[:-1])
        if attention:
            self.attentions = nn.ModuleList(_attention(out_channels, groups) for _ in range(layers))
        if down:
            self.downsamplers = nn.ModuleList([Downsample(out_channels, padding=0)])
        if up:
            self.upsamplers = nn.ModuleList([Upsample(out_channels)])
        self.attends, self.resample = attention, "downsamplers" if down else "upsamplers" if up else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H', W'], H' being H, H / 2 or 2 H."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(x)
            if self.attends:
                x = self.attentions[i](x)
        if self.resample is not None:
            x = getattr(self, self.resample)[0](x)
        return x


class Bottleneck(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([_attention(channels, groups)] if attention else [])
        self.resnets = nn.ModuleList(_residual(channels, channels, groups) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        y: Tensor = self.resnets[1](x)
        return y


class Encoder(nn.Module):
    """Picture to latent, ``out_channels`` of them."""

    def __init__(self, config: CoderConfig, out_channels: int) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.patch = config.patch_size
        self.conv_in = Conv2d(config.in_channels * self.patch**2, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(
                before, width, config.layers_per_block, groups, attention=kind == "AttnDownEncoderBlock2D",
                down=i + 1 < len(widths),
            )
            for i, (before, width, kind) in enumerate(_levels(widths, config.down_block_types))
        )
        self.mid_block = Bottleneck(widths[-1], groups, config.mid_block_add_attention)
        self.conv_norm_out = GroupNorm(groups, widths[-1], eps=EPS)
        self.conv_out = Conv2d(widths[-1], out_channels, 3, padding=1)
        self.shortcut = None
        if config.shortcut:
            self.shortcut = Conv2d(config.in_channels, out_channels, config.factor, config.factor)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, out_channels, H / factor, W / factor]."""
        h = self.conv_in(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)  # [B, C', H / patch, W / patch]
        for block in self.down_blocks:
            h = block(h)
        y: Tensor = self.conv_out(self.conv_norm_out(self.mid_block(h), silu=True))
        return y if self.shortcut is None else y + self.shortcut(x)


class Decoder(nn.Module):
    """Latent to picture."""

    def __init__(self, config: CoderConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Bottleneck(widths[0], groups, config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList(
            Level(
                before, width, config.layers_per_block + 1, groups, attention=kind == "AttnUpDecoderBlock2D",
                up=i + 1 < len(widths),
            )
            for i, (before, width, kind) in enumerate(_levels(widths, config.up_block_types))
        )
        self.conv_norm_out = GroupNorm(groups, widths[-1], eps=EPS)
        self.patch = config.patch_size
        self.conv_out = Conv2d(widths[-1], config.out_channels * self.patch**2, 3, padding=1)
        self.factor = config.factor
        self.shortcut = None
        if config.shortcut:
            self.shortcut = Conv2d(config.latent_channels, config.out_channels * self.factor**2, 1)

    def forward(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, h * factor, w * factor]."""
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = block(h)
        y: Tensor = self.conv_out(self.conv_norm_out(h, silu=True))
        if self.patch > 1:
            y = F.pixel_shuffle(y, self.patch)
        return y if self.shortcut is None else y + F.pixel_shuffle(self.shortcut(z), self.factor)

    @property
    def last_layer(self) -> Tensor:
        """The last weight: where an adversarial loss measures its gradient (Esser et al., 2021, eq. 7)."""
        return self.conv_out.weight


def _levels(widths: tuple[int, ...], kinds: Sequence[str] | None) -> list[tuple[int, int, str]]:
    """(channels in, channels out, block type) of each level."""
    return list(zip((widths[0], *widths), widths, kinds or (), strict=False))


def check_size(x: Tensor, factor: int) -> None:
    """Raises a RequestError for a picture whose sides the encoder would otherwise silently cut to multiples."""
    height, width = x.shape[-2:]
    if height % factor or width % factor or not height or not width:
        near = " x ".join(str(max(1, round(side / factor)) * factor) for side in (width, height))
        raise RequestError(
            f"A picture of {width} x {height} pixels cannot be encoded: this autoencoder takes multiples of {factor}; "
            f"the nearest size is {near}."
        )


class Autoencoder(nn.Module):
    """Pictures to Gaussians over latents, and back."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config, 2 * channels)
        self.decoder = Decoder(config)
        self.quant_conv = Conv2d(2 * channels, 2 * channels, 1) if config.use_quant_conv else None
        self.post_quant_conv = Conv2d(channels, channels, 1) if config.use_post_quant_conv else None

    @property
    def factor(self) -> int:
        """Pixels a latent position, along each side."""
        return self.config.factor

    def encode(self, x: Tensor) -> Gaussian:
        """What the latents of pictures may be.

        Args:
            x: [B, 3, H, W] in [-1, 1], H and W multiples of ``factor``.

        Returns:
            A Gaussian over [B, C, H / factor, W / factor].

        Raises:
            RequestError: a side that is no multiple of ``factor``.
        """
        check_size(x, self.factor)
        moments = self.encoder(x)  # [B, 2 C, h, w]
        return Gaussian.of_moments(moments if self.quant_conv is None else self.quant_conv(moments))

    def decode(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, h * factor, w * factor], about [-1, 1], not clamped."""
        y: Tensor = self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
        return y


SD_VAE = AutoencoderConfig()
"""Stable Diffusion 1.x and 2.x."""

SDXL_VAE = AutoencoderConfig(sample_size=1024, scaling_factor=0.13025, force_upcast=True)
"""Stable Diffusion XL."""

SD3_VAE = AutoencoderConfig(
    latent_channels=16, sample_size=1024, scaling_factor=1.5305, shift_factor=0.0609, force_upcast=True,
    use_quant_conv=False, use_post_quant_conv=False,
)
"""Stable Diffusion 3."""

FLUX_VAE = AutoencoderConfig(
    latent_channels=16, sample_size=1024, scaling_factor=0.3611, shift_factor=0.1159, force_upcast=True,
    use_quant_conv=False, use_post_quant_conv=False,
)
"""FLUX.1."""

X4_UPSCALER_VAE = AutoencoderConfig(block_out_channels=(128, 256, 512), sample_size=256, scaling_factor=0.08333)
"""The x4 upscaler of Stable Diffusion 2: factor 4."""
