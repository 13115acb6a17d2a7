"""A1111's text, both ways."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.core.request import Request
from sfumato.tasks.infotext import FACTS, read, write

FOREIGN = """masterpiece, (a fox:1.2), <lora:ink:0.7>
second line
Negative prompt: blurry, "low quality"
and more
Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 3141592653, Size: 640x960, \
Model hash: 6ce0161689, Model: v1-5, Denoising strength: 0.55, Clip skip: 2, ENSD: 31337, \
Lora hashes: "ink: 0123456789ab, two: 1", Hires upscale: 2, Version: v1.10.1"""

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.lists(
    st.sampled_from(["a", "\n", "Negative prompt: ", "Steps: 1, Seed: 2, Size: 1x1", ", ", '"', " ", "Prompt: x"]),
    max_size=8,
).map("".join)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda name: name != "Automatic")
SHARE = st.floats(0, 1)
REQUESTS = st.builds(
    Request, prompt=TEXT, negative_prompt=TEXT, task=NAMES, width=st.none() | st.integers(1, 9999),
    height=st.none() | st.integers(1, 9999), count=st.integers(1, 1000), seed=st.none() | st.integers(0, 2**64 - 1),
    steps=st.none() | st.integers(1, 1000), cfg_scale=st.none() | st.floats(0, 1000), sampler=st.none() | NAMES,
    spacing=st.none() | NAMES, eta=st.none() | SHARE, guidance_rescale=SHARE,
    sigmas=st.none() | st.lists(st.floats(0, 100), min_size=2, max_size=5, unique=True).map(
        lambda values: tuple(sorted(values, reverse=True))),
    guidance_interval=st.none() | st.tuples(st.floats(0, 1), st.floats(2, 80)),
    dynamic_threshold=st.none() | st.floats(0.001, 1), clip_skip=st.none() | st.integers(1, 12),
    prompt_weighting=st.sampled_from(["a1111", "comfy", "compel"]), long_prompts=st.sampled_from(["chunk", "truncate"]),
    noise=st.sampled_from(["philox", "torch"]), refiner_start=st.none() | st.floats(0.01, 0.99),
    guidance_channels=st.none() | st.integers(1, 16),
    lossy=st.lists(st.sampled_from(["deepcache:3:2", "interval:0.28:5.42", "tiny_decoder"]), max_size=3).map(tuple),
)


@given(REQUESTS, st.dictionaries(st.sampled_from(FACTS), NAMES, max_size=4))
def test_what_is_written_is_read(request_: Request, facts: dict[str, str]) -> None:
    found = read(write(request_, facts))
    assert found.request == request_
    assert {key: found.facts[key] for key in facts} == facts
    assert found.not_understood == {}


def test_it_looks_as_a1111_writes_it() -> None:
    request = Request("a fox, (red:1.2)", "blurry", width=512, height=768, seed=7, steps=20, cfg_scale=7.0,
                      sampler="DPM++ 2M", spacing="Karras", clip_skip=2, noise="torch")
    assert write(request, {"Model hash": "6ce0161689", "Model": "a, b", "Version": "sfumato 1"}) == (
        "a fox, (red:1.2)\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, "
        'Seed: 7, Size: 512x768, Clip skip: 2, Emphasis: Original, RNG: CPU, Model hash: 6ce0161689, Model: "a, b", '
        "Version: sfumato 1"
    )


def test_foreign_text_is_read_as_far_as_it_goes() -> None:
    found = read(FOREIGN)
    assert found.request == Request(
        "masterpiece, (a fox:1.2), <lora:ink:0.7>\nsecond line", 'blurry, "low quality"\nand more', steps=28,
        sampler="DPM++ 2M", spacing="Karras", cfg_scale=6.5, seed=3141592653, width=640, height=960, clip_skip=2,
    )
    assert found.facts == {
        "Model hash": "6ce0161689", "Model": "v1-5", "Lora hashes": "ink: 0123456789ab, two: 1", "Version": "v1.10.1",
    }
    assert found.not_understood == {"Denoising strength": "0.55", "ENSD": "31337", "Hires upscale": "2", "RNG": "GPU"}


def test_noise_of_the_cpu_is_that_of_torch() -> None:
    found = read("a\nSteps: 20, Seed: 1, RNG: CPU, Schedule type: Automatic")
    assert (found.request.noise, found.request.spacing, found.not_understood) == ("torch", None, {})
    assert read("a\nSteps: 20, Seed: 1, RNG: NV").not_understood == {"RNG": "NV"}


def test_values_that_make_no_sense_are_listed() -> None:
    found = read("a\nSteps: many, Seed: -1, Size: huge, CFG scale: nan, Clip skip: 99, Guidance interval: 1, RNG: CPU")
    assert found.request == Request("a", noise="torch")
    assert found.not_understood == {
        "Steps": "many", "Seed": "-1", "Size": "huge", "CFG scale": "nan", "Clip skip": "99", "Guidance interval": "1",
    }


def test_fewer_than_three_pairs_are_part_of_the_prompt() -> None:
    assert read("a fox\nSteps: 20, Seed: 1").request == Request("a fox\nSteps: 20, Seed: 1")


def test_an_unknown_fact_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="'Steps' is not one of"):
        write(Request(), {"Steps": "3"})


@given(st.text(max_size=200) | st.lists(st.sampled_from([*"a:,\" \n\\", "Size: ", "1x1", "Seed: "])).map("".join))
def test_no_text_is_an_error(text: str) -> None:
    found = read(text)
    assert replace(found.request) == found.request


@pytest.mark.parametrize("piece", ["a", "a: ", '"', 'a: "', ",", "a ", 'ab: "\\', "\n"])
def test_time_is_linear(piece: str) -> None:
    start = time.process_time()
    read(piece * (100_000 // len(piece)))
    assert time.process_time() - start < 1.0
