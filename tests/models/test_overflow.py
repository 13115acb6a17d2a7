"""A picture that overflows in half precision is decoded again, and whoever asked is told."""

import pytest
import torch

from sfumato.core.errors import NumericError
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.overflow import decode_safely, encode_safely


def network(scale: float) -> Autoencoder:
    """In float16; the norms behind the first convolutions bring any scale of them back to order."""
    torch.manual_seed(0)
    made = Autoencoder(AutoencoderConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4))
    for parameter in (*made.encoder.conv_in.parameters(), *made.decoder.conv_in.parameters()):
        parameter.data *= scale
    return made.half().eval()


Z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
X = Z[:, :3].clamp(-1, 1)


def test_no_overflow_no_note() -> None:
    made = network(1.0)
    with torch.inference_mode():
        pictures, note = decode_safely(made, Z.half())
        assert note is None
        assert torch.equal(pictures, made.decode(Z.half()))
        latents, note = encode_safely(made, X.half())
        assert note is None
        assert torch.equal(latents.mean, made.encode(X.half()).mean)


def test_overflow_is_decoded_in_float32_and_said() -> None:
    made = network(1e5)
    with torch.inference_mode():
        assert not made.decode(Z.half()).isfinite().all()
        pictures, note = decode_safely(made, Z.half())
    assert pictures.isfinite().all()
    assert pictures.dtype == torch.float32
    assert note is not None
    assert "float16" in note
    assert made.decoder.conv_in.weight.dtype == torch.float16  # the autoencoder itself stays as it was


def test_overflow_is_encoded_in_float32_and_said() -> None:
    made = network(1e5)
    with torch.inference_mode():
        assert not made.encode(X.half()).mean.isfinite().all()
        latents, note = encode_safely(made, X.half())
    assert latents.mean.isfinite().all()
    assert note is not None
    assert "float16" in note


def test_latents_that_are_no_numbers() -> None:
    with pytest.raises(NumericError, match="latents contain NaN"):
        decode_safely(network(1.0), torch.full((1, 4, 4, 4), torch.nan))
    with pytest.raises(NumericError, match="picture to be encoded"):
        encode_safely(network(1.0), torch.full((1, 3, 4, 4), torch.nan))


def test_damaged_weights() -> None:
    made = network(1.0)
    for half in (made.encoder, made.decoder):
        half.conv_out.weight.data[0] = torch.inf
    with pytest.raises(NumericError, match="damaged"):
        decode_safely(made, Z.half())
    with pytest.raises(NumericError, match="damaged"):
        encode_safely(made, X.half())
