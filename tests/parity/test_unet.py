"""The conditional U-Net against diffusers' on the same random weights."""

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.checkpoints.parts import read_config, write_config
from sfumato.core.config import read_json
from sfumato.engine.heatmaps import Heatmaps
from sfumato.models.unet import SD1, SD2, SDXL, SDXL_REFINER, UNETS, X4_UPSCALER, UNet, UNetConfig
from sfumato.nn.attention import tapped
from sfumato.nn.conditioning import Conditioning
from tests.conftest import shared
from tests.parity.peers import parameter_count, randomise, relative_error, shapes

CLASS = "UNet2DConditionModel"
diffusers = pytest.importorskip("diffusers")


def tiny(config: UNetConfig, **changes: Any) -> UNetConfig:
    """The same structure with few channels."""
    widths = (16, 32, 48, 48)[: len(config.block_out_channels)]
    heads: Any = tuple((2, 4, 6, 6)[: len(widths)]) if isinstance(config.attention_head_dim, tuple) else 4
    depth: Any = config.transformer_layers_per_block
    return replace(
        config, block_out_channels=widths, attention_head_dim=heads, cross_attention_dim=24, norm_num_groups=8,
        transformer_layers_per_block=tuple(min(d, 2) for d in depth) if isinstance(depth, tuple) else min(depth, 2),
        **changes,
    )


XL: dict[str, Any] = {"addition_time_embed_dim": 8}
TINY = {
    "sd1": tiny(SD1),
    "sd1-inpaint": tiny(UNETS["sd1-inpaint"]),
    "sd1-lcm": tiny(UNETS["sd1-lcm"]),
    "sd2": tiny(SD2),
    "sd2-depth": tiny(UNETS["sd2-depth"]),
    "sd2-unclip": tiny(UNETS["sd2-unclip"], projection_class_embeddings_input_dim=20),
    "x4-upscaler": tiny(X4_UPSCALER),
    "sdxl": tiny(SDXL, projection_class_embeddings_input_dim=16 + 6 * 8, **XL),
    "sdxl-refiner": tiny(SDXL_REFINER, projection_class_embeddings_input_dim=16 + 5 * 8, **XL),
    "scale-shift": tiny(SD1, resnet_time_scale_shift="scale_shift", class_embed_type="timestep", downsample_padding=0),
    "no-middle": tiny(SD1, mid_block_type=None, layers_per_block=1, flip_sin_to_cos=False, freq_shift=1),
}


def condition(config: UNetConfig, rows: int, seed: int = 1, length: int = 7) -> Conditioning:
    """Random conditions of every kind that the config names."""
    generator = torch.Generator().manual_seed(seed)
    pooled, sizes = None, None
    if config.addition_embed_type is not None:
        total, each = config.projection_class_embeddings_input_dim or 0, config.addition_time_embed_dim or 0
        count = 5 if total in (56, 2560) else 6
        pooled = torch.randn(rows, total - count * each, generator=generator)
        sizes = torch.randint(0, 1024, (rows, count), generator=generator).float()
    elif config.class_embed_type == "projection":
        pooled = torch.randn(rows, config.projection_class_embeddings_input_dim or 0, generator=generator)
    labelled = config.num_class_embeds is not None or config.class_embed_type == "timestep"
    return Conditioning(
        context=torch.randn(rows, length, config.cross_attention_dim, generator=generator),
        pooled=pooled,
        sizes=sizes,
        labels=torch.randint(0, 350, (rows,), generator=generator) if labelled else None,
        guidance=1 + 7 * torch.rand(rows, generator=generator) if config.time_cond_proj_dim is not None else None,
    )


def ask_peer(peer: Any, config: UNetConfig, x: Tensor, t: Tensor, conditioning: Conditioning, **more: Any) -> Tensor:
    """The same question in diffusers' words."""
    words: dict[str, Any] = dict(more)
    if conditioning.sizes is not None:
        words["added_cond_kwargs"] = {"text_embeds": conditioning.pooled, "time_ids": conditioning.sizes}
    if config.class_embed_type == "projection":
        words["class_labels"] = conditioning.pooled
    elif conditioning.labels is not None:
        words["class_labels"] = conditioning.labels
    if conditioning.guidance is not None:
        # As diffusers' LCM pipeline embeds it.
        half = (config.time_cond_proj_dim or 0) // 2
        frequencies = torch.exp(torch.arange(half) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
        angles = (conditioning.guidance - 1)[:, None] * 1000.0 * frequencies[None]
        words["timestep_cond"] = torch.cat([angles.sin(), angles.cos()], dim=1)
    if conditioning.context_mask is not None:
        words["encoder_attention_mask"] = conditioning.context_mask
    answer: Tensor = peer(x, t, encoder_hidden_states=conditioning.context, **words).sample
    return answer


def pair(config: UNetConfig) -> tuple[UNet, Any]:
    """Ours and diffusers', with the same tensors as weights."""
    ours = UNet(config)
    randomise(ours)
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel.from_config(write_config(CLASS, config, None))
    theirs.load_state_dict(ours.state_dict(), assign=True)
    return ours, theirs.eval()


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_names_shapes_and_outputs(name: str) -> None:
    config = TINY[name]
    ours, theirs = pair(config)
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    x = torch.randn(2, config.in_channels, 16, 24, generator=torch.Generator().manual_seed(3))
    t, conditioning = torch.tensor([801, 17]), condition(config, 2)
    expected = ask_peer(theirs, config, x, t, conditioning)
    assert expected.std() > 0.05
    assert relative_error(ours(x, t, conditioning), expected) <= 1e-5
    assert relative_error(ours(x, t, ours.prepare(conditioning)), expected) <= 1e-5


@torch.no_grad()
def test_odd_sizes_masks_and_residuals() -> None:
    config = TINY["sd1"]
    ours, theirs = pair(config)
    generator = torch.Generator().manual_seed(4)
    x, t = torch.randn(2, 4, 19, 13, generator=generator), torch.tensor([500.0, 3.25])
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    conditioning = replace(condition(config, 2), context_mask=mask)
    sizes, side = [], (19, 13)
    for level, width in enumerate(config.block_out_channels):
        sizes += [(config.block_out_channels[max(level - 1, 0)], *side), (width, *side), (width, *side)]
        side = ((side[0] + 1) // 2, (side[1] + 1) // 2)
    residuals = [torch.randn(2, *size, generator=generator) for size in sizes]
    middle = torch.randn(2, 48, 3, 2, generator=generator)
    expected = ask_peer(
        theirs, config, x, t, conditioning, down_block_additional_residuals=residuals,
        mid_block_additional_residual=middle,
    )
    assert relative_error(ours(x, t, conditioning, residuals, middle), expected) <= 1e-5


@torch.no_grad()
def test_half_precision_is_as_near_as_the_peer() -> None:
    config = TINY["sd2"]
    ours, theirs = pair(config)
    x, t, conditioning = torch.randn(1, 4, 16, 16), torch.tensor([400]), condition(config, 1)
    exact = ours(x, t, conditioning)
    half = conditioning.to("cpu", torch.bfloat16)
    near = ours.bfloat16()(x.bfloat16(), t, half)
    peer = ask_peer(theirs.bfloat16(), config, x.bfloat16(), t, half)
    assert near.dtype == torch.bfloat16
    assert relative_error(near.float(), exact) <= 1.2 * relative_error(peer.float(), exact)


PARAMETERS = {"sd1": 859_520_964, "sdxl": 2_567_463_684}
TRUE_SIZES = ["sd1", "sd2", "sdxl", "sdxl-refiner", "x4-upscaler"]


@pytest.mark.parametrize("name", UNETS)
def test_true_configurations_have_the_peers_tensors(name: str) -> None:
    config = UNETS[name]
    with torch.device("meta"):
        ours, theirs = UNet(config), diffusers.UNet2DConditionModel.from_config(write_config(CLASS, config, None))
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    assert read_config(CLASS, dict(theirs.config), "peer") == config
    if name in PARAMETERS:
        assert parameter_count(ours) == PARAMETERS[name]


@pytest.mark.parametrize(("folder", "name"), [("sd14", "sd1"), ("sd21", "sd2"), ("sdxl", "sdxl")])
def test_published_configs_are_the_presets(folder: str, name: str) -> None:
    path = shared(f"reference/checkpoint_folders/{folder}/unet/config.json")
    assert read_config(CLASS, read_json(path), str(path)) == UNETS[name]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", TRUE_SIZES)
@torch.no_grad()
def test_true_configurations(name: str) -> None:
    config = UNETS[name]
    ours, theirs = pair(config)  # one set of weights: 10.3 GB for XL
    same = dict(theirs.named_parameters())
    assert all(p.data_ptr() == same[key].data_ptr() for key, p in ours.named_parameters())
    x = torch.randn(1, config.in_channels, 16, 16, generator=torch.Generator().manual_seed(5))
    t, conditioning = torch.tensor([601]), condition(config, 1, length=77)
    measured = relative_error(ours(x, t, conditioning), ask_peer(theirs, config, x, t, conditioning))
    print(f"{name}: relative error {measured:.1e}")
    del ours, theirs, same
    gc.collect()
    assert measured <= 1e-5


class Listener:
    """An attention processor of diffusers that writes down what it weighs."""

    def __init__(self, maps: list[Tensor]) -> None:
        self.maps = maps

    def __call__(self, attn: Any, hidden: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Tensor:
        context = hidden if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            attn.head_to_batch_dim(layer(x))
            for layer, x in ((attn.to_q, hidden), (attn.to_k, context), (attn.to_v, context))
        )
        weights = attn.get_attention_scores(q, k)  # [B * heads, N, L]
        if encoder_hidden_states is not None:
            self.maps.append(weights.unflatten(0, (len(hidden), -1)))
        out: Tensor = attn.to_out[0](attn.batch_to_head_dim(weights @ v))
        return out


@torch.no_grad()
def test_what_positions_look_at() -> None:
    config = TINY["sd1"]
    ours, theirs = pair(config)
    x = torch.randn(2, config.in_channels, 16, 24, generator=torch.Generator().manual_seed(3))
    t, conditioning = torch.tensor([801, 17]), condition(config, 2)
    maps: list[Tensor] = []
    theirs.set_attn_processor(Listener(maps))
    expected = ask_peer(theirs, config, x, t, conditioning)
    heat = Heatmaps((16, 24))
    with tapped(heat):
        torch.testing.assert_close(ours(x, t, conditioning), expected, rtol=1e-4, atol=1e-4)
    assert heat.heard == len(maps) > 2
    total = torch.zeros(maps[0].shape[-1], 16, 24)
    for weights in maps:
        times = round((weights.shape[2] / 6) ** 0.5)  # 2 x 3 for each 8 of 16 x 24
        small = weights[0].mean(0).T.reshape(-1, 2 * times, 3 * times)
        total += F.interpolate(small[None], (16, 24), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(heat.mean(), total / len(maps), rtol=1e-4, atol=1e-6)
