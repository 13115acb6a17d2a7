"""CLIP's towers against transformers'."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from sfumato.core.config import to_dict
from sfumato.models.clip import Clip, ClipConfig
from sfumato.models.clip_text import (
    CLIP_L,
    OPENCLIP_BIGG,
    OPENCLIP_H,
    SD2_TEXT,
    ClipText,
    ClipTextConfig,
    TextStates,
)
from sfumato.models.clip_vision import (
    CLIP_L_VISION,
    OPENCLIP_H_VISION,
    ClipVision,
    ClipVisionConfig,
    VisionStates,
)
from tests.parity.peers import parameter_count, randomise, relative_error, shapes

TEXT = ClipTextConfig(
    vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=12, projection_dim=24, with_projection=True, bos_token_id=97, eos_token_id=98,
)
VISION = ClipVisionConfig(
    hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=20, patch_size=5,
    projection_dim=24,
)


def tokens(config: ClipTextConfig, batch: int = 3) -> Tensor:
    """Random sequences, each with its end of text somewhere and padding (of the same token) behind it."""
    length, end = config.max_position_embeddings, config.vocab_size - 1
    ids = torch.randint(3, end, (batch, length))
    for row, stop in enumerate(range(length - 1, 0, -3)):
        if row < batch:
            ids[row, stop:] = end
    ids[:, 0] = config.vocab_size - 2
    return ids


def text_peer(config: ClipTextConfig) -> Any:
    settings = to_dict(config)
    projected = settings.pop("with_projection")
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return randomise(kind(transformers.CLIPTextConfig(**settings)))


def compare_text(config: ClipTextConfig, tolerance: float) -> None:
    torch.manual_seed(0)
    theirs = text_peer(config)
    state = theirs.state_dict()
    if not config.with_projection:  # without a projection, version 5 leaves the prefix of all earlier files out
        state = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}
    with torch.device("meta"):
        ours = ClipText(config)
    assert shapes(ours.state_dict()) == shapes(state)
    ours.load_state_dict(state, assign=True)
    ids = tokens(config)
    with torch.inference_mode():
        expected = theirs(ids, output_hidden_states=True)
        found: TextStates = ours(ids)
        assert relative_error(found.last, expected.last_hidden_state) <= tolerance
        assert len(found.hidden) == len(expected.hidden_states) == config.num_hidden_layers + 1
        for mine, other in zip(found.hidden, expected.hidden_states, strict=True):
            assert relative_error(mine, other) <= tolerance
        if config.with_projection:
            assert found.projected is not None
            assert relative_error(found.projected, expected.text_embeds) <= tolerance
        else:
            assert found.projected is None
            assert relative_error(found.pooled, expected.pooler_output) <= tolerance


def compare_vision(config: ClipVisionConfig, tolerance: float) -> None:
    torch.manual_seed(0)
    theirs = randomise(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**to_dict(config))))
    with torch.device("meta"):
        ours = ClipVision(config)
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), assign=True)
    x = torch.randn(2, 3, config.image_size, config.image_size)
    with torch.inference_mode():
        expected = theirs(x, output_hidden_states=True)
        found: VisionStates = ours(x)
        assert relative_error(found.last, expected.last_hidden_state) <= tolerance
        for mine, other in zip(found.hidden, expected.hidden_states, strict=True):
            assert relative_error(mine, other) <= tolerance
        assert found.projected is not None
        assert relative_error(found.projected, expected.image_embeds) <= tolerance


@pytest.mark.parametrize(
    "config",
    [
        TEXT,
        replace(TEXT, with_projection=False),
        replace(TEXT, hidden_act="gelu", eos_token_id=2),
        replace(TEXT, with_projection=False, eos_token_id=2, layer_norm_eps=1e-3),
    ],
    ids=["projected", "plain", "gelu and old end of text", "plain and old end of text"],
)
def test_text_is_equal_on_random_weights(config: ClipTextConfig) -> None:
    compare_text(config, 1e-5)


def test_hidden_tokens_are_a_padding_mask() -> None:
    torch.manual_seed(0)
    theirs = text_peer(TEXT)
    ours = ClipText(TEXT)
    ours.load_state_dict(theirs.state_dict())
    ids = tokens(TEXT)
    seen = torch.rand(ids.shape) > 0.3
    seen[:, 0] = True  # the first token has nobody else to attend to
    with torch.inference_mode():
        expected, found = theirs(ids, attention_mask=seen.int()), ours(ids, seen=seen)
        assert relative_error(found.last, expected.last_hidden_state) <= 1e-5
        assert relative_error(found.projected, expected.text_embeds) <= 1e-5
        assert relative_error(ours(ids).last, found.last) > 1e-2


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_vision_is_equal_on_random_weights(activation: Any) -> None:
    compare_vision(replace(VISION, hidden_act=activation), 1e-5)


def test_both_towers_are_equal_on_random_weights() -> None:
    torch.manual_seed(0)
    config = ClipConfig(TEXT, VISION, projection_dim=24)
    text = to_dict(TEXT)
    text.pop("with_projection")
    theirs = randomise(
        transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=to_dict(VISION), projection_dim=24)
        )
    )
    ours = Clip(config)
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    ids, x = tokens(TEXT), torch.randn(2, 3, 20, 20)
    with torch.inference_mode():
        expected, found = theirs(input_ids=ids, pixel_values=x), ours(ids, x)
        assert relative_error(found.texts, expected.text_embeds) <= 1e-5
        assert relative_error(found.pictures, expected.image_embeds) <= 1e-5
        assert relative_error(found.logits, expected.logits_per_text) <= 1e-5


def test_parameter_count_of_clip_l() -> None:
    with torch.device("meta"):
        assert parameter_count(ClipText(CLIP_L)) == 123_060_480


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [CLIP_L, SD2_TEXT, OPENCLIP_H, OPENCLIP_BIGG], ids=["clip-l", "sd2", "openclip-h", "openclip-bigg"],
)
def test_text_is_equal_at_true_size(config: ClipTextConfig) -> None:
    compare_text(config, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [CLIP_L_VISION, OPENCLIP_H_VISION], ids=["clip-l", "openclip-h"])
def test_vision_is_equal_at_true_size(config: ClipVisionConfig) -> None:
    compare_vision(config, 1e-5)
