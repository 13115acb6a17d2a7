"""Pictures drawn from pictures: sizes, strength, masks, seeds, recipes, and what is refused."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import sfumato
from sfumato.cli import main
from sfumato.core.errors import RequestError
from sfumato.core.request import GIVEN, Request
from sfumato.engine.driver import Progress
from sfumato.engine.residence import Holding, Where
from sfumato.tasks import TASKS
from sfumato.tasks.batcher import Batcher
from sfumato.tasks.given import around
from sfumato.tasks.image_to_image import Redrawing
from sfumato.tasks.infotext import read
from sfumato.tasks.inpaint import Inpainting
from sfumato.tasks.picture import Picture
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.settle import KINDS, settle
from sfumato.tasks.text_to_image import draw
from tests.parity import tiny

SEED = {"seed": 7}
ASKED: dict[str, Any] = {"steps": 4, **SEED}


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    place = tmp_path_factory.mktemp("sd1")
    tiny.pipeline("sd1", place).save_pretrained(place / "model")
    return sfumato.load(str(place / "model"), device="cpu")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "image.png"
    noise = np.random.default_rng(1).integers(0, 256, (64, 72, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture(scope="module")
def mask(image: Path) -> Path:
    path = image.with_name("mask.png")
    grey = np.zeros((64, 72), dtype=np.uint8)
    grey[:, 40:] = 255
    Image.fromarray(grey).save(path)
    return path


def test_what_is_known_of_tasks_is_known_of_all() -> None:
    assert set(KINDS) == set(TASKS.targets) == {"text_to_image", *GIVEN}


def test_the_task_is_what_is_given(image: Path) -> None:
    assert Request().task == "text_to_image"
    assert Request(image="a.png").task == "image_to_image"
    assert Request(image="a.png", mask="b.png").task == "inpaint"
    assert Request(image="a.png", depth="b.png").task == "depth_to_image"
    assert replace(Request(image="a.png"), mask="b.png", task="inpaint").task == "inpaint"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"task": "image_to_image"}, "needs image"), ({"task": "inpaint", "image": "a.png"}, "needs mask"),
        ({"task": "image_to_image", "image": "a.png", "mask": "b.png"}, "mask = 'b.png': means nothing"),
        ({"strength": 0.5}, "nothing to text_to_image"), ({"mask": "b.png"}, "nothing to text_to_image"),
        ({"image": "a.png", "mask_blur": 2}, "nothing to image_to_image"), ({"task": "upscale"}, "needs image"),
        ({"image": "a.png", "mask": "b.png", "depth": "c.png"}, "nothing to depth_to_image"),
        ({"task": "upscale", "image": "a.png", "strength": 0.5}, "nothing to upscale"),
        ({"task": "upscale", "image": "a.png", "noise_level": 351}, "0 to 350"),
        ({"image": "data:" + 9000 * "a", "noise_level": 1}, "nothing to image"),
        ({"image": "a.png", "strength": 0.0}, "above 0"),
        ({"image": "a.png", "strength": 1.01}, "1 at most"),
        ({"image": "a.png", "mask": "b.png", "mask_blur": -1}, "from 0"),
        ({"image": "a.png", "strength": 0.5, "sigmas": (1.0, 0.0)}, "leave one of them out"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Request(**fields)


@pytest.mark.parametrize(
    ("size", "asked", "drawn"),
    [
        ((72, 64), {}, (72, 64)), ((70, 67), {}, (64, 64)), ((640, 320), {}, (88, 40)), ((20, 16), {}, (16, 16)),
        ((640, 320), {"width": 128}, (128, 64)), ((640, 320), {"height": 40}, (80, 40)),
        ((640, 320), {"width": 64, "height": 64}, (64, 64)), ((4, 4000), {}, (8, 2016)), ((96, 96), {}, (96, 96)),
        ((104, 96), {}, (64, 56)),
    ],
)  # fmt: skip
def test_the_size_is_the_images_if_that_is_not_too_much(
    pipe: Pipeline, tmp_path: Path, size: tuple[int, int], asked: dict[str, Any], drawn: tuple[int, int]
) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "image.png")
    settled = settle(Request(image=str(tmp_path / "image.png"), **asked), pipe.model)
    assert (settled.request.width, settled.request.height) == drawn
    assert settled.given is not None
    assert settled.given.image is not None
    assert settled.given.image.size == drawn
    assert len(settled.given.notes) == (size != drawn)
    assert ("cut off" in "".join(settled.given.notes)) == (abs(size[0] * drawn[1] - size[1] * drawn[0]) >= max(size))


def test_strength_is_the_share_of_steps_that_are_done(pipe: Pipeline, image: Path) -> None:
    before = Picture.open(image).pixels.astype(int)
    away = []
    for strength, steps in ((0.1, 2), (0.5, 10), (1.0, 20)):
        seen: list[Progress] = []
        told: dict[str, Any] = {"image": image, "strength": strength, "steps": 20, "seed": 7, "sampler": "ddim"}
        result = pipe("a cat", on_step=seen.append, **told)
        assert [now.step for now in seen] == [*range(1, steps + 1)]
        assert result.pictures[0].recipe["request"]["steps"] == 20
        away.append(np.abs(result.pictures[0].pixels.astype(int) - before).mean())
    with pytest.raises(RequestError, match=r"strength of 0\.05 at least"):
        pipe("a cat", image=image, strength=0.04, steps=20)


def test_little_noise_leaves_the_latents_nearly_as_they_were(pipe: Pipeline, image: Path) -> None:
    request = Request("a cat", image=str(image), sigmas=(1e-3, 0.0), seed=7, sampler="euler")
    drawing = Redrawing(pipe.model, request)
    drawing.prepare()
    with torch.inference_mode():
        [drawn] = drawing.begin([7]).x
        away = (drawn - pipe.model.latent.from_autoencoder(drawing.seen.mean[0])).std()
    spread = pipe.model.latent.scale * (0.5 * drawing.seen.log_variance).exp().mean()
    assert 0.8 < away / spread < 1.25
    torch.testing.assert_close(pipe(request).latents[0], drawn, rtol=0, atol=0.02)


def test_black_stays_as_it_was(pipe: Pipeline, image: Path, mask: Path) -> None:
    before = Picture.open(image).pixels
    hard = pipe("a cat", image=image, mask=mask, mask_blur=0, **ASKED).pictures[0].pixels
    assert np.array_equal(hard[:, :40], before[:, :40])
    assert not np.array_equal(hard[:, 40:], before[:, 40:])
    soft = pipe("a cat", image=image, mask=mask, mask_blur=4, **ASKED).pictures[0].pixels
    assert np.array_equal(soft[:, :24], before[:, :24])
    assert not np.array_equal(soft[:, 36:40], before[:, 36:40])
    assert np.array_equal(soft[:, 60:], hard[:, 60:])


@pytest.mark.parametrize("noise", ["philox", "torch"])
def test_picture_i_of_a_batch_is_the_picture_of_its_seed(pipe: Pipeline, image: Path, mask: Path, noise: str) -> None:
    ways: list[dict[str, Any]] = [{}, {"mask": mask, "strength": 0.5}, {"mask": mask}]
    for more in ways:
        told = {"image": image, "steps": 4, "noise": noise, "sampler": "euler_ancestral", **more}
        batch = pipe("a cat", count=3, seed=5, **told)
        for i, latents in enumerate(batch.latents):
            alone = pipe("a cat", seed=5 + i, **told)
            torch.testing.assert_close(alone.latents[0], latents, rtol=1e-4, atol=1e-4)
            assert batch.pictures[i].recipe == alone.pictures[0].recipe


def test_requests_of_all_kinds_share_steps(pipe: Pipeline, image: Path, mask: Path) -> None:
    requests = [
        Request("a cat", width=72, height=64, **ASKED), Request("a cat", image=str(image), strength=0.5, **ASKED),
        Request("blue", image=str(image), mask=str(mask), steps=3, seed=1, count=2),
    ]
    alone = [pipe(request) for request in requests]
    batcher = Batcher(pipe.model)
    for ticket, one in zip([batcher.submit(request) for request in requests], alone, strict=True):
        torch.testing.assert_close(ticket.result().latents, one.latents, rtol=1e-4, atol=1e-4)
    batcher.close()


@pytest.mark.parametrize("where", ["parts", "layers"])
def test_parts_that_rest_draw_the_same(pipe: Pipeline, image: Path, mask: Path, where: Where) -> None:
    whole = Request("a cat", image=str(image), strength=0.5, **ASKED)
    for request in (whole, replace(whole, mask=str(mask), task="inpaint")):
        model = sfumato.load(pipe.model.source, device="cpu", optimize=False).model
        task = Redrawing if request is whole else Inpainting
        plain, held = (draw(task, model, request, holding=holding) for holding in (Holding(), Holding(where)))
        assert torch.equal(plain.latents, held.latents)


def test_a_recipe_is_drawn_again(
    pipe: Pipeline, image: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.png"
    Picture.open(image).save(own)
    told = ["--model", pipe.model.source, "--steps", "4", "--seed", "7", "--device", "cpu"]
    made, again = tmp_path / "made.png", ["replay", str(tmp_path / "made.png"), "--verify"]
    assert main(["a cat", "--image", str(own), "--mask", str(mask), "-o", str(made), *told]) == 0
    assert main(again) == 0
    assert "identical" in capsys.readouterr().out
    Image.new("RGB", (72, 64), "red").save(own)
    assert main(again) == 1
    assert "given.image was" in capsys.readouterr().err
    own.unlink()
    assert main(again) != 0
    assert "own.png cannot be read" in capsys.readouterr().err
    assert main([*again, "--image", str(image)]) == 0


def test_what_other_programs_read_tells_of_it(pipe: Pipeline, image: Path, mask: Path) -> None:
    [picture] = pipe("a cat", image=image, mask=mask, strength=0.5, **ASKED).pictures
    assert "Denoising strength: 0.5, Mask blur: 4" in picture.parameters
    assert str(image) not in picture.parameters
    found = read(picture.parameters)
    assert found.request.task == "text_to_image"
    assert found.not_understood == {"Denoising strength": "0.5", "Mask blur": "4", "Task": "inpaint"}


def test_pictures_in_memory(pipe: Pipeline, image: Path, mask: Path) -> None:
    by_name = pipe("a cat", image=image, mask_image=mask, **ASKED)
    in_memory = pipe("a cat", image=Image.open(image), mask_image=Picture.open(mask), **ASKED)
    assert torch.equal(by_name.latents, in_memory.latents)
    recipe = in_memory.pictures[0].recipe
    assert recipe["request"]["image"] == f"sha256:{recipe['given']['image']}"
    assert len(json.dumps(recipe)) < 4000
    with pytest.raises(RequestError, match="give the picture itself"):
        pipe(in_memory.pictures[0].reading().request)
    cmyk = Image.open(image).convert("CMYK")
    assert pipe("a cat", image=cmyk, **ASKED).pictures[0].image.size == (72, 64)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a\0b.png", "null"), ("", "cannot be read"),
        ("no/such.png", "cannot be read"), ("data:image/png;base64,!", "cannot be read"), ("data:,abc", "not base64"),
        (f"data:image/png;base64,{base64.b64encode(b'GIF89a').decode()}", "image is not a PNG"),
        (3, "expected one picture"), (["a.png", "b.png"], "expected one picture"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused(pipe: Pipeline, name: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        pipe("a cat", image=name, **ASKED)


def test_masks_of_other_sizes_and_black_ones(pipe: Pipeline, image: Path, tmp_path: Path) -> None:
    Image.new("L", (36, 32), 255).save(tmp_path / "half.png")
    result = pipe("a cat", image=image, mask=tmp_path / "half.png", **ASKED)
    assert any("mask of 36 x 32" in note for note in result.notes)
    Image.new("L", (72, 64), 0).save(tmp_path / "black.png")
    with pytest.raises(RequestError, match="black everywhere"):
        pipe("a cat", image=image, mask=tmp_path / "black.png", **ASKED)


@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)), st.tuples(st.integers(8, 600), st.integers(8, 600)),
    st.integers(0, 40), st.data(),
)  # fmt: skip
def test_a_part_holds_what_it_must(
    size: tuple[int, int], proportions: tuple[int, int], padding: int, data: st.DataObject
) -> None:
    (left, right), (top, bottom) = (
        sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in size
    )
    x0, y0, x1, y1 = around((left, top, right, bottom), padding, proportions, size)
    assert 0 <= x0 <= left < right <= x1 <= size[0]
    assert 0 <= y0 <= top < bottom <= y1 <= size[1]
    if x1 - x0 < size[0] and y1 - y0 < size[1]:
        assert abs((x1 - x0) * proportions[1] - (y1 - y0) * proportions[0]) <= max(proportions)
        assert x1 - x0 >= right - left + 2 * padding - 1


def test_only_what_lies_around_a_mask_is_drawn(pipe: Pipeline, tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (120, 300, 3), dtype=np.uint8)
    grey = np.zeros((120, 300), dtype=np.uint8)
    grey[20:50, 250:270] = 255
    Image.fromarray(pixels).save(tmp_path / "large.png")
    told: dict[str, Any] = {"image": tmp_path / "large.png", "mask": data(grey), "mask_padding": 10, **ASKED}
    found = pipe("a cat", mask_blur=0, **told)
    [picture] = found.pictures
    assert picture.image.size == (300, 120)
    assert np.array_equal(picture.pixels[grey == 0], pixels[grey == 0])
    assert not np.array_equal(picture.pixels[grey > 0], pixels[grey > 0])
    assert found.latents.shape[-2:] == (8, 8)
    assert "Of the image 50 x 50 pixels were drawn, at 64 x 64." in found.notes
    by_hand = pipe("a cat", image=Image.fromarray(pixels[10:60, 235:285]), mask=data(grey[10:60, 235:285]), width=64,
                   height=64, **ASKED)  # fmt: skip
    assert torch.equal(found.latents, by_hand.latents)
    soft = pipe("a cat", mask_blur=3, **told).pictures[0].pixels
    assert np.array_equal(soft[:, :230], pixels[:, :230])


def test_a_transparent_image_is_put_on_white_and_said(pipe: Pipeline) -> None:
    result = pipe("a cat", image=Image.new("RGBA", (64, 64), (255, 0, 0, 0)), **ASKED)
    assert any("on white" in note for note in result.notes)


def test_what_lies_in_a_mask_is_painted_whole(pipe: Pipeline, image: Path) -> None:
    """One white pixel paints its whole latent position."""
    grey = np.zeros((64, 72), dtype=np.uint8)
    grey[13, 70] = 255
    settled = settle(Request("a cat", image=str(image), mask=data(grey)), pipe.model)
    assert settled.given is not None
    found = settled.given.latent_mask(8)
    assert found.shape == (1, 1, 8, 9)
    assert found.nonzero().tolist() == [[0, 0, 1, 8]]


def data(pixels: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_the_way_there_is_forecast(pipe: Pipeline, image: Path, mask: Path) -> None:
    plain = Request("a cat", width=72, height=64, sampler="ddim", **ASKED)
    text, edit = (
        {phase.name: phase for phase in pipe.forecaster(request).unasked()[0].phases}
        for request in (plain, replace(plain, image=str(image), mask=str(mask), task="inpaint", strength=0.5))
    )
    assert [*edit] == ["text encoding", "encoding", "denoising", "decoding"]
    assert edit["encoding"].flops > 0
    assert 2 * edit["denoising"].calls == text["denoising"].calls


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_refiner_goes_on_where_the_model_stopped(
    tmp_path: Path, image: Path, mask: Path, strength: float
) -> None:
    """The same model twice is the model."""
    tiny.pipeline("sdxl", tmp_path).save_pretrained(tmp_path / "model")
    place = str(tmp_path / "model")
    for more in ({}, {"mask": mask}):
        told: dict[str, Any] = {"image": image, "strength": strength, "sampler": "euler", "steps": 10, **more, **SEED}
        alone = sfumato.load(place, device="cpu")("a cat", **told)
        after = sfumato.load(place, refiner=place, device="cpu")("a cat", refiner_start=0.7, **told)
        torch.testing.assert_close(after.latents, alone.latents, rtol=1e-4, atol=1e-4)


def test_a_model_for_inpainting_does_that_alone(tmp_path: Path, image: Path, mask: Path) -> None:
    import diffusers as untyped

    diffusers: Any = untyped
    peer = tiny.pipeline("sd1", tmp_path)
    unet = tiny.unet(**{**peer.unet.config, "in_channels": 9})
    tiny.randomise(unet, seed=6)
    peer.register_modules(unet=unet)
    diffusers.StableDiffusionInpaintPipeline(**peer.components).save_pretrained(tmp_path / "model")
    pipe = sfumato.load(str(tmp_path / "model"), device="cpu")
    assert pipe.model.family.name == "sd1-inpaint"
    for other in (Request("a cat"), Request("a cat", image=str(image))):
        with pytest.raises(RequestError, match="it does inpaint"):
            pipe(other)
    request = Request("a cat", image=str(image), mask=str(mask), **ASKED)
    assert [p.calls for p in pipe.forecaster(request).unasked()[0].phases if p.name == "encoding"] == [2]
    result = pipe(request)
    assert np.array_equal(result.pictures[0].pixels[:, :24], Picture.open(image).pixels[:, :24])
    limited = sfumato.load(str(tmp_path / "model"), device="cpu", max_memory="2GB")(request)
    torch.testing.assert_close(result.latents, limited.latents, rtol=1e-3, atol=1e-3)
