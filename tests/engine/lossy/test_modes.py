"""Lossy modes: what they leave out, that they say so, and that their pictures come again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato
from sfumato.core.errors import CheckpointError, RequestError
from sfumato.core.request import Request
from sfumato.engine import lossy
from sfumato.engine.denoiser import Place
from sfumato.engine.lossy import FAST, LOSSY, mode_of
from sfumato.engine.lossy.step_cache import StepCache
from sfumato.engine.rates import Rates
from sfumato.engine.residence import USUAL
from sfumato.nn.conditioning import Conditioning
from sfumato.tasks import aliases
from sfumato.tasks.forecast import Forecaster
from sfumato.tasks.pipeline import Pipeline
from tests.parity import tiny

ASKED: dict[str, Any] = {"steps": 6, "width": 64, "height": 64, "seed": 3, "sampler": "euler"}
RATES = Rates(
    convolution=1e9, product=2e9, attention=1e9, movement=1e9, packed=4e9, winograd=3e9, int8=8e9, latency=1e-6,
    load=1e9, process=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    place = tmp_path_factory.mktemp("sd1")
    tiny.pipeline("sd1", place).save_pretrained(place / "model")
    tiny.tiny_autoencoder().save_pretrained(place / "tiny")
    return sfumato.load(str(place / "model"), vae_tiny=str(place / "tiny"))


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    place = tmp_path_factory.mktemp("dit")
    tiny.save_dit(tiny.dit(num_layers=4), place / "model")
    tiny.tiny_autoencoder().save_pretrained(place / "tiny")
    return sfumato.load(str(place / "model"), vae_tiny=str(place / "tiny"))


def off(a: Any, b: Any) -> int:
    return int(np.abs(a.pixels.astype(int) - b.pixels.astype(int)).max())


@pytest.mark.parametrize("family", ["sd1", "dit"])
@pytest.mark.parametrize("name", [*LOSSY, "fast"])
def test_a_mode_changes_the_picture_and_says_so(
    pipe: Pipeline, dit: Pipeline, name: str, family: str
) -> None:
    drawer, prompt = (pipe, "a red apple") if family == "sd1" else (dit, "goldfish")
    able = [known for known in LOSSY if not mode_of(known).unfit(drawer.model)]
    assert ("deepcache" in able) == (family == "sd1")
    assert ("block_cache" in able) == (family == "dit")
    if name not in able and name != "fast":
        with pytest.raises(RequestError, match="it is made for"):
            drawer(prompt, lossy=(name,), **ASKED)
        return
    [exact] = drawer(prompt, **ASKED).pictures
    result = drawer(prompt, lossy=(name,), **ASKED)
    assert off(exact, result.pictures[0]) > 1
    written = result.pictures[0].recipe["request"]["lossy"]
    modes = [mode_of(text) for text in written]
    assert [mode.name for mode in modes] == ([n for n in FAST if n in able] if name == "fast" else [name])
    [note] = [note for note in result.notes if note.startswith("Lossy")]
    assert all(mode.title in note for mode in modes)
    assert not any(note.startswith("Lossy") for note in drawer(prompt, **ASKED).notes)


def test_what_was_measured_of_a_combination_stands_before_what_was_measured_of_its_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = [mode_of("deepcache:3"), mode_of("interval:0:5")]
    parts = {"deepcache:3:2": {"psnr": 25.04, "faster": 2.0}}
    known: dict[str, Any] = {"on": "a model", "modes": parts}
    monkeypatch.setattr(lossy, "measured", lambda: {"models/a": known})
    assert lossy.notes(both)[0].endswith(
        " Measured on a model: deepcache:3:2: 25.0 dB PSNR to the exact picture, 2.00 times as fast."
    )
    known["modes"] = {**parts, "deepcache:3:2,interval:0:5": {"psnr": 20.0, "faster": 3.0}}
    assert " Measured on a model: deepcache:3:2,interval:0:5: 20.0 dB" in lossy.notes(both)[0]
    assert lossy.notes(both[1:])[0].endswith(" Never measured with these values.")


@pytest.mark.parametrize(
    "modes", [("deepcache:2:1",), ("token_merging:0.25",), ("fast", "token_merging"), ("block_cache:2:1",)]
)
def test_a_lossy_picture_is_its_own_alone_in_a_batch_and_again(
    pipe: Pipeline, dit: Pipeline, modes: tuple[str, ...]
) -> None:
    drawer, prompt = (dit, "goldfish") if "block_cache:2:1" in modes else (pipe, "a red apple")
    batch = drawer(prompt, lossy=modes, count=3, **ASKED).pictures
    [alone] = drawer(prompt, lossy=modes, **{**ASKED, "seed": 5}).pictures
    assert off(batch[2], alone) <= 1
    [again] = drawer(alone.reading().request).pictures
    assert off(again, alone) == 0


@pytest.mark.parametrize("family", ["sd1", "dit"])
@torch.inference_mode()
def test_inner_layers_that_run_at_every_step_leave_the_answer_as_it_is(
    pipe: Pipeline, dit: Pipeline, family: str
) -> None:
    drawer, prompt = (pipe, "a red apple") if family == "sd1" else (dit, "goldfish")
    request = aliases.request({"prompt": prompt, **ASKED})
    model = drawer.model
    given = model.family.condition(model, request, ("positive", "negative")).conditionings
    conditioning = Conditioning.cat([given["positive"], given["negative"]])
    generator = torch.Generator().manual_seed(0)
    places = [Place(0, "positive", 1), Place(0, "negative", 1)]
    always, seldom = StepCache(1, 1), StepCache(2, 1)
    for step in range(3):
        x = torch.randn(1, 4, 8, 8, generator=generator)
        t = torch.tensor([900.0 - 100 * step])
        exact = model.network(x, t, conditioning)
        assert torch.equal(always.around(model.network, [always], places)(x, t, conditioning), exact)
        near = seldom.around(model.network, [seldom], places)(x, t, conditioning)
        assert torch.equal(near, exact) == (step != 1)


def test_inner_blocks_of_a_transformer_run_at_every_third_step(dit: Pipeline) -> None:
    calls: dict[int, int] = {0: 0, 1: 0, 2: 0, 3: 0}

    def count(i: int) -> Callable[..., None]:
        return lambda *_: calls.update({i: calls[i] + 1})

    hooks = [dit.model.network.get_submodule(f"transformer_blocks.{i}").register_forward_hook(count(i)) for i in calls]
    dit("goldfish", lossy=("block_cache:3:2",), **{**ASKED, "steps": 7})
    for hook in hooks:
        hook.remove()
    assert calls == {0: 7, 1: 3, 2: 3, 3: 7}


def test_deep_layers_run_at_every_third_step(pipe: Pipeline) -> None:
    calls = []
    handle = pipe.model.network.get_submodule("mid_block.resnets.0").register_forward_hook(lambda *_: calls.append(1))
    pipe("a red apple", lossy=("deepcache:3",), **{**ASKED, "steps": 7})
    handle.remove()
    assert len(calls) == 3


def test_where_guidance_begins_the_deep_layers_run_for_what_is_new(pipe: Pipeline) -> None:
    sigmas = (14.0, 10.0, 7.0, 3.0, 1.0, 0.0)
    calls = []
    hook = pipe.model.network.get_submodule("mid_block.attentions.0").register_forward_hook(
        lambda module, inputs, output: calls.append(len(output))
    )
    pipe("a red apple", lossy=("deepcache:5", "interval:0:8"), sigmas=sigmas, **{**ASKED, "steps": None})
    hook.remove()
    assert calls == [1, 2]  # at the first step, and at the first that is guided


@pytest.mark.parametrize(
    ("modes", "said"),
    [
        (("depcache",), "did you mean 'deepcache'"),
        (("deepcache:1",), "at least 2"),
        (("deepcache:2:9",), "at most 3 are outer"),
        (("deepcache:2:1:1",), "2 values at most"),
        (("deepcache:x",), "cannot read 'x' as int"),
        (("deepcache", "deepcache:4"), "twice"),
        (("token_merging:0.9",), "0.75"),
        (("interval:3:1",), "lower first"),
        (("block_cache:1",), "at least 2"),
        (("block_cache:2:4",), "at most 3 are outer"),
    ],
)
def test_what_cannot_be_done_is_refused(pipe: Pipeline, dit: Pipeline, modes: tuple[str, ...], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        (dit if modes[0].startswith("block") else pipe)("1", lossy=modes, **ASKED)


def test_guidance_has_one_interval(pipe: Pipeline) -> None:
    with pytest.raises(RequestError, match="guidance_interval"):
        pipe("a red apple", lossy=("interval",), guidance_interval=(1.0, 2.0), **ASKED)


def test_modes_a_model_cannot_do_are_left_out_of_fast_and_refused_alone(pipe: Pipeline) -> None:
    bare = Pipeline(replace(pipe.model, parts={k: v for k, v in pipe.model.parts.items() if k != "vae_tiny"}))
    [picture] = bare("a red apple", lossy=("fast",), **ASKED).pictures
    assert [text.split(":")[0] for text in picture.recipe["request"]["lossy"]] == ["deepcache", "interval"]
    with pytest.raises(RequestError, match="--vae-tiny"):
        bare("a red apple", lossy=("tiny_decoder",), **ASKED)


def test_the_tiny_decoder_is_in_the_recipe_and_the_model_stays_the_same(pipe: Pipeline, tmp_path: Path) -> None:
    plain, small = (pipe("a cat", lossy=modes, **ASKED).pictures[0].recipe for modes in ((), ("tiny_decoder",)))
    assert plain["model"] == small["model"]
    assert "vae_tiny" not in plain
    assert len(small["vae_tiny"]["sha256"]) == 64
    tiny.autoencoder().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="full size"):
        sfumato.load(pipe.model.source, vae_tiny=str(tmp_path))


def test_what_is_left_out_is_not_forecast(pipe: Pipeline, dit: Pipeline) -> None:
    for drawer, mode in ((pipe, "deepcache"), (dit, "block_cache")):
        model = sfumato.load(drawer.model.source, max_memory="1GB").model
        none, second, third = (
            Forecaster(model, Request("1", lossy=modes, **ASKED), RATES).forecast(USUAL).phases[1].flops
            for modes in ((), (f"{mode}:2:1",), (f"{mode}:3:1",))
        )
        assert third < second < 0.8 * none
