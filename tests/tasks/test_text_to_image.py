"""From a folder to pictures: batches, seeds, sizes, the refiner, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato
from sfumato.core.errors import CheckpointError, NumericError, RequestError
from sfumato.core.request import Request
from sfumato.engine.driver import Cancelled, Progress
from sfumato.nn import native
from sfumato.tasks.infotext import as_titled
from sfumato.tasks.pipeline import Pipeline
from sfumato.tasks.settle import settle
from sfumato.tasks.text_to_image import Run
from tests.parity import tiny

STEPS: dict[str, Any] = {"steps": 4, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sd1")
    tiny.pipeline("sd1", place).save_pretrained(place / "model")
    return place / "model"


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return sfumato.load(str(folder))


@pytest.mark.parametrize("sampler", ["DPM++ 2M Karras", "Euler a", "DPM++ SDE"])
def test_picture_i_of_a_batch_is_the_picture_of_its_seed(pipe: Pipeline, sampler: str) -> None:
    batch = pipe("a red apple", seed=11, count=4, sampler=sampler, **STEPS)
    for i, picture in enumerate(batch.pictures):
        assert picture.seed == 11 + i
        [alone] = pipe("a red apple", seed=11 + i, sampler=sampler, **STEPS).pictures
        difference = np.abs(picture.pixels.astype(int) - alone.pixels.astype(int)).max()
        assert difference <= 1
    assert np.abs(batch.pictures[0].pixels.astype(int) - batch.pictures[1].pixels.astype(int)).max() > 20


def test_networks_are_packed_for_the_first_picture_and_not_before(folder: Path) -> None:
    pipe, sooner = sfumato.load(str(folder), device="cpu"), sfumato.load(str(folder), device="cpu")
    before = set(map(type, pipe.model.parts["unet"].modules()))
    assert not pipe.is_ready
    sooner.make_ready()
    assert set(map(type, sooner.model.parts["unet"].modules())) != before or not native.available()
    one, other = (p("a cat", seed=3, **STEPS).pictures[0].pixels for p in (pipe, sooner))
    assert pipe.is_ready
    assert np.array_equal(one, other)


def test_a_limit_for_one_request_leaves_the_next_as_it_would_be(folder: Path) -> None:
    pipe, other = sfumato.load(str(folder), device="cpu"), sfumato.load(str(folder), device="cpu")
    pipe("a cat", seed=3, max_memory="8GB", **STEPS)
    one, two = (p("a cat", seed=3, **STEPS).pictures[0].pixels for p in (pipe, other))
    assert np.array_equal(one, two)


def test_a_whole_request_stands_alone(pipe: Pipeline) -> None:
    with pytest.raises(RequestError, match="cfg_scale beside it"):
        pipe(Request("a cat", seed=3, **STEPS), cfg_scale=2.0)


def test_more_pictures_than_rows_are_drawn_in_turn(pipe: Pipeline) -> None:
    from sfumato.engine.residence import Holding
    from sfumato.tasks.text_to_image import text_to_image

    request = Request("a cat", seed=3, count=3, **STEPS)
    few, many = (text_to_image(pipe.model, request, holding=Holding(rows=rows)).latents for rows in (2, 16))
    torch.testing.assert_close(few, many, rtol=1e-4, atol=1e-4)


def test_a_picture_carries_a_request_without_blanks(pipe: Pipeline) -> None:
    [picture] = pipe("a red apple", steps=2, width=64, height=72).pictures
    request = picture.recipe["request"]
    assert picture.image.size == (64, 72)
    for name in ("width", "height", "seed", "steps", "cfg_scale", "sampler", "spacing"):
        assert request[name] is not None
    assert len(picture.recipe["model"]["sha256"]) == 64
    assert f"Seed: {picture.seed}" in picture.parameters


def test_a_request_without_blanks_is_drawn_as_the_one_with_them(pipe: Pipeline) -> None:
    own = {**pipe.model.scheduler, "_class_name": "DPMSolverMultistepScheduler", "solver_order": 1}
    model = replace(pipe.model, scheduler=own)
    settled = settle(Request("a cat", seed=3, **STEPS), model)
    assert settled.plan.options["order"] == 1
    assert Run(model, settled, settled.sigmas).plan == settled.plan
    for again in (settled.request, as_titled(settled.request)):  # what the recipe and the text in a picture say
        assert settle(again, model).plan == settled.plan


def test_diffusers_names_are_understood(pipe: Pipeline) -> None:
    theirs = pipe(
        "a cat", num_inference_steps=3, guidance_scale=2.0, width=64, height=64,
        generator=torch.Generator().manual_seed(4),
    )
    ours = pipe("a cat", steps=3, cfg_scale=2.0, width=64, height=64, seed=4, noise="torch")
    torch.testing.assert_close(theirs.latents, ours.latents, rtol=0, atol=0)


def test_unguided_drawing_reads_no_negative_prompt(pipe: Pipeline) -> None:
    result = pipe("a cat", cfg_scale=1.0, negative_prompt="blue", seed=1, **STEPS)
    assert set(result.tokens) == {"positive"}


def test_eta_reaches_the_sampler_or_is_refused(pipe: Pipeline) -> None:
    still, noisy = (pipe("a cat", seed=1, sampler="DDIM", eta=eta, **STEPS).latents for eta in (0.0, 1.0))
    assert (still - noisy).abs().max() > 0.01
    with pytest.raises(RequestError, match="eta"):
        pipe("a cat", sampler="LMS", eta=0.5, **STEPS)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"width": 513}, "512 and 520"),
        ({"height": 100_000}, "limit"),
        ({"sampler": "DPM++ 2N"}, "DPM\\+\\+ 2M"),
        ({"spacing": "karas"}, "karras"),
        ({"crop": (0, 0)}, "crop means nothing"),
        ({"stepz": 4}, "steps"),
        ({"refiner_start": 0.8}, "means nothing"),
        ({"steps": 2000}, "1000"),
        ({"prompt_weighting": "invoke"}, "compel|a1111"),
        ({"prompt": "a dog"}, "Two prompts"),
        ({"steps": 4, "sigmas": (3.0, 1.0, 0.0)}, "2 steps"),
        ({"sampler": "DPM++ 2M Karras", "spacing": "exponential"}, "leave one out"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_paragraph(pipe: Pipeline, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        pipe("a cat", **fields)
    assert "\n" not in str(caught.value)


def test_a_huge_prompt_is_refused_at_once(pipe: Pipeline) -> None:
    with pytest.raises(RequestError, match="100,000 characters"):
        pipe("a" * 100_000)


def test_progress_can_stop_a_drawing(pipe: Pipeline) -> None:
    seen: list[int] = []

    def watch(progress: Progress) -> None:
        seen.append(progress.step)
        if progress.step == 2:
            raise Cancelled("stopped by its user")

    with pytest.raises(Cancelled):
        pipe("a cat", on_step=watch, **STEPS)
    assert seen == [1, 2]


def test_a_damaged_network_is_noticed(folder: Path) -> None:
    broken = sfumato.load(str(folder), optimize=False)
    next(iter(broken.model.network.parameters())).data.fill_(float("nan"))
    with pytest.raises(NumericError, match="NaN"):
        broken("a cat", **STEPS)


def test_the_autoencoder_of_another_family_is_refused(tmp_path: Path, folder: Path) -> None:
    tiny.autoencoder(0.13025).save_pretrained(tmp_path / "vae")
    with pytest.raises(CheckpointError, match="Stable Diffusion XL"):
        sfumato.load(str(folder), vae=str(tmp_path / "vae"))


def test_the_refiner_finishes_what_the_base_began(tmp_path: Path) -> None:
    for family in ("sdxl", "sdxl-refiner"):
        tiny.pipeline(family, tmp_path / family).save_pretrained(tmp_path / family / "model")
    base, refiner = (str(tmp_path / family / "model") for family in ("sdxl", "sdxl-refiner"))
    both = sfumato.load(base, refiner=refiner)
    result = both("a cat", seed=1, refiner_start=0.5, **STEPS)
    assert result.pictures[0].recipe["refiner"]["family"] == "sdxl-refiner"
    alone = sfumato.load(base)("a cat", seed=1, **STEPS)
    assert (result.latents - alone.latents).abs().max() > 0.01
    with pytest.raises(RequestError, match="refiner"):
        both("a cat", **STEPS)


def test_a_picture_can_be_previewed_while_it_is_drawn(pipe: Pipeline) -> None:
    from sfumato.engine.preview import preview

    seen = []
    watch = lambda progress: seen.append(preview(progress.x0, pipe.model.latent))
    pipe("a cat", seed=1, sampler="Euler", on_step=watch, **STEPS)
    assert len(seen) == 4
    assert seen[-1][0].size == (64, 64)
    assert seen[0][0].tobytes() != seen[-1][0].tobytes()
