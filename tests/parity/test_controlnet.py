"""Control networks equal diffusers', alone on the same random weights, and in its pipelines for them."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from sfumato.checkpoints.parts import read_config, write_config
from sfumato.models.controlnet import CONTROLNETS, Controlled, ControlNet, ControlNetConfig
from sfumato.models.unet import SD1, SD2, SDXL, UNet, UNetConfig
from sfumato.nn.conditioning import Conditioning
from tests.parity import tiny
from tests.parity.peers import randomise, relative_error, shapes
from tests.parity.test_editing import mask, picture
from tests.parity.test_pipelines import with_scheduler
from tests.parity.test_unet import condition
from tests.parity.test_unet import tiny as narrow

CLASS = "ControlNetModel"
XL: dict[str, Any] = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 16 + 6 * 8}
UNETS = {"sd1": narrow(SD1), "sd2": narrow(SD2), "sdxl": narrow(SDXL, **XL)}


def beside(unet: UNetConfig, **changes: Any) -> ControlNetConfig:
    """Of a control network for it."""
    like = {name: getattr(unet, name) for name in (
        "block_out_channels", "down_block_types", "attention_head_dim", "transformer_layers_per_block",
        "cross_attention_dim", "use_linear_projection", "addition_embed_type", "addition_time_embed_dim",
        "projection_class_embeddings_input_dim", "norm_num_groups",
    )}  # fmt: skip
    return ControlNetConfig(**{**like, "conditioning_embedding_out_channels": (4, 4, 8, 8), **changes})


CONFIGS = {
    **{name: beside(unet) for name, unet in UNETS.items()},
    "no-attention": beside(UNETS["sdxl"], down_block_types=("DownBlock2D",) * 3, mid_block_type="UNetMidBlock2D"),
    "bgr": beside(UNETS["sd1"], controlnet_conditioning_channel_order="bgr", layers_per_block=1),
}


def pair(config: ControlNetConfig) -> tuple[ControlNet, Any]:
    """Ours and diffusers', with the same tensors as weights."""
    import diffusers as untyped

    diffusers: Any = untyped
    ours = ControlNet(config)
    randomise(ours)
    with torch.device("meta"):
        theirs = diffusers.ControlNetModel.from_config(write_config(CLASS, config, None))
    theirs.load_state_dict(ours.state_dict(), assign=True)
    return ours, theirs.eval()


def their_words(said: Conditioning) -> dict[str, Any]:
    """Of XL's pooled text and sizes."""
    if said.sizes is None:
        return {}
    return {"added_cond_kwargs": {"text_embeds": said.pooled, "time_ids": said.sizes}}


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_names_shapes_and_outputs(name: str) -> None:
    config = CONFIGS[name]
    ours, theirs = pair(config)
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    generator = torch.Generator().manual_seed(3)
    x, shown = torch.randn(2, 4, 16, 24, generator=generator), torch.rand(2, 3, 128, 192, generator=generator)
    t, said = torch.tensor([801, 17]), condition(UNETS.get(name, UNETS["sdxl" if name != "bgr" else "sd1"]), 2)
    added = their_words(said)
    told = replace(said, control=ours.see(shown), control_scale=torch.tensor([0.7, 0.7]))
    expected = theirs(x, t, said.context, shown, conditioning_scale=0.7, **added)
    for ready in (told, ours.prepare(told)):
        down, mid = ours(x, t, ready)
        assert mid is not None
        for found, wanted in zip([*down, mid], [*expected[0], expected[1]], strict=True):
            assert relative_error(found, wanted) <= 1e-5


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_what_it_adds_to_a_unet(name: str) -> None:
    import diffusers as untyped

    diffusers: Any = untyped
    ours, theirs = pair(CONFIGS[name])
    unet = UNet(UNETS[name])
    randomise(unet, seed=2)
    their_unet = diffusers.UNet2DConditionModel.from_config(write_config("UNet2DConditionModel", UNETS[name], None))
    their_unet.load_state_dict(unet.state_dict())
    x, shown, t = torch.randn(1, 4, 16, 16), torch.rand(1, 3, 128, 128), torch.tensor([500])
    said = condition(UNETS[name], 1)
    added = their_words(said)
    down, mid = theirs(x, t, said.context, shown, return_dict=False, **added)
    expected = their_unet.eval()(
        x, t, said.context, down_block_additional_residuals=down, mid_block_additional_residual=mid, **added
    ).sample
    assert relative_error(Controlled(unet, ours)(x, t, replace(said, control=ours.see(shown))), expected) <= 1e-5


@pytest.mark.parametrize("name", CONTROLNETS)
def test_true_configurations_have_the_peers_tensors(name: str) -> None:
    import diffusers as untyped

    diffusers: Any = untyped
    config = CONTROLNETS[name]
    with torch.device("meta"):
        ours, theirs = ControlNet(config), diffusers.ControlNetModel.from_config(write_config(CLASS, config, None))
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    assert read_config(CLASS, dict(theirs.config), "peer") == config


SAID: dict[str, Any] = {"prompt": "a red apple", "negative_prompt": "blue star", "height": 64, "width": 72}
TOLD = {"control_scale": 0.8, "control_start": 0.1, "control_end": 0.7}
THEIRS = {
    "control_scale": "controlnet_conditioning_scale", "control_start": "control_guidance_start",
    "control_end": "control_guidance_end", "mask": "mask_image", "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
}


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    @cache
    def make(family: str) -> Any:
        return tiny.pipeline(family, tmp_path_factory.mktemp(family))

    return make


def edges() -> Image.Image:
    return Image.fromarray(np.random.default_rng(4).integers(0, 256, (64, 72, 3), dtype=np.uint8))


def compare(peer: Any, kind: str, solver: str, place: Path, **more: Any) -> None:
    """One of diffusers' pipelines and ours, with the same parts and the same request."""
    import diffusers as untyped

    diffusers: Any = untyped
    peer = with_scheduler(peer, solver)
    control = tiny.controlnet(tiny.unet(**{**peer.unet.config, "in_channels": 4}))
    peer.save_pretrained(place / "model")
    control.save_pretrained(place / "control")
    theirs = getattr(diffusers, kind)(**peer.components, controlnet=control)
    theirs.set_progress_bar_config(disable=True)
    said = {**SAID, "steps": 10, "cfg_scale": 5.0, **more}
    shown = {"control_image" if "image" in said else "image": edges()}
    generator = torch.Generator().manual_seed(5)
    asked = {THEIRS.get(name, name): value for name, value in said.items()}
    expected = theirs(**asked, **shown, output_type="latent", generator=generator).images
    pipe = sfumato.load(str(place / "model"), control=str(place / "control"), dtype="float32", device="cpu")
    found = pipe(**said, control=edges(), seed=5, noise="torch").latents
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    alone = pipe(**{name: value for name, value in said.items() if name not in TOLD}, seed=5, noise="torch").latents
    assert relative_error(alone, found) > 0.01  # it has a say


@pytest.mark.parametrize(
    ("family", "solver", "told"),
    [
        ("sd1", "DDIMScheduler", TOLD), ("sd1", "EulerDiscreteScheduler", {**TOLD, "control_end": 1.0}),
        ("sd2", "DPMSolverMultistepScheduler", {**TOLD, "control_start": 0.0, "control_end": 1.0}),
        ("sdxl", "EulerDiscreteScheduler", TOLD),
    ],
)
def test_text_to_image(
    peers: Callable[[str], Any], family: str, solver: str, told: dict[str, float], tmp_path: Path
) -> None:
    kind = "StableDiffusionXLControlNetPipeline" if family == "sdxl" else "StableDiffusionControlNetPipeline"
    compare(peers(family), kind, solver, tmp_path, **told)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_image_to_image(peers: Callable[[str], Any], family: str, tmp_path: Path) -> None:
    kind = f"StableDiffusion{'XL' if family == 'sdxl' else ''}ControlNetImg2ImgPipeline"
    compare(peers(family), kind, "EulerDiscreteScheduler", tmp_path, image=picture(), strength=0.6, **TOLD)


@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting(peers: Callable[[str], Any], channels: int, tmp_path: Path) -> None:
    peer = peers("sd1")
    plain = peer.unet
    if channels == 9:
        unet = tiny.unet(**{**plain.config, "in_channels": 9})
        tiny.randomise(unet, seed=6)
        peer.register_modules(unet=unet)
    try:
        compare(peer, "StableDiffusionControlNetInpaintPipeline", "DDIMScheduler", tmp_path,
                image=picture(), mask=mask(), strength=0.8, **TOLD)  # fmt: skip
    finally:
        peer.register_modules(unet=plain)
