"""Residual blocks and changes of size."""

import pytest
import torch
import torch.nn.functional as F

from sfumato.nn.resnet import Downsample, ResnetBlock, Upsample


@torch.no_grad()
def test_time_is_added_or_scales() -> None:
    x, shift = torch.randn(2, 4, 6, 6), torch.randn(2, 8)
    added, scaled = ResnetBlock(4, 8, 5, groups=2), ResnetBlock(4, 8, 5, groups=2, scale_shift=True)
    scaled.load_state_dict(added.state_dict() | {
        name: tensor for name, tensor in scaled.state_dict().items() if name.startswith("time_emb_proj")
    })
    h = added.conv1(F.silu(added.norm1(x)))
    around = F.conv2d(x, scaled.conv_shortcut.weight, scaled.conv_shortcut.bias) if scaled.conv_shortcut else x
    expected = around + added.conv2(F.silu(added.norm2(h + shift[:, :, None, None])))
    torch.testing.assert_close(added(x, shift), expected)
    both = torch.cat([shift, 2 * shift], dim=1)
    normed = added.norm2(h) * (1 + shift[:, :, None, None]) + 2 * shift[:, :, None, None]
    torch.testing.assert_close(scaled(x, both), around + added.conv2(F.silu(normed)))


def test_one_shift_serves_every_row() -> None:
    block = ResnetBlock(4, 4, 5, groups=2)
    x, shift = torch.randn(3, 4, 6, 6), torch.randn(1, 4)
    torch.testing.assert_close(block(x, shift), block(x, shift.repeat(3, 1)))


@pytest.mark.parametrize(("padding", "size", "expected"), [(1, (7, 8), (4, 4)), (0, (7, 8), (3, 4))])
def test_halves(padding: int, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert Downsample(4, padding)(torch.randn(1, 4, *size)).shape[-2:] == expected


def test_doubles_or_fits() -> None:
    up = Upsample(4)
    x = torch.randn(1, 4, 3, 4)
    assert torch.equal(up(x), up(x, (6, 8)))
    assert up(x, (5, 7)).shape == (1, 4, 5, 7)


def test_resamples_on_the_way_in() -> None:
    x = torch.randn(1, 4, 6, 8)
    assert ResnetBlock(4, 4, None, groups=2, resample="down")(x).shape == (1, 4, 3, 4)
    assert ResnetBlock(4, 4, None, groups=2, resample="up")(x).shape == (1, 4, 12, 16)
