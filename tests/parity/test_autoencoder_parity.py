"""The KL autoencoder against diffusers' AutoencoderKL."""

from typing import Any

import diffusers
import pytest
import torch

from sfumato.models.autoencoder import SD_VAE, SDXL_VAE, X4_UPSCALER_VAE, Autoencoder, AutoencoderConfig
from tests.parity.peers import known_to_peers, parameter_count, randomise, relative_error, shapes

TINY = {
    "three levels": AutoencoderConfig(block_out_channels=(8, 16, 16), layers_per_block=2, norm_num_groups=4),
    "no bottleneck attention, no 1 x 1": AutoencoderConfig(
        block_out_channels=(16, 8), layers_per_block=1, norm_num_groups=8, latent_channels=7, use_quant_conv=False,
        use_post_quant_conv=False, mid_block_add_attention=False, shift_factor=0.1,
    ),
    "attention at a level": AutoencoderConfig(
        block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=3,
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
    ),
    "factor 1": AutoencoderConfig(block_out_channels=(8,), layers_per_block=1, norm_num_groups=2),
}


def compare(config: AutoencoderConfig, height: int, width: int, tolerance: float) -> None:
    torch.manual_seed(0)
    kind: Any = diffusers.AutoencoderKL
    theirs = kind(**known_to_peers(config))
    randomise(theirs)
    with torch.device("meta"):
        ours = Autoencoder(config)
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), assign=True)
    ours.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(2, 3, height, width) * 2 - 1
    with torch.inference_mode():
        distribution, found = theirs.encode(x).latent_dist, ours.encode(x)
        assert relative_error(found.mean, distribution.mean) <= tolerance
        assert relative_error(found.log_variance, distribution.logvar) <= tolerance
        noise = torch.randn_like(found.mean)
        assert relative_error(found.sample(noise), distribution.mean + distribution.std * noise) <= tolerance
        assert relative_error(found.kl(), distribution.kl()) <= tolerance
        z = torch.randn_like(found.mean)
        assert relative_error(ours.decode(z), theirs.decode(z).sample) <= tolerance


@pytest.mark.parametrize("name", TINY)
def test_equal_on_random_weights(name: str) -> None:
    compare(TINY[name], 24, 16, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [SD_VAE, SDXL_VAE, X4_UPSCALER_VAE], ids=["sd", "sdxl", "x4-upscaler"])
def test_equal_at_true_size(config: AutoencoderConfig) -> None:
    compare(config, 96, 64, 1e-5)


def test_parameter_count_of_stable_diffusion() -> None:
    with torch.device("meta"):
        assert parameter_count(Autoencoder(SD_VAE)) == 83_653_863
