"""The tiny autoencoder (Bohan, "TAESD", 2023): a large one distilled, with the same latents at a fraction of the cost.

Parameter names are diffusers' (``AutoencoderTiny``); ``from_taesd`` reads those of TAESD's own files. There is no
published paper: the architecture is what the released weights of github.com/madebyollin/taesd have.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import CheckpointError, ConfigError
from sfumato.models.autoencoder import check_size
from sfumato.models.latents import Gaussian
from sfumato.nn.layers import Conv2d, GroupNorm


@dataclass(frozen=True)
class TinyConfig:
    """Field names are those of diffusers' config.json, but for ``use_midblock_gn``, which is TAESD's."""

    in_channels: Annotated[int, "channels of a picture"] = 3
    out_channels: Annotated[int, "channels of a decoded picture"] = 3
    encoder_block_out_channels: Annotated[tuple[int, ...], "channels of each stage, finest first"] = (64, 64, 64, 64)
    decoder_block_out_channels: Annotated[tuple[int, ...], "channels of each stage, coarsest first"] = (64, 64, 64, 64)
    block_out_channels: Annotated[tuple[int, ...] | None, "the decoder's once more, as diffusers writes them"] = None
    act_fn: Annotated[Literal["relu"], "the activation"] = "relu"
    upsample_fn: Annotated[Literal["nearest"], "how the decoder doubles its sides"] = "nearest"
    latent_channels: Annotated[int, "channels of a latent"] = 4
    upsampling_scaling_factor: Annotated[Literal[2], "between two stages of the decoder"] = 2
    num_encoder_blocks: Annotated[tuple[int, ...], "residual blocks of each stage, finest first"] = (1, 3, 3, 3)
    num_decoder_blocks: Annotated[tuple[int, ...], "residual blocks of each stage, coarsest first"] = (3, 3, 3, 1)
    use_midblock_gn: Annotated[bool, "pooled, normalised 1 x 1 branches at the coarsest stage (FLUX.2)"] = False
    latent_magnitude: Annotated[float, "latents lie within plus or minus this; for storing them as bytes"] = 3.0
    latent_shift: Annotated[float, "what a zero becomes when latents are stored in [0, 1]"] = 0.5
    scaling_factor: Annotated[float, "what the latent format multiplies latents with; not applied here"] = 1.0
    shift_factor: Annotated[float, "what the latent format subtracts from latents; not applied here"] = 0.0
    force_upcast: Annotated[bool, "its activations overflow float16"] = False

    def __post_init__(self) -> None:
        for half in ("encoder", "decoder"):
            widths, blocks = getattr(self, f"{half}_block_out_channels"), getattr(self, f"num_{half}_blocks")
            if not widths or len(widths) != len(blocks):
                raise ConfigError(
                    f"TinyConfig: {half}_block_out_channels has {len(widths)} stages, num_{half}_blocks {len(blocks)}."
                )
        if len(self.num_encoder_blocks) != len(self.num_decoder_blocks):
            raise ConfigError("TinyConfig: the encoder and the decoder differ in stages, so sizes would not come back.")
        if self.block_out_channels is None:
            object.__setattr__(self, "block_out_channels", self.decoder_block_out_channels)
        if self.block_out_channels != self.decoder_block_out_channels:
            raise ConfigError("TinyConfig: block_out_channels differs from decoder_block_out_channels.")

    @property
    def factor(self) -> int:
        """Pixels a latent position, along each side."""
        return 1 << (len(self.num_encoder_blocks) - 1)


class Block(nn.Module):
    """Three convolutions with ReLU, around which the input passes."""

    def __init__(self, channels: int, norm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
            Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
            Conv2d(channels, channels, 3, padding=1),
        )
        self.pool = None
        if norm:
            inner = 4 * channels
            self.pool = nn.Sequential(
                Conv2d(channels, inner, 1, bias=False), GroupNorm(4, inner), nn.ReLU(),
                Conv2d(inner, channels, 1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        if self.pool is not None:
            x = self.pool[3](self.pool[:3](x), residual=x)
        return F.relu(self.conv[4](self.conv[:4](x), residual=x))


class Encoder(nn.Module):
    """Picture to latent."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        widths, blocks = config.encoder_block_out_channels, config.num_encoder_blocks
        layers: list[nn.Module] = [Conv2d(config.in_channels, widths[0], 3, padding=1)]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            if stage:
                layers.append(Conv2d(widths[stage - 1], width, 3, padding=1, stride=2, bias=False))
            norm = config.use_midblock_gn and stage == len(widths) - 1
            layers += [Block(width, norm) for _ in range(count)]
        self.layers = nn.Sequential(*layers, Conv2d(widths[-1], config.latent_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, C, H / factor, W / factor]."""
        y: Tensor = self.layers((x + 1.0) / 2.0)
        return y


class Decoder(nn.Module):
    """Latent to picture."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        widths, blocks = config.decoder_block_out_channels, config.num_decoder_blocks
        layers: list[nn.Module] = [Conv2d(config.latent_channels, widths[0], 3, padding=1), nn.ReLU()]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            layers += [Block(width, norm=config.use_midblock_gn and stage == 0) for _ in range(count)]
            if stage + 1 < len(widths):
                layers += [nn.Upsample(scale_factor=2), Conv2d(width, widths[stage + 1], 3, padding=1, bias=False)]
        self.layers = nn.Sequential(*layers, Conv2d(widths[-1], config.out_channels, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        """[B, C, h, w], softly held in [-3, 3] -> [B, 3, h * factor, w * factor], about [-1, 1]."""
        y: Tensor = self.layers(torch.tanh(z / 3.0) * 3.0)
        return y * 2.0 - 1.0


class TinyAutoencoder(nn.Module):
    """Pictures to latents, and back, in milliseconds."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def factor(self) -> int:
        """Pixels a latent position, along each side."""
        return self.config.factor

    def encode(self, x: Tensor) -> Gaussian:
        """The latents of pictures.

        Args:
            x: [B, 3, H, W] in [-1, 1], H and W multiples of ``factor``.

        Returns:
            A point: a Gaussian over [B, C, H / factor, W / factor] without variance.

        Raises:
            RequestError: a side that is no multiple of ``factor``.
        """
        check_size(x, self.factor)
        return Gaussian.point(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, h * factor, w * factor], about [-1, 1], not clamped."""
        y: Tensor = self.decoder(z)
        return y


W = TypeVar("W")


def from_taesd(half: Literal["encoder", "decoder"], state: Mapping[str, W]) -> dict[str, W]:
    """The names of one of TAESD's own files, which are positions in a sequence, as names of ``TinyAutoencoder``.

    Its decoders begin with a clamp that has no parameters, hence count from one.

    Raises:
        CheckpointError: a name that is no position.
    """
    offset = 1 if half == "decoder" else 0
    renamed = {}
    for name, tensor in state.items():
        found = re.fullmatch(r"(\d+)\.(.+)", name)
        if found is None:
            raise CheckpointError(f"{name!r} is no parameter of a TAESD {half}: those begin with a number.")
        renamed[f"{half}.layers.{int(found[1]) - offset}.{found[2]}"] = tensor
    return renamed


TAESD = TinyConfig()
"""Of Stable Diffusion 1.x, 2.x and, with other weights, XL."""

TAESD_16 = TinyConfig(latent_channels=16)
"""Of Stable Diffusion 3 and FLUX.1."""

TAEF2 = TinyConfig(latent_channels=32, use_midblock_gn=True)
"""Of FLUX.2."""
