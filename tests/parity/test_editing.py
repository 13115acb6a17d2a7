"""Drawing from pictures equals diffusers' pipelines for it: same folder, pictures, prompt, noise, sampler, guidance."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from tests.parity import tiny
from tests.parity.test_pipelines import with_scheduler

SAID: dict[str, Any] = {"prompt": "a red apple", "negative_prompt": "blue star", "height": 64, "width": 72}


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(family: str) -> Any:
        peer = tiny.pipeline(family.removesuffix("-inpaint"), tmp_path_factory.mktemp(family))
        if family.endswith("-inpaint"):
            unet = tiny.unet(**{**peer.unet.config, "in_channels": 9})
            tiny.randomise(unet, seed=6)
            peer.register_modules(unet=unet)
        return peer

    return make


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 72, 3), dtype=np.uint8))


def mask() -> Image.Image:
    grey = np.zeros((64, 72), dtype=np.uint8)
    grey[16:48, 24:] = 255
    return Image.fromarray(grey)


def theirs(peer: Any, kind: str, **more: Any) -> torch.Tensor:
    import diffusers as untyped

    diffusers: Any = untyped
    pipeline = getattr(diffusers, kind)(**peer.components)
    pipeline.set_progress_bar_config(disable=True)
    told = {**SAID, "guidance_scale": 5.0, "num_inference_steps": 10, "output_type": "latent", **more}
    if "Img2Img" in kind:  # it draws in the picture's size
        del told["height"], told["width"]
    found: torch.Tensor = pipeline(image=picture(), generator=torch.Generator().manual_seed(5), **told).images
    return found


def check(peer: Any, expected: torch.Tensor, tmp_path: Path, **more: Any) -> None:
    peer.save_pretrained(tmp_path)
    pipe = sfumato.load(str(tmp_path), dtype="float32", device="cpu")
    told = {**SAID, "cfg_scale": 5.0, "steps": 10, "seed": 5, "noise": "torch", "image": picture(), **more}
    found = pipe(**told).latents
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


# PNDM asks twice at its second time, which is another where its first times are left out: diffusers does not look, and
# then tells the network times that are not those of the noise. So that is equal with all of them alone.
CASES = [("PNDMScheduler", 1.0)] + [
    (solver, strength)
    for solver in ("DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler",
                   "UniPCMultistepScheduler", "EulerAncestralDiscreteScheduler")
    for strength in (0.35, 0.8, 1.0)
]  # fmt: skip


@pytest.mark.parametrize(("solver", "strength"), CASES)
def test_image_to_image(peers: Any, solver: str, strength: float, tmp_path: Path) -> None:
    peer = with_scheduler(peers("sd1"), solver)
    expected = theirs(peer, "StableDiffusionImg2ImgPipeline", strength=strength)
    check(peer, expected, tmp_path, strength=strength)


def test_image_to_image_of_xl(peers: Any, tmp_path: Path) -> None:
    peer = with_scheduler(peers("sdxl"), "EulerDiscreteScheduler")
    expected = theirs(peer, "StableDiffusionXLImg2ImgPipeline", strength=0.6)
    check(peer, expected, tmp_path, strength=0.6)


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("solver", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("family", ["sd1", "sd1-inpaint"])
def test_inpainting(peers: Any, family: str, solver: str, strength: float, tmp_path: Path) -> None:
    peer = with_scheduler(peers(family), solver)
    expected = theirs(peer, "StableDiffusionInpaintPipeline", strength=strength, mask_image=mask())
    check(peer, expected, tmp_path, strength=strength, mask=mask())


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("family", ["sdxl", "sdxl-inpaint"])
def test_inpainting_of_xl(peers: Any, family: str, strength: float, tmp_path: Path) -> None:
    peer = with_scheduler(peers(family), "EulerDiscreteScheduler")
    expected = theirs(peer, "StableDiffusionXLInpaintPipeline", strength=strength, mask_image=mask())
    check(peer, expected, tmp_path, strength=strength, mask=mask())


def test_depth_to_image(peers: Any, tmp_path: Path) -> None:
    import diffusers as untyped

    diffusers: Any = untyped
    base = with_scheduler(peers("sd2"), "DDIMScheduler")
    unet = tiny.unet(**{**base.unet.config, "in_channels": 5})
    tiny.randomise(unet, seed=6)
    parts = {name: base.components[name] for name in ("vae", "text_encoder", "tokenizer", "scheduler")}
    peer = diffusers.StableDiffusionDepth2ImgPipeline(**parts, unet=unet, depth_estimator=None, feature_extractor=None)
    peer.set_progress_bar_config(disable=True)
    depth = Image.fromarray(np.random.default_rng(8).integers(20, 200, (64, 72), dtype=np.uint8))
    told = {key: SAID[key] for key in ("prompt", "negative_prompt")}
    expected = peer(
        image=picture(), depth_map=torch.from_numpy(np.array(depth))[None].float(), strength=0.7, guidance_scale=5.0,
        num_inference_steps=10, generator=torch.Generator().manual_seed(5), output_type="latent", **told,
    ).images  # fmt: skip
    check(peer, expected, tmp_path, strength=0.7, depth=depth)


@pytest.mark.parametrize("level", [20, 300])
def test_upscaling(peers: Any, level: int, tmp_path: Path) -> None:
    import diffusers as untyped

    diffusers: Any = untyped
    base = peers("sd2")
    unet = tiny.unet(**{**base.unet.config, "in_channels": 7, "num_class_embeds": 1000})
    tiny.randomise(unet, seed=6)
    unet.class_embedding.weight.data *= 30  # so that levels differ
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 16, 16), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, norm_num_groups=8, scaling_factor=0.08333,
    )
    tiny.randomise(vae, seed=7)
    betas = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
    peer = diffusers.StableDiffusionUpscalePipeline(
        vae=vae, text_encoder=base.text_encoder, tokenizer=base.tokenizer, unet=unet,
        low_res_scheduler=diffusers.DDPMScheduler(**betas),
        scheduler=diffusers.DDIMScheduler(
            **betas, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        ),
    )
    peer.set_progress_bar_config(disable=True)
    told = {key: SAID[key] for key in ("prompt", "negative_prompt")}
    expected = peer(
        image=picture(), noise_level=level, guidance_scale=5.0, num_inference_steps=10, output_type="latent",
        generator=torch.Generator().manual_seed(5), **told,
    ).images  # fmt: skip
    size = {"height": 256, "width": 288}
    check(peer, expected, tmp_path, task="upscale", noise_level=level, **size)
    pipe = sfumato.load(str(tmp_path), device="cpu")
    [large] = pipe("a red apple", task="upscale", image=picture(), steps=2).images
    assert large.size == (288, 256)
