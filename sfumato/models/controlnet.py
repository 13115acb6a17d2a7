"""A network that reads a picture of edges, depths, poses, …, and what it adds to a U-Net (Zhang et al., 2023).

"Adding conditional control to text-to-image diffusion models", section 3: a copy of the U-Net's way down and middle
sees the noisy latents with the picture added to them; what it passes across goes, through a 1 x 1 convolution that is
zero when training begins, to what the U-Net passes across.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.errors import ConfigError
from sfumato.models.unet import SD1, SD2, SDXL, EncoderConfig, UNet, UNetEncoder, skip_widths
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.deep import Deep
from sfumato.nn.embeddings import Times
from sfumato.nn.layers import Conv2d
from sfumato.nn.stage import call
from sfumato.nn.transformer import Attention

PLACE = "control."
"""How the names of its attentions begin, for the tap."""


@dataclass(frozen=True)
class ControlNetConfig(EncoderConfig):
    """Names and values are those of config.json beside such a network's weights."""

    conditioning_channels: Annotated[int, "of the picture"] = 3
    conditioning_embedding_out_channels: Annotated[
        tuple[int, ...], "channels of what encodes the picture; each after the first halves its sides"
    ] = (16, 32, 96, 256)
    controlnet_conditioning_channel_order: Annotated[Literal["rgb", "bgr"], "how it was shown pictures"] = "rgb"

    fixed: ClassVar[Mapping[str, Any]] = {**EncoderConfig.fixed, "global_pool_conditions": False}
    own: ClassVar[tuple[str, ...]] = ("time_cond_proj_dim",)

    @property
    def factor(self) -> int:
        """Pixels of the picture that a latent position stands for, in each direction."""
        return int(2 ** (len(self.conditioning_embedding_out_channels) - 1))


class Residuals(NamedTuple):
    """What is added to a U-Net; rows as ``UNet.forward`` takes them."""

    down: list[Tensor]  # [B or R, C, H, W] each, in the order of the way down
    mid: Tensor | None  # [B or R, C, H, W]; None: the middle was not asked for


class PictureEncoder(nn.Module):
    """Brings a picture to the size of the latents."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        widths = config.conditioning_embedding_out_channels
        self.conv_in = Conv2d(config.conditioning_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for channels, out_channels in pairwise(widths):
            self.blocks.append(Conv2d(channels, channels, 3, padding=1))
            self.blocks.append(Conv2d(channels, out_channels, 3, padding=1, stride=2))
        self.conv_out = _zero(Conv2d(widths[-1], config.block_out_channels[0], 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, C, H / factor, W / factor]."""
        h = F.silu(self.conv_in(x))
        for block in self.blocks:
            h = F.silu(block(h))
        seen: Tensor = self.conv_out(h)
        return seen


class ControlNet(UNetEncoder):
    """The way down and the middle of a U-Net, told a picture, with its zero convolutions."""

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        self.controlnet_cond_embedding = PictureEncoder(config)
        self.controlnet_down_blocks = nn.ModuleList(_zero(Conv2d(w, w, 1)) for w in skip_widths(config))
        last = config.block_out_channels[-1]
        self.controlnet_mid_block = _zero(Conv2d(last, last, 1))
        for module in self.modules():
            if isinstance(module, Attention):
                module.name = PLACE + module.name

    def see(self, picture: Tensor) -> Tensor:
        """What it makes of a picture before it sees any latents, for ``Conditioning.control``.

        Args:
            picture: [B, 3, H, W] in [0, 1], red, green, blue.

        Returns:
            [B, C, H / factor, W / factor].
        """
        if self.config.controlnet_conditioning_channel_order == "bgr":
            picture = picture.flip(1)
        seen: Tensor = self.controlnet_cond_embedding(picture.contiguous(memory_format=torch.channels_last))
        return seen

    def forward(
        self, x: Tensor, t: Tensor | float | Times, conditioning: Conditioning, most: int | None = None
    ) -> Residuals:
        """What it adds to a U-Net that is asked the same.

        As there, the conditioning may have k times the rows of x, and rows are shared up to the first cross-attention.

        Args:
            x: [B, in_channels, H, W].
            t: as ``UNet.forward`` takes it; of this network's own ``prepare_times``.
            conditioning: R rows, with ``control`` and, if it is not to be 1, ``control_scale``; ``keys_values`` of this
                network's own ``prepare``.
            most: only so many of what is passed across are wanted, and not the middle.

        Raises:
            ConfigError: the conditioning lacks a field that the config names, or ``control``.
        """
        if conditioning.control is None:
            raise ConfigError("A control network is told a picture, and the conditioning has none.")
        x, shifts = self._start(x, t, conditioning)
        h: Tensor = self.conv_in(x, residual=conditioning.control[: len(x)])  # [B, C, H, W]
        h, skips = self._down(h, iter(shifts), conditioning, call, most)

        def said(convolution: nn.Module, h: Tensor) -> Tensor:
            y: Tensor = convolution(h)
            scale = conditioning.control_scale
            return y if scale is None else y * scale[: len(h), None, None, None]

        down = [said(block, skip) for block, skip in zip(self.controlnet_down_blocks, skips, strict=False)]
        return Residuals(down, said(self.controlnet_mid_block, h) if most is None else None)


class Controlled(nn.Module):
    """A U-Net and the network that controls it, asked as one; without ``Conditioning.control`` the U-Net alone.

    What it prepares of a conditioning, and of times, is the U-Net's with the control network's behind it.
    """

    def __init__(self, unet: UNet, control: ControlNet) -> None:
        super().__init__()
        self.unet, self.control = unet, control

    def prepare(self, conditioning: Conditioning) -> Conditioning:
        """Keys and values of all cross-attentions of both."""
        if conditioning.control is None or conditioning.keys_values is not None:
            return self.unet.prepare(conditioning)
        found = [network.prepare(conditioning).keys_values or () for network in (self.unet, self.control)]
        return replace(conditioning, context=None, keys_values=(*found[0], *found[1]))

    def prepare_times(self, t: Tensor, conditioning: Conditioning | None = None) -> Times:
        """See ``UNetEncoder.prepare_times``."""
        own = self.unet.prepare_times(t, conditioning)
        if conditioning is None or conditioning.control is None:
            return own
        shifts = [own.shifts, self.control.prepare_times(t, conditioning).shifts]
        rows = max(len(table[0]) for table in shifts)
        return Times(torch.cat([table.expand(-1, rows, -1) for table in shifts], dim=-1))

    def forward(
        self, x: Tensor, t: Tensor | float | Times, conditioning: Conditioning, deep: Deep | None = None
    ) -> Tensor:
        """[B, in_channels, H, W] -> [R, out_channels, H, W]; see ``UNet.forward``."""
        if conditioning.control is None:
            alone: Tensor = self.unet(x, t, conditioning, deep=deep)
            return alone
        own, beside, told, told_beside = t, t, conditioning, conditioning
        if isinstance(t, Times):
            end = sum(self.unet.time_widths)
            own, beside = Times(t.shifts[..., :end]), Times(t.shifts[..., end:])
        if conditioning.keys_values is not None:
            count = len(self.unet.cross_attentions())
            told = replace(conditioning, keys_values=conditioning.keys_values[:count])
            told_beside = replace(conditioning, keys_values=conditioning.keys_values[count:])
        most = None if deep is None or deep.value is None else deep.outer  # what is not run is not asked about
        down, mid = self.control(x[:, : self.control.config.in_channels], beside, told_beside, most)
        y: Tensor = self.unet(x, own, told, down, mid, deep=deep)
        return y


def _zero(convolution: Conv2d) -> Conv2d:
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution


CONTROLNETS: dict[str, ControlNetConfig] = {
    name: ControlNetConfig(
        block_out_channels=unet.block_out_channels, down_block_types=unet.down_block_types,
        attention_head_dim=unet.attention_head_dim, transformer_layers_per_block=unet.transformer_layers_per_block,
        cross_attention_dim=unet.cross_attention_dim, use_linear_projection=unet.use_linear_projection,
        upcast_attention=unet.upcast_attention,
        addition_embed_type=unet.addition_embed_type, addition_time_embed_dim=unet.addition_time_embed_dim,
        projection_class_embeddings_input_dim=unet.projection_class_embeddings_input_dim,
    )
    for name, unet in {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}.items()
}
"""Those for the published models."""
