"""The quantiser: nearest entries, straight-through gradients, losses that pull where they should."""

import pytest
import torch

from sfumato.core.config import from_dict, to_dict
from sfumato.core.errors import ConfigError
from sfumato.models.vq_autoencoder import VQ_F4, VQ_F8, VQ_F16, Quantiser, VQAutoencoder, VQConfig, usage


def quantiser() -> Quantiser:
    made = Quantiser(3, 2)
    made.embedding.weight.data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    return made


def test_the_nearest_entry_is_taken() -> None:
    h = torch.tensor([[0.1, 0.0], [0.6, 0.1], [0.3, 1.2], [9.0, 0.0]]).T.reshape(1, 2, 2, 2)
    found = quantiser()(h)
    assert found.indices.tolist() == [[[0, 1], [2, 1]]]
    assert torch.allclose(found.latents, quantiser().lookup(found.indices))


def test_gradients_pass_straight_through_and_losses_pull_their_own() -> None:
    made, h = quantiser(), torch.tensor([0.6, 0.1]).reshape(1, 2, 1, 1).requires_grad_()
    found = made(h)
    weight = made.embedding.weight
    (direct,) = torch.autograd.grad(found.latents.sum(), h, retain_graph=True)
    assert torch.equal(direct, torch.ones_like(h))
    pull, none = torch.autograd.grad(found.codebook_loss, (weight, h), retain_graph=True, allow_unused=True)
    assert none is None
    assert torch.allclose(pull[1], torch.tensor([0.4, -0.1]))  # d/de mean((e - h)^2), two channels
    assert pull[[0, 2]].abs().sum() == 0
    commit, nothing = torch.autograd.grad(found.commitment_loss, (h, weight), allow_unused=True)
    assert nothing is None
    assert torch.allclose(commit.flatten(), torch.tensor([-0.4, 0.1]))


def test_usage() -> None:
    assert usage(torch.zeros(5, 5, dtype=torch.long), 4) == (0.25, 1.0)
    used, perplexity = usage(torch.arange(8).reshape(2, 2, 2) % 4, 8)
    assert used == 0.5
    assert perplexity == pytest.approx(4.0)


def test_every_part_learns() -> None:
    network = VQAutoencoder(
        VQConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, num_vq_embeddings=4)
    )
    found = network.quantize(network.encode(torch.rand(1, 3, 8, 8) * 2 - 1).mode())
    loss = network.decode_quantised(found.latents).square().mean() + found.codebook_loss + found.commitment_loss
    torch.autograd.backward(loss)
    for part in (network.encoder.conv_in, network.quantize.embedding, network.decoder.conv_out):
        assert part.weight.grad is not None
        assert part.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("config", "factor"), [(VQ_F4, 4), (VQ_F8, 8), (VQ_F16, 16)])
def test_presets(config: VQConfig, factor: int) -> None:
    assert config.factor == factor
    assert from_dict(VQConfig, to_dict(config)) == config


def test_bad_configs_are_refused() -> None:
    with pytest.raises(ConfigError, match="codebook"):
        VQConfig(num_vq_embeddings=0)
    with pytest.raises(ConfigError, match="lookup_from_codebook"):
        from_dict(VQConfig, {"lookup_from_codebook": True})
