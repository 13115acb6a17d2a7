"""A control picture beside every task: where it has a say, what it shares, what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from sfumato.cli import main
from sfumato.core.errors import RequestError
from sfumato.core.request import BESIDE, Request
from sfumato.engine.residence import Holding, Where
from sfumato.models.controlnet import ControlNet
from sfumato.tasks import TASKS
from sfumato.tasks.batcher import Batcher
from sfumato.tasks.infotext import read
from sfumato.tasks.picture import Picture
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.settle import settle
from sfumato.tasks.text_to_image import Drawing, draw
from tests.parity import tiny
from tests.tasks.test_editing import data

ASKED: dict[str, Any] = {"steps": 4, "seed": 7, "sampler": "euler"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a control network, and two pictures."""
    found = tmp_path_factory.mktemp("sd1")
    peer = tiny.pipeline("sd1", found)
    peer.save_pretrained(found / "model")
    tiny.controlnet(peer.unet).save_pretrained(found / "control")
    for seed, name in enumerate(("edges", "image")):
        noise = np.random.default_rng(seed).integers(0, 256, (64, 72, 3), dtype=np.uint8)
        Image.fromarray(noise).save(found / f"{name}.png")
    return found


def opened(place: Path, **more: Any) -> Pipeline:
    return sfumato.load(str(place / "model"), device="cpu", control=str(place / "control"), **more)


@pytest.fixture(scope="module")
def pipe(place: Path) -> Pipeline:
    found = opened(place)
    found.make_ready()  # else the layers that are listened to are replaced before the first picture
    return found


@pytest.fixture(scope="module")
def edges(place: Path) -> str:
    return str(place / "edges.png")


@pytest.fixture(scope="module")
def image(place: Path) -> str:
    return str(place / "image.png")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"control_scale": 0.5}, "control_scale = 0.5: means nothing without control"),
        ({"control_end": 0.5}, "control_end = 0.5: means nothing without control"),
        ({"control": "a.png", "control_scale": -0.1}, "from 0 to 10"),
        ({"control": "a.png", "control_scale": float("nan")}, "from 0 to 10"),
        ({"control": "a.png", "control_start": 1.0}, "the lower first"),
        ({"control": "a.png", "control_start": -0.1}, "the lower first"),
        ({"control": "a.png", "control_end": 0.0}, "the lower first"),
        ({"control": "a.png", "control_start": 0.6, "control_end": 0.5}, "control_end = 0.5: .* the lower first"),
        ({"task": "upscale", "image": "a.png", "control": "b.png"}, "control = 'b.png': means nothing to upscale"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        Request(**fields)


def test_it_stands_beside_any_task() -> None:
    assert Request(control="c.png").task == "text_to_image"
    assert Request(control="c.png", image="a.png", mask="b.png").task == "inpaint"
    for _, never in BESIDE.values():
        assert set(never) < set(TASKS.targets)


def test_without_a_control_model_it_is_refused(place: Path, edges: str) -> None:
    plain = sfumato.load(str(place / "model"), device="cpu", optimize=False)
    with pytest.raises(RequestError, match="--control-model"):
        plain("a cat", control=edges, **ASKED)


def test_of_too_few_steps_it_has_none(pipe: Pipeline, edges: str) -> None:
    with pytest.raises(RequestError, match="none of 4 steps lies whole between them"):
        pipe("a cat", control=edges, control_start=0.3, control_end=0.6, **ASKED)


@pytest.mark.parametrize(
    ("start", "end", "steps"),
    [(None, None, [0, 1, 2, 3]), (0.25, None, [1, 2, 3]), (0.2, 0.8, [1, 2]), (0.0, 0.5, [0, 1])],
)
def test_it_has_a_say_in_its_steps_alone(
    pipe: Pipeline, edges: str, start: float | None, end: float | None, steps: list[int]
) -> None:
    """It is asked in these steps, once for all rows."""
    control = pipe.model.parts["controlnet"]
    assert isinstance(control, ControlNet)
    request = Request("a cat", control=edges, control_start=start, control_end=end, count=2, **ASKED)
    settled = settle(request, pipe.model)
    assert settled.control is not None
    acting = [i for i, sigma in enumerate(settled.sigmas[:-1]) if settled.control.acts(sigma)]
    asked: list[int] = []
    hook = control.controlnet_mid_block.register_forward_hook(lambda _, inputs, __: asked.append(len(inputs[0])))
    pipe(request)
    hook.remove()
    assert acting == steps
    assert asked == [4] * len(steps)


def test_little_is_like_none_and_more_is_more(pipe: Pipeline, edges: str) -> None:
    plain = pipe("a cat", width=72, height=64, **ASKED).latents
    away = [float((pipe("a cat", control=edges, control_scale=scale, **ASKED).latents - plain).std())
            for scale in (0.0, 0.01, 1.0)]  # fmt: skip
    assert away[0] < 1e-5 < away[1] < 0.1 * away[2]


def test_picture_i_of_a_batch_is_the_picture_of_its_seed(pipe: Pipeline, edges: str, image: str) -> None:
    ways: list[dict[str, Any]] = [{}, {"image": image, "strength": 0.5}]
    for more in ways:
        told: dict[str, Any] = {"control": edges, "control_end": 0.5, "steps": 4, "sampler": "euler_ancestral", **more}
        batch = pipe("a cat", count=2, seed=5, **told)
        for i, latents in enumerate(batch.latents):
            alone = pipe("a cat", seed=5 + i, **told)
            torch.testing.assert_close(alone.latents[0], latents, rtol=1e-4, atol=1e-4)
            assert batch.pictures[i].recipe == alone.pictures[0].recipe


def test_requests_with_other_pictures_and_none_share_steps(pipe: Pipeline, edges: str, image: str) -> None:
    plain = Request("a cat", width=72, height=64, **ASKED)
    half = np.zeros((64, 72), dtype=np.uint8)
    half[:, 40:] = 255
    requests = [
        plain, replace(plain, control=edges), replace(plain, prompt="blue", control=image, control_scale=0.5, seed=9),
        replace(plain, control=edges, control_start=0.25, control_end=0.75),
        replace(plain, control=edges, cfg_scale=1.0),
        Request("star", image=image, mask=data(half), control=edges, strength=0.75, **ASKED),
    ]
    alone = [pipe(request) for request in requests]
    assert len({float(one.latents.sum()) for one in alone}) == len(requests)
    batcher = Batcher(pipe.model)
    for ticket, one in zip([batcher.submit(request) for request in requests], alone, strict=True):
        found = ticket.result()
        torch.testing.assert_close(found.latents, one.latents, rtol=1e-4, atol=1e-4)
        off = np.abs(found.pictures[0].pixels.astype(int) - one.pictures[0].pixels.astype(int))
        assert off.max() <= 1
    batcher.close()


@pytest.mark.parametrize("where", ["parts", "layers"])
def test_parts_that_rest_draw_the_same(place: Path, edges: str, where: Where) -> None:
    model = opened(place, optimize=False).model
    request = Request("a cat", control=edges, control_start=0.25, **ASKED)
    plain, held = (draw(Drawing, model, request, holding=holding) for holding in (Holding(), Holding(where)))
    assert torch.equal(plain.latents, held.latents)
    draw(Drawing, model, replace(request, control=None, control_start=None), holding=Holding(where))
    assert next(model.parts["controlnet"].parameters()).is_meta or where == "parts"


def test_packed_layers_and_eight_bits(pipe: Pipeline, place: Path, edges: str) -> None:
    """Packed it draws what it draws plain; multiplied in 8 bits is the denoiser alone."""
    told = {"control": edges, **ASKED}
    plain = opened(place, optimize=False)
    torch.testing.assert_close(pipe("a cat", **told).latents, plain("a cat", **told).latents, rtol=1e-3, atol=1e-3)
    coarse = opened(place, quantize="int8")
    coarse.make_ready()
    names = {name: {type(m).__name__ for m in coarse.model.parts[name].modules()} for name in ("unet", "controlnet")}
    assert any("Int8" in name for name in names["unet"])
    assert not any("Int8" in name for name in names["controlnet"])


def test_a_lossy_way_through(pipe: Pipeline, edges: str) -> None:
    """Where the deep layers are left out, the control network's are too."""
    told: dict[str, Any] = {**ASKED, "control": edges, "steps": 6}
    exact = pipe("a cat", **told)
    asked: list[int] = []
    control = pipe.model.parts["controlnet"]
    hook = control.get_submodule("controlnet_mid_block").register_forward_hook(lambda *_: asked.append(1))
    found = pipe("a cat", lossy=("deepcache:3:1",), **told)
    hook.remove()
    assert len(asked) == 2
    assert torch.isfinite(found.latents).all()
    assert 0 < (found.latents - exact.latents).std() < exact.latents.std()


def test_it_is_forecast(pipe: Pipeline, place: Path, edges: str) -> None:
    limited = opened(place, max_memory="2GB")
    plain = Request("a cat", width=72, height=64, **ASKED)
    without, half, whole = (
        limited.forecaster(request).fit(1 << 31)
        for request in (plain, replace(plain, control=edges, control_end=0.5), replace(plain, control=edges))
    )
    flops = [next(p for p in found.phases if p.name == "denoising").flops for found in (without, half, whole)]
    assert flops[0] < flops[1] < flops[2] < 2 * flops[0]
    assert 2 * flops[1] == pytest.approx(flops[0] + flops[2], rel=1e-6)
    assert whole.peak > without.peak
    request = replace(plain, control=edges)
    torch.testing.assert_close(limited(request).latents, pipe(request).latents, rtol=1e-3, atol=1e-3)


def test_sizes_and_crops(pipe: Pipeline, edges: str, image: str, tmp_path: Path) -> None:
    Image.new("RGB", (640, 320), "red").save(tmp_path / "wide.png")
    settled = settle(Request("a cat", control=str(tmp_path / "wide.png")), pipe.model)
    assert (settled.request.width, settled.request.height) == (88, 40)
    assert settled.given is not None
    assert settled.given.control_pixels.shape == (1, 3, 40, 88)
    assert settled.given.control_pixels[0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert settled.given.notes == (
        "The control picture of 640 x 320 pixels was scaled to 88 x 40, and what stood over was cut off.",
    )
    half = Image.open(edges).resize((36, 32))
    settled = settle(pipe_request(control=half, image=image), pipe.model)
    assert settled.given is not None
    assert settled.given.control_pixels.shape == (1, 3, 64, 72)
    assert settled.given.notes == ("The control picture of 36 x 32 pixels was scaled to the image.",)
    grey = np.zeros((64, 72), dtype=np.uint8)
    grey[16:32, 16:32] = 255
    settled = settle(pipe_request(control=edges, image=edges, mask=data(grey), mask_padding=4), pipe.model)
    assert settled.given is not None
    there = (settled.given.pixels + 1) / 2  # cut out of the same place
    torch.testing.assert_close(settled.given.control_pixels, there, rtol=0, atol=1e-6)


def pipe_request(**arguments: Any) -> Request:
    from sfumato.tasks import aliases

    return aliases.request({"prompt": "a cat", **ASKED, **arguments})


def test_diffusers_names(edges: str) -> None:
    asked = pipe_request(control_image=Image.open(edges), controlnet_conditioning_scale=0.5, control_guidance_start=0.1,
                         control_guidance_end=0.9)  # fmt: skip
    assert asked.control is not None
    assert asked.control.startswith("data:image/png")
    assert (asked.control_scale, asked.control_start, asked.control_end) == (0.5, 0.1, 0.9)
    with pytest.raises(RequestError, match="guess_mode"):
        pipe_request(control_image=edges, guess_mode=True)


def test_a_recipe_is_drawn_again(
    place: Path, edges: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, made = tmp_path / "own.png", tmp_path / "made.png"
    Picture.open(edges).save(own)
    told = ["--model", str(place / "model"), "--control-model", str(place / "control"), "--device", "cpu"]
    drawn = ["a cat", "--control", str(own), "--control-scale", "0.7", "--steps", "4", "--seed", "7", "-o", str(made)]
    assert main([*drawn, *told]) == 0
    recipe = Picture.open(made).recipe
    assert recipe["control_model"]["name"] == str(place / "control")
    assert len(recipe["control_model"]["sha256"]) == 64
    assert recipe["given"].keys() == {"control"}
    assert main(["replay", str(made), "--verify"]) == 0
    assert "identical" in capsys.readouterr().out
    own.unlink()
    assert main(["replay", str(made), "--verify"]) != 0
    assert main(["replay", str(made), "--verify", "--control", edges]) == 0


def test_what_is_written_beside_the_picture(pipe: Pipeline, edges: str) -> None:
    result = pipe("a cat", control=Image.open(edges), **ASKED)
    [picture] = result.pictures
    assert picture.recipe["request"]["control"] == f"sha256:{picture.recipe['given']['control']}"
    assert picture.recipe["request"]["control_scale"] == 1.0
    assert len(json.dumps(picture.recipe)) < 4000
    assert read(picture.parameters).not_understood == {}
    plain = pipe("a cat", **ASKED)
    assert "There is a control model, and no control picture for it." in plain.notes
    assert "control_model" not in plain.pictures[0].recipe


def test_words_are_explained_beside_it(pipe: Pipeline, edges: str) -> None:
    found = pipe.explain("a cat", control=edges, **ASKED)
    assert [word.text for word in found.words] == ["a", "cat"]


def test_a_refiner_goes_on_without_it(tmp_path: Path, edges: str) -> None:
    peer = tiny.pipeline("sdxl", tmp_path)
    peer.save_pretrained(tmp_path / "model")
    tiny.controlnet(peer.unet).save_pretrained(tmp_path / "control")
    model, control = str(tmp_path / "model"), str(tmp_path / "control")
    told: dict[str, Any] = {"control": edges, **ASKED, "steps": 10}
    plain: dict[str, Any] = {"control": control, "device": "cpu", "optimize": False}
    whole = sfumato.load(model, **plain)("a cat", control_end=0.7, **told)
    handed = sfumato.load(model, refiner=model, **plain)("a cat", refiner_start=0.7, **told)
    torch.testing.assert_close(handed.latents, whole.latents, rtol=1e-4, atol=1e-4)
