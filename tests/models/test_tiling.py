"""Slices are exact; tiles cover everything, leave no seams, and stay near the whole."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.core.errors import RequestError
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.latents import Gaussian
from sfumato.models.tiling import decode_sliced, decode_tiled, encode_sliced, encode_tiled, spans
from tests.models.test_tiny_autoencoder import photograph, psnr, real


class Enlarger:
    """A codec that sees its neighbourhood and nothing else: blurred copies, four times larger or smaller."""

    factor = 4

    def encode(self, x: Tensor) -> Gaussian:
        y = F.avg_pool2d(x, 4)
        return Gaussian(y, -y)

    def decode(self, z: Tensor) -> Tensor:
        return F.interpolate(z, scale_factor=4, mode="bilinear", align_corners=False)


def test_slices_are_exact() -> None:
    torch.manual_seed(0)
    network = Autoencoder(AutoencoderConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)).eval()
    x, z = torch.rand(3, 3, 12, 8) * 2 - 1, torch.randn(3, 4, 6, 4)
    with torch.inference_mode():
        assert torch.allclose(decode_sliced(network, z), network.decode(z), atol=1e-6)
        for found, expected in zip(encode_sliced(network, x), network.encode(x), strict=True):
            assert torch.allclose(found, expected, atol=1e-6)


@given(length=st.integers(1, 300), tile=st.integers(2, 64), share=st.floats(0.01, 0.99))
def test_tiles_cover_everything_and_overlap(length: int, tile: int, share: float) -> None:
    overlap = min(max(1, int(tile * share)), tile - 1)
    found = list(spans(length, tile, overlap))
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert all(last - first == min(tile, length) for first, last in found)
    assert all(first <= before - overlap for (_, before), (first, _) in pairwise(found))


def test_tiles_of_something_local_make_the_whole() -> None:
    codec, generator = Enlarger(), torch.Generator().manual_seed(0)
    # A smooth field: what bilinear enlarging makes of a few random values.
    z = F.interpolate(torch.randn(2, 3, 5, 7, generator=generator), (50, 70), mode="bicubic")
    found, expected = decode_tiled(codec, z, tile=16, overlap=8), codec.decode(z)
    assert found.shape == expected.shape
    assert psnr(found, expected) > 50
    # No seam: no step between neighbouring pixels is greater than in the whole.
    for dim in (2, 3):
        assert found.diff(dim=dim).abs().max() <= 1.1 * expected.diff(dim=dim).abs().max()


class Drifter(Enlarger):
    """The worst that a tile can do: all of it has the colour of its mean."""

    def decode(self, z: Tensor) -> Tensor:
        return z.mean((2, 3), keepdim=True).expand(-1, -1, 4 * z.shape[2], 4 * z.shape[3])


def test_tiles_that_disagree_melt_into_each_other() -> None:
    z = torch.zeros(1, 1, 12, 20)
    z[..., 10:] = 1.0  # two tiles, of means 0.167 and 0.833, share eight columns
    row = decode_tiled(Drifter(), z, tile=14, overlap=8)[0, 0, 0]
    assert row.min() == row[0]
    assert row.max() == row[-1]
    step = (row[-1] - row[0]) / (8 * 4)
    assert row[-1] - row[0] > 0.4
    assert row.diff().min() >= -1e-6
    assert row.diff().max() <= 1.2 * step


def test_encoding_in_tiles() -> None:
    codec = Enlarger()
    x = torch.rand(2, 3, 80, 48)
    for found, expected in zip(encode_tiled(codec, x, tile=8, overlap=3), codec.encode(x), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


def test_one_tile_is_the_whole() -> None:
    codec, z = Enlarger(), torch.randn(1, 4, 10, 12)
    assert torch.allclose(decode_tiled(codec, z, tile=12, overlap=4), codec.decode(z), atol=1e-6)


def test_real_pictures_in_tiles() -> None:
    network, x = real(), photograph("astronaut")
    with torch.inference_mode():
        z = network.encode(x).mode()
        whole = network.decode(z)
        assert psnr(decode_tiled(network, z, tile=20, overlap=8), whole) > 28  # its group norms see a tile only
        tiled = encode_tiled(network, x, tile=20, overlap=8)
        assert tiled.log_variance.isneginf().all()
        assert psnr(network.decode(tiled.mode()), whole) > 28


@pytest.mark.parametrize("overlap", [0, 8, 9])
def test_tiles_that_cannot_overlap_are_refused(overlap: int) -> None:
    with pytest.raises(RequestError, match="overlap"):
        decode_tiled(Enlarger(), torch.zeros(1, 3, 20, 20), tile=8, overlap=overlap)
    with pytest.raises(RequestError, match="multiples of 4"):
        encode_tiled(Enlarger(), torch.zeros(1, 3, 21, 20))
