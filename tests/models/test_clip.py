"""What CLIP's towers do beside being equal to their peers."""

from dataclasses import replace

import numpy as np
import pytest
import skimage
import torch
import torch.nn.functional as F
from PIL import Image

from sfumato.core.config import from_dict, to_dict
from sfumato.core.errors import ConfigError, RequestError
from sfumato.models.clip import Clip, ClipConfig
from sfumato.models.clip_text import CLIP_L, OPENCLIP_BIGG, OPENCLIP_H, SD2_TEXT, ClipText, ClipTextConfig
from sfumato.models.clip_vision import MEAN, STD, ClipVision, ClipVisionConfig, preprocess

TEXT = ClipTextConfig(
    vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
    max_position_embeddings=8, projection_dim=12, eos_token_id=29, with_projection=True,
)
VISION = ClipVisionConfig(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=12, patch_size=4,
    projection_dim=12,
)


def text(config: ClipTextConfig = TEXT) -> ClipText:
    torch.manual_seed(0)
    return ClipText(config).eval()


IDS = torch.tensor([[28, 5, 9, 29, 29, 29], [28, 3, 29, 7, 8, 29]])


@torch.inference_mode()
def test_what_follows_the_end_of_text_changes_nothing() -> None:
    other = IDS.clone()
    other[1, 3:] = 11
    before, after = text()(IDS), text()(other)
    assert torch.equal(before.pooled, after.pooled)
    assert torch.allclose(before.last[1, :3], after.last[1, :3], atol=1e-6)
    assert not torch.allclose(before.last[1, 3:], after.last[1, 3:], atol=1e-3)


@torch.inference_mode()
def test_skipped_layers() -> None:
    network = text()
    whole, skipped = network(IDS), network(IDS, layers_skipped=1)
    assert torch.equal(skipped.last, network.text_model.final_layer_norm(whole.hidden[-2]))
    assert torch.equal(skipped.pooled, whole.pooled)
    assert skipped.projected is not None
    # A network made without its last layer says the same: the files of Stable Diffusion 2 are such.
    short = text(replace(TEXT, num_hidden_layers=2))
    short.load_state_dict({k: v for k, v in network.state_dict().items() if "layers.2." not in k})
    assert torch.allclose(short(IDS).last, skipped.last, atol=1e-6)
    for wrong in (-1, 3):
        with pytest.raises(RequestError, match="cannot be skipped"):
            network(IDS, layers_skipped=wrong)


def test_end_of_text() -> None:
    assert text().text_model.end(IDS).tolist() == [3, 2]
    old = text(replace(TEXT, eos_token_id=2))
    assert old.text_model.end(IDS).tolist() == [3, 2]
    grown = torch.tensor([[28, 31, 9, 29, 29, 29]])  # 31: a token that textual inversion added
    assert old.text_model.end(grown).tolist() == [3]


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(RequestError, match="9 tokens are too many"):
        text()(torch.zeros(1, 9, dtype=torch.long))


@pytest.mark.parametrize("config", [CLIP_L, SD2_TEXT, OPENCLIP_H, OPENCLIP_BIGG])
def test_config_survives_json(config: ClipTextConfig) -> None:
    assert from_dict(ClipTextConfig, to_dict(config)) == config


def test_bad_configs_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_attention_heads = 3"):
        ClipTextConfig(hidden_size=16, num_attention_heads=3)
    with pytest.raises(ConfigError, match="no multiple of patch_size"):
        ClipVisionConfig(image_size=30, patch_size=14)
    with pytest.raises(ConfigError, match="hidden_act"):
        from_dict(ClipTextConfig, {"hidden_act": "relu"})


def test_a_picture_of_another_size_is_refused() -> None:
    with pytest.raises(RequestError, match="takes 12 x 12"):
        ClipVision(VISION)(torch.zeros(1, 3, 12, 16))


@pytest.mark.parametrize("name", ["coffee", "chelsea"])
def test_preprocessing_is_pillows(name: str) -> None:
    pixels = getattr(skimage.data, name)()
    picture = Image.fromarray(pixels)
    scale = 224 / min(picture.size)
    picture = picture.resize(
        (int(picture.width * scale), int(picture.height * scale)), resample=Image.Resampling.BICUBIC
    )
    left, top = (picture.width - 224) // 2, (picture.height - 224) // 2
    expected = torch.from_numpy(np.array(picture.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1) / 255
    found = preprocess(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1)[0]
    assert found.shape == (3, 224, 224)
    back = found * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    off = (back - expected).abs() * 255  # Pillow rounds to bytes, and clips, after each of its two passes
    assert off.mean() < 0.4
    assert off.max() < 4


def test_training_brings_pairs_together() -> None:
    torch.manual_seed(0)
    clip = Clip(ClipConfig(TEXT, VISION, projection_dim=8))
    ids = torch.tensor([[28, a, b, 29] for a in (3, 4) for b in (5, 6)])
    pictures = torch.randn(4, 3, 12, 12)
    optimiser = torch.optim.Adam(clip.parameters(), lr=3e-3)
    for _ in range(60):
        logits = clip(ids, pictures).logits
        target = torch.arange(4)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    assert loss.item() < 0.1  # chance: log 4 = 1.39
    found = clip(ids, pictures)
    assert torch.equal(found.logits.argmax(1), torch.arange(4))
    assert torch.allclose(found.texts.norm(dim=1), torch.ones(4), atol=1e-5)
