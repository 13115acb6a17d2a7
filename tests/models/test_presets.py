"""The presets against the genuine configuration files of released checkpoints."""

from typing import Any

import pytest

from sfumato.core.config import from_dict, read_json, to_dict
from sfumato.models.autoencoder import SD_VAE, SDXL_VAE, AutoencoderConfig
from sfumato.models.clip_text import CLIP_L, OPENCLIP_BIGG, SD2_TEXT, ClipTextConfig
from sfumato.models.clip_vision import CLIP_L_VISION
from tests.conftest import shared


def genuine(name: str) -> dict[str, Any]:
    content: dict[str, Any] = read_json(shared(f"reference/checkpoint_folders/{name}/config.json"))
    return {key: value for key, value in content.items() if not key.startswith("_")}


@pytest.mark.parametrize(("name", "preset"), [("sd14/vae", SD_VAE), ("sdxl/vae", SDXL_VAE)])
def test_autoencoders(name: str, preset: AutoencoderConfig) -> None:
    assert from_dict(AutoencoderConfig, genuine(name)) == preset


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("sd14/text_encoder", CLIP_L),
        ("sd21/text_encoder", SD2_TEXT),
        ("sdxl/text_encoder", CLIP_L),
        ("sdxl/text_encoder_2", OPENCLIP_BIGG),
    ],
)
def test_text_encoders(name: str, preset: ClipTextConfig) -> None:
    content, ours = genuine(name), to_dict(preset)
    common = content.keys() & ours.keys()
    assert len(common) >= 11
    assert {key: content[key] for key in common} == {key: ours[key] for key in common}
    assert preset.with_projection == (content["architectures"] == ["CLIPTextModelWithProjection"])


def test_vision_encoder() -> None:
    content, ours = genuine("sd14/safety_checker")["vision_config"], to_dict(CLIP_L_VISION)
    common = content.keys() & ours.keys()
    assert len(common) >= 8
    assert {key: content[key] for key in common} == {key: ours[key] for key in common}
