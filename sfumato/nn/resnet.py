"""The residual block of U-Nets and autoencoders, and the changes of size between them."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.layers import Conv2d, GroupNorm, Linear, doubled_convolution, normalised_convolution


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution, twice, beside a shortcut (Ho et al., 2020, appendix B; He et al., 2016).

    Args:
        time_dim: of the embedding that ``time_emb_proj`` reads; None: the block does not depend on time.
        scale_shift: the time scales and shifts the second norm (Dhariwal and Nichol, 2021, section 4.1) where it is
            otherwise added before it.
        resample: half or double the size on the way in (Song et al., 2021, appendix H).
    """

    def __init__(
        self, channels: int, out_channels: int, time_dim: int | None, groups: int = 32, eps: float = 1e-5,
        scale_shift: bool = False, dropout: float = 0.0, resample: Literal["down", "up"] | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.scale_shift = scale_shift
        self.norm1 = GroupNorm(groups, channels, eps)
        self.conv1 = Conv2d(channels, out_channels, 3, padding=1)
        self.time_emb_proj = None
        if time_dim is not None:
            self.time_emb_proj = Linear(time_dim, 2 * out_channels if scale_shift else out_channels)
        self.norm2 = GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None if channels == out_channels else Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """One block.

        Args:
            x: [B, C, H, W].
            shift: [B or 1, C' or 2 C'], what ``time_emb_proj`` made of the time.

        Returns:
            [B, C', H, W], half or twice H and W where the block resamples.
        """
        h = self.norm1(x, silu=True)
        if self.resample == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)  # [B, C, H/2, W/2]
        elif self.resample == "up":
            x, h = (F.interpolate(y, scale_factor=2.0, mode="nearest") for y in (x, h))  # [B, C, 2H, 2W]
        if self.scale_shift and shift is not None:
            scale, offset = shift[:, :, None, None].chunk(2, dim=1)
            h = F.silu(self.norm2(self.conv1(h)) * (1 + scale) + offset)  # [B, C', H, W]
        else:
            h = normalised_convolution(self.conv1, self.norm2, h, shift)  # [B, C', H, W]
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        y: Tensor = self.conv2(self.dropout(h), residual=x)
        return y


class Downsample(nn.Module):
    """Half the size by a convolution of stride 2.

    Args:
        padding: 1 on every side, or 0: then one row and column of zeros on the right and the bottom alone.
    """

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H/2, W/2]; odd sizes are rounded up with padding 1, down without."""
        if self.padding == 0:
            x = F.pad(x, (0, 1, 0, 1))
        y: Tensor = self.conv(x)
        return y


class Upsample(nn.Module):
    """Twice the size, each value repeated, then a convolution (Odena et al., 2016: no checkerboard)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """[B, C, H, W] -> [B, C, 2H, 2W], or exactly ``size`` where an odd size was halved."""
        if size is None or size == (2 * x.shape[-2], 2 * x.shape[-1]):
            return doubled_convolution(self.conv, x)
        y: Tensor = self.conv(F.interpolate(x, size=size, mode="nearest"))
        return y
