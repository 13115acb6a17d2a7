"""The VQ autoencoder against diffusers' VQModel."""

from typing import Any

import diffusers
import pytest
import torch

from sfumato.models.vq_autoencoder import VQ_F8, VQAutoencoder, VQConfig
from tests.parity.peers import known_to_peers, randomise, relative_error, shapes

TINY = VQConfig(
    block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=3, num_vq_embeddings=20,
    down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), vq_embed_dim=5,
)


def compare(config: VQConfig, size: int) -> None:
    torch.manual_seed(0)
    kind: Any = diffusers.VQModel
    theirs = kind(**known_to_peers(config))
    randomise(theirs)
    ours = VQAutoencoder(config)
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, size, size) * 2 - 1
    with torch.inference_mode():
        h = ours.encode(x).mode()
        assert relative_error(h, theirs.encode(x).latents) <= 1e-5
        expected = theirs.decode(h)
        assert relative_error(ours.decode(h), expected.sample) <= 1e-5
        latents, _, (_, _, indices) = theirs.quantize(h)
        found = ours.quantize(h)
        assert torch.equal(found.indices.flatten(), indices)
        assert relative_error(found.latents, latents) <= 1e-6
        # The peer adds both losses up, one of them at a quarter: in value it does not matter which.
        assert relative_error(found.codebook_loss + 0.25 * found.commitment_loss, expected.commit_loss) <= 1e-5


def test_equal_on_random_weights() -> None:
    compare(TINY, 16)


@pytest.mark.slow
def test_equal_at_true_size() -> None:
    compare(VQ_F8, 64)
