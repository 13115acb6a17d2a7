"""Unconditional models draw what diffusers' pipelines draw, on pixels and on latents; and what only they refuse."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from sfumato.checkpoints.diffusers import read_folder
from sfumato.core.errors import CheckpointError, RequestError
from sfumato.families.load import judge
from tests.parity import tiny


def unet(**changes: Any) -> Any:
    import diffusers as untyped

    diffusers: Any = untyped
    made = diffusers.UNet2DModel(
        **{"sample_size": 16, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "norm_num_groups": 8,
           "block_out_channels": (16, 32), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
           "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8, **changes},
    )  # fmt: skip
    tiny.randomise(made, seed=3)
    return made


def peer(kind: str, network: Any, scheduler: Any, **parts: Any) -> Any:
    import diffusers as untyped

    diffusers: Any = untyped
    made = getattr(diffusers, kind)(unet=network, scheduler=scheduler, **parts)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(
    ("kind", "solver", "settings"),
    [
        ("DDPMPipeline", "DDPMScheduler", {}), ("DDPMPipeline", "DDPMScheduler", {"variance_type": "fixed_large"}),
        ("DDIMPipeline", "DDIMScheduler", {}),
    ],
)  # fmt: skip
def test_pixels(kind: str, solver: str, settings: dict[str, Any], channels: int, tmp_path: Path) -> None:
    import diffusers as untyped

    diffusers: Any = untyped
    network = unet(in_channels=channels, out_channels=channels)
    theirs = peer(kind, network, getattr(diffusers, solver)(**settings))
    theirs.save_pretrained(tmp_path)
    # The noise that is left follows from the picture as it was clipped, as in the authors' own code.
    told = {"use_clipped_model_output": True} if kind == "DDIMPipeline" else {}
    drawn = theirs(num_inference_steps=20, generator=torch.Generator().manual_seed(5), output_type="np", **told)
    pipe = sfumato.load(str(tmp_path), device="cpu")
    found = pipe(steps=20, seed=5, noise="torch")
    expected = torch.from_numpy(np.asarray(drawn.images)).reshape(1, 16, 16, channels).permute(0, 3, 1, 2)
    assert expected.std() > 0.05
    torch.testing.assert_close((found.latents / 2 + 0.5).clamp(0, 1), expected, rtol=0, atol=2e-3)
    assert found.pictures[0].image.size == (16, 16)


def test_latents(tmp_path: Path) -> None:
    import diffusers as untyped

    diffusers: Any = untyped
    vq = diffusers.VQModel(
        block_out_channels=(16, 16, 16), down_block_types=("DownEncoderBlock2D",) * 3, num_vq_embeddings=64,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, latent_channels=3, norm_num_groups=8,
    )
    tiny.randomise(vq, seed=4)
    theirs = peer("LDMPipeline", unet(), diffusers.DDIMScheduler(clip_sample=False), vqvae=vq)
    theirs.save_pretrained(tmp_path)
    drawn = theirs(num_inference_steps=10, generator=torch.Generator().manual_seed(5), output_type="np").images
    pipe = sfumato.load(str(tmp_path), device="cpu")
    [found] = pipe(steps=10, seed=5, noise="torch").pictures
    assert found.image.size == (64, 64)
    assert np.abs(found.pixels / 255 - drawn[0]).max() < 5e-3
    assert judge(read_folder(tmp_path)) == ("unconditional", ())
    unet(in_channels=4, out_channels=4).save_pretrained(tmp_path / "unet")
    family, (problem,) = judge(read_folder(tmp_path))
    assert family == "unconditional"
    assert "latents have 3 channels, the denoiser's 4" in problem


def test_classes(tmp_path: Path) -> None:
    import diffusers as untyped

    diffusers: Any = untyped
    network = unet(num_class_embeds=4)
    network.class_embedding.weight.data *= 30
    peer("DDIMPipeline", network, diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    pipe = sfumato.load(str(tmp_path), device="cpu")
    one, two = (pipe(label, steps=4, seed=1) for label in ("1", "2"))
    assert (one.latents - two.latents).abs().max() > 0.01
    assert "Class 1." in one.notes
    for prompt in ("4", "a cat", ""):
        with pytest.raises(RequestError, match="from 0 to 3"):
            pipe(prompt, steps=4)


def test_what_is_drawn_from_pictures_and_what_is_refused(tmp_path: Path) -> None:
    import diffusers as untyped

    diffusers: Any = untyped
    peer("DDPMPipeline", unet(), diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    pipe = sfumato.load(str(tmp_path), device="cpu")
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8))
    mask = Image.new("L", (24, 16), 0)
    mask.paste(255, (12, 0, 24, 16))
    found = pipe(image=image, mask=mask, mask_blur=0, steps=4, seed=1)
    assert np.array_equal(found.pictures[0].pixels[:, :12], np.array(image)[:, :12])
    batch = pipe(steps=4, seed=1, count=3, width=32)
    torch.testing.assert_close(batch.latents[1:2], pipe(steps=4, seed=2, width=32).latents)
    forecast, _ = pipe.forecaster(sfumato.Request(steps=4, seed=1)).unasked()
    assert [phase.name for phase in forecast.phases][-1] == "decoding"
    asked: list[tuple[dict[str, Any], str]] = [
        ({"prompt": "a cat"}, "told nothing"), ({"cfg_scale": 3.0}, "no prompt to be guided"),
        ({"width": 17}, "multiples of 2"), ({"negative_prompt": "a"}, "means nothing"),
        ({"clip_skip": 2}, "means nothing"),
    ]  # fmt: skip
    for told, said in asked:
        with pytest.raises(RequestError, match=said):
            pipe(**{"steps": 4, **told})
    four = unet(in_channels=4, out_channels=4)
    peer("DDPMPipeline", four, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "four")
    with pytest.raises(CheckpointError, match="denoises 4 channels"):
        sfumato.load(str(tmp_path / "four"))
