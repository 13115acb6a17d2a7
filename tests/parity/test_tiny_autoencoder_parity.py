"""The tiny autoencoder against diffusers' AutoencoderTiny."""

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from sfumato.core.config import to_dict
from sfumato.models.tiny_autoencoder import TAESD, TAESD_16, TinyAutoencoder, TinyConfig
from tests.parity.peers import randomise, relative_error, shapes

TINY = replace(
    TAESD, encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), block_out_channels=None,
    num_encoder_blocks=(1, 2, 1), num_decoder_blocks=(2, 1, 1), latent_channels=5,
)


@pytest.mark.parametrize("config", [TINY, TAESD, TAESD_16], ids=["tiny", "taesd", "16 channels"])
def test_equal_on_random_weights(config: TinyConfig) -> None:
    torch.manual_seed(0)
    settings = to_dict(config)
    del settings["use_midblock_gn"], settings["block_out_channels"]
    kind: Any = diffusers.AutoencoderTiny
    theirs = kind(**settings)
    randomise(theirs)
    ours = TinyAutoencoder(config)
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 24, 16) * 2 - 1
    with torch.inference_mode():
        z = ours.encode(x).mode()
        assert relative_error(z, theirs.encode(x).latents) <= 1e-5
        assert relative_error(ours.decode(z), theirs.decode(z).sample) <= 1e-5
