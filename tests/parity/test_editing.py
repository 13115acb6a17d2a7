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
