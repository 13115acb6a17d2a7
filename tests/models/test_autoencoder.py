"""What the autoencoders refuse, and how they treat memory."""

import pytest
import torch

from sfumato.core.config import from_dict, to_dict
from sfumato.core.errors import ConfigError, RequestError
from sfumato.models.autoencoder import FLUX_VAE, SD_VAE, Autoencoder, AutoencoderConfig

TINY = AutoencoderConfig(block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=4)


@pytest.mark.parametrize("config", [SD_VAE, FLUX_VAE, TINY])
def test_config_survives_json(config: AutoencoderConfig) -> None:
    assert from_dict(AutoencoderConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_out_channels": [8, 12], "norm_num_groups": 8}, "12 channels"),
        ({"block_out_channels": []}, "one level"),
        ({"down_block_types": ["DownEncoderBlock2D"]}, "names 1 levels"),
        ({"down_block_types": ["CrossAttnDownBlock2D"]}, "not one of"),
        ({"act_fn": "relu"}, "not one of"),
        ({"latent_chanels": 4}, "latent_channels"),
    ],
)
def test_bad_configs_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(AutoencoderConfig, settings)


def test_a_size_that_would_be_cut_is_refused() -> None:
    with pytest.raises(RequestError, match=r"18 x 13 .* multiples of 4; the nearest size is 16 x 12"):
        Autoencoder(TINY).encode(torch.zeros(1, 3, 13, 18))


def test_channels_last_memory_stays_so() -> None:
    ours = Autoencoder(TINY).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        for module in (ours.encoder, ours.decoder):
            h = x if module is ours.encoder else torch.randn(2, 4, 4, 4).to(memory_format=torch.channels_last)
            assert module(h).is_contiguous(memory_format=torch.channels_last)
            assert module.mid_block(module.conv_in(h)).is_contiguous(memory_format=torch.channels_last)


def test_every_parameter_learns() -> None:
    ours = Autoencoder(TINY)
    posterior = ours.encode(torch.rand(1, 3, 8, 8) * 2 - 1)
    back = ours.decode(posterior.sample(torch.randn_like(posterior.mean)))
    torch.autograd.backward(back.square().mean() + posterior.kl().mean())
    # Attention's key bias moves every logit of a query alike, which softmax does not see.
    silent = [name for name, p in ours.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [name for name in silent if "to_k.bias" not in name] == []


def test_patches_are_folded_into_channels_and_the_ecosystem_is_not_told_of_none() -> None:
    from sfumato.checkpoints.parts import read_config, write_config

    config = AutoencoderConfig(
        patch_size=2, block_out_channels=(16, 16), layers_per_block=1, norm_num_groups=8, latent_channels=6
    )
    autoencoder = Autoencoder(config).eval()
    assert autoencoder.factor == 4
    z = autoencoder.encode(torch.zeros(1, 3, 32, 16)).mean
    assert z.shape == (1, 6, 8, 4)
    assert autoencoder.decode(z).shape == (1, 3, 32, 16)
    written = write_config("AutoencoderKL", config, None)
    assert read_config("AutoencoderKL", written, "config.json") == config
    assert "patch_size" not in write_config("AutoencoderKL", AutoencoderConfig(), None)


def test_shortcuts_are_linear_maps_of_patches_beside_the_networks() -> None:
    config = AutoencoderConfig(
        patch_size=2, shortcut=True, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=5
    )
    net = Autoencoder(config)
    with torch.no_grad():
        for last in (net.encoder.conv_out, net.decoder.conv_out):
            for parameter in last.parameters():
                parameter.zero_()
    a, b = torch.rand(2, 2, 3, 8, 12)
    with torch.inference_mode():
        middle = net.encode((a + b) / 2).mean
        assert torch.allclose(middle, (net.encode(a).mean + net.encode(b).mean) / 2, atol=1e-6)
        moved = a.clone()
        moved[:, :, :4, :4] = b[:, :, :4, :4]  # one patch
        changed = (net.encode(moved).mean != net.encode(a).mean).any(1)
        assert changed[:, 0, 0].all()
        assert changed.sum() == len(a)
        z = net.encode(a).mean
        other = z.clone()
        other[:, :, 1, 2] += 1
        changed = (net.decode(other) != net.decode(z)).any(1)
        assert changed[:, 4:, 8:].all()
        assert not changed[:, :4].any()
