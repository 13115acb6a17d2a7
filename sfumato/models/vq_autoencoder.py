"""The vector-quantised autoencoder (van den Oord et al., 2017; VQGAN: Esser et al., 2021; Rombach et al., 2022).

Parameter names are diffusers' (``VQModel``).
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import ConfigError
from sfumato.models.autoencoder import CoderConfig, Decoder, Encoder, check_size
from sfumato.models.latents import Gaussian
from sfumato.nn.layers import Conv2d


@dataclass(frozen=True)
class VQConfig(CoderConfig):
    """diffusers' ``VQModel``."""

    num_vq_embeddings: Annotated[int, "entries of the codebook"] = 8192
    vq_embed_dim: Annotated[int | None, "channels of an entry, and of the latents; None: latent_channels"] = None
    norm_type: Annotated[Literal["group"], "the normalisation in the decoder"] = "group"
    lookup_from_codebook: Annotated[Literal[False], "decoding takes latents, not indices"] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vq_embed_dim is None:
            object.__setattr__(self, "vq_embed_dim", self.latent_channels)
        if self.num_vq_embeddings < 1 or self.dim < 1:
            raise ConfigError("VQConfig: the codebook needs an entry of one channel at least.")

    @property
    def dim(self) -> int:
        """Channels of a codebook entry."""
        return self.latent_channels if self.vq_embed_dim is None else self.vq_embed_dim


class Quantised(NamedTuple):
    """Latents made of codebook entries."""

    latents: Tensor  # [B, D, h, w]; gradients pass to what was quantised as if it had not been
    indices: Tensor  # [B, h, w] integers
    codebook_loss: Tensor  # scalar, pulls the entries to the latents (van den Oord et al., 2017, eq. 3, second term)
    commitment_loss: Tensor  # scalar, pulls the latents to the entries (ibid., third term, without its beta of 0.25)


class Usage(NamedTuple):
    """How well a codebook is used."""

    used: float  # share of the entries that occur, 0 to 1
    perplexity: float  # 1 where one entry is always taken, the number of entries where all are equally often


class Quantiser(nn.Module):
    """A codebook, and the nearest entry of it."""

    def __init__(self, entries: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(entries, dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / entries, 1.0 / entries)

    def forward(self, h: Tensor) -> Quantised:
        """[B, D, h, w] -> the nearest entry at each position, with straight-through gradients."""
        batch, dim, height, width = h.shape
        points = h.permute(0, 2, 3, 1).reshape(-1, dim)  # [N, D]
        book = self.embedding.weight  # [K, D]
        # |p - e|^2 without |p|^2, which is the same for every entry.
        distances = torch.addmm(book.square().sum(1), points, book.T, alpha=-2.0)  # [N, K]
        indices = distances.argmin(1).reshape(batch, height, width)
        entries = self.lookup(indices)
        codebook_loss, commitment_loss = F.mse_loss(entries, h.detach()), F.mse_loss(h, entries.detach())
        return Quantised(h + (entries - h).detach(), indices, codebook_loss, commitment_loss)

    def lookup(self, indices: Tensor) -> Tensor:
        """[B, h, w] integers -> [B, D, h, w]."""
        entries: Tensor = self.embedding(indices).permute(0, 3, 1, 2)
        return entries


class VQAutoencoder(nn.Module):
    """Pictures to latents, rounded to a codebook before they are decoded.

    A diffusion model works on what ``encode`` gives, which is not quantised yet, and ``decode`` quantises what the
    model made (Rombach et al., 2022, section 3.1: the quantiser belongs to the decoder).
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, config.latent_channels)
        self.quant_conv = Conv2d(config.latent_channels, config.dim, 1)
        self.quantize = Quantiser(config.num_vq_embeddings, config.dim)
        self.post_quant_conv = Conv2d(config.dim, config.latent_channels, 1)
        self.decoder = Decoder(config)

    @property
    def factor(self) -> int:
        """Pixels a latent position, along each side."""
        return self.config.factor

    def encode(self, x: Tensor) -> Gaussian:
        """The latents of pictures, before quantisation.

        Args:
            x: [B, 3, H, W] in [-1, 1], H and W multiples of ``factor``.

        Returns:
            A point: a Gaussian over [B, D, H / factor, W / factor] without variance.

        Raises:
            RequestError: a side that is no multiple of ``factor``.
        """
        check_size(x, self.factor)
        return Gaussian.point(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """[B, D, h, w], quantised here -> [B, 3, h * factor, w * factor], about [-1, 1], not clamped."""
        return self.decode_quantised(self.quantize(z).latents)

    def decode_quantised(self, latents: Tensor) -> Tensor:
        """The same for latents that ``quantize`` made: training needs both the latents and the losses."""
        y: Tensor = self.decoder(self.post_quant_conv(latents))
        return y


def usage(indices: Tensor, entries: int) -> Usage:
    """How well ``indices`` (any shape, integers) use a codebook of so many entries."""
    share = torch.bincount(indices.flatten(), minlength=entries).double() / indices.numel()
    entropy = -torch.xlogy(share, share).sum()
    return Usage(float((share > 0).double().mean()), float(entropy.exp()))


VQ_F4 = VQConfig(block_out_channels=(128, 256, 512), latent_channels=3, sample_size=256)
"""Factor 4: what latent diffusion uses for most of its models (Rombach et al., 2022, table 8)."""

VQ_F8 = VQConfig(
    block_out_channels=(128, 256, 256, 512), latent_channels=4, num_vq_embeddings=16384, sample_size=256,
    down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
    up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
)
"""Factor 8."""

VQ_F16 = VQConfig(
    block_out_channels=(128, 128, 256, 256, 512), latent_channels=8, num_vq_embeddings=16384, sample_size=256,
    down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
    up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
)
"""Factor 16."""
