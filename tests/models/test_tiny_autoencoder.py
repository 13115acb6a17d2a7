"""The tiny autoencoder, with its own files and real weights."""

import math
from typing import Literal

import pytest
import skimage
import torch
from torch import Tensor

from sfumato.core.config import from_dict, to_dict
from sfumato.core.errors import CheckpointError, ConfigError
from sfumato.models.tiny_autoencoder import TAEF2, TAESD, TinyAutoencoder, TinyConfig, from_taesd
from tests.conftest import shared

HALVES: tuple[Literal["encoder", "decoder"], ...] = ("encoder", "decoder")


def photograph(name: str) -> Tensor:
    """[1, 3, 256, 256] in [-1, 1]: the centre square of a photograph."""
    pixels = torch.from_numpy(getattr(skimage.data, name)().copy()).permute(2, 0, 1)[None] / 127.5 - 1
    side = min(pixels.shape[-2:])
    top, left = ((length - side) // 2 for length in pixels.shape[-2:])
    square = pixels[..., top : top + side, left : left + side]
    return torch.nn.functional.interpolate(square, (256, 256), mode="bilinear", antialias=True).clamp(-1, 1)


def real() -> TinyAutoencoder:
    state: dict[str, Tensor] = {}
    for half in HALVES:
        path = shared(f"weights/taef2_{half}.pth")
        state |= from_taesd(half, torch.load(path, weights_only=True, map_location="cpu"))
    with torch.device("meta"):
        network = TinyAutoencoder(TAEF2)
    network.load_state_dict(state, assign=True)
    return network.float().eval()


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB, of pictures in [-1, 1]."""
    return -10 * math.log10(float(((a - b) / 2).square().mean()))


def test_photographs_come_back_from_real_latents() -> None:
    network = real()
    for name in ("astronaut", "chelsea", "coffee"):
        x = photograph(name)
        with torch.inference_mode():
            z = network.encode(x).mode()
            back = network.decode(z).clamp(-1, 1)
        assert z.shape == (1, 32, 32, 32)
        assert psnr(back, x) > 30, name
        assert psnr(x.mean((2, 3), keepdim=True).expand_as(x), x) < 19  # what a picture of one colour reaches


def test_names_of_the_original_files() -> None:
    ours = TinyAutoencoder(TAESD).state_dict()
    for half, offset in (("encoder", 0), ("decoder", 1)):
        names = [name.removeprefix(f"{half}.layers.") for name in ours if name.startswith(half)]
        theirs = {}
        for name in names:
            position, rest = name.split(".", 1)
            theirs[f"{int(position) + offset}.{rest}"] = torch.zeros(())
        found = from_taesd("encoder" if half == "encoder" else "decoder", theirs)
        assert list(found) == [f"{half}.layers.{name}" for name in names]
    with pytest.raises(CheckpointError, match="begin with a number"):
        from_taesd("decoder", {"decoder.layers.0.weight": torch.zeros(())})


@pytest.mark.parametrize("config", [TAESD, TAEF2])
def test_config_survives_json(config: TinyConfig) -> None:
    assert from_dict(TinyConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    "settings",
    [
        {"num_encoder_blocks": [1, 3]},
        {"num_encoder_blocks": [1, 3, 3], "encoder_block_out_channels": [64, 64, 64]},
        {"block_out_channels": [32]},
        {"act_fn": "gelu"},
    ],
)
def test_bad_configs_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="TinyConfig"):
        from_dict(TinyConfig, settings)


def test_stages_may_differ_in_width() -> None:
    network = TinyAutoencoder(
        TinyConfig(
            encoder_block_out_channels=(4, 8), decoder_block_out_channels=(8, 4), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
    )
    z = network.encode(torch.zeros(1, 3, 6, 4)).mode()
    assert z.shape == (1, 4, 3, 2)
    assert network.decode(z).shape == (1, 3, 6, 4)
