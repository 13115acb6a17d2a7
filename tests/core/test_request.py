"""The request: what it accepts, what it refuses, and that it survives being written down."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.core.config import fields, from_dict, to_dict
from sfumato.core.errors import ConfigError, RequestError
from sfumato.core.request import MAX_PROMPT, Request

REFUSED: list[dict[str, Any]] = [
    {"width": 0}, {"height": -8}, {"steps": 0}, {"count": 0}, {"count": 1001}, {"seed": -1}, {"seed": 2**64},
    {"cfg_scale": -0.1}, {"cfg_scale": float("nan")}, {"guidance_rescale": 1.5}, {"guidance_interval": (2.0, 1.0)},
    {"dynamic_threshold": 0.0}, {"eta": -1.0}, {"eta": float("nan")}, {"clip_skip": 0}, {"refiner_start": 1.0},
    {"sigmas": (1.0,)}, {"sigmas": (1.0, 2.0)}, {"sigmas": (1.0, -1.0)}, {"sigmas": (float("nan"), 0.0)},
    {"sigmas": (float("inf"), 0.0)}, {"prompt": "x" * (MAX_PROMPT + 1)}, {"negative_prompt": "x" * (MAX_PROMPT + 1)},
]  # fmt: skip


@pytest.mark.parametrize("values", REFUSED, ids=lambda v: f"{next(iter(v))}={str(next(iter(v.values())))[:12]}")
def test_values_out_of_range_are_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match=next(iter(values))):
        Request(**values)


def test_a_long_prompt_is_refused_in_one_short_paragraph() -> None:
    with pytest.raises(RequestError) as refusal:
        Request(prompt="x" * 100_000)
    assert "100,000 characters" in str(refusal.value)
    assert len(str(refusal.value)) < 200


requests = st.builds(
    Request,
    prompt=st.text(max_size=50), negative_prompt=st.text(max_size=50), seed=st.none() | st.integers(0, 2**64 - 1),
    width=st.none() | st.integers(1, 4096), steps=st.none() | st.integers(1, 1000),
    cfg_scale=st.none() | st.floats(0, 1000), sampler=st.none() | st.text(max_size=10),
    sigmas=st.none() | st.lists(st.floats(0, 1e6), min_size=2, max_size=8, unique=True).map(
        lambda values: tuple(sorted(values, reverse=True))
    ),
    guidance_interval=st.none() | st.tuples(st.floats(0, 1), st.floats(1.5, 80)),
    prompt_weighting=st.sampled_from(["a1111", "comfy", "compel"]),
)  # fmt: skip


@given(requests)
def test_a_request_written_as_json_is_read_back_equal(request: Request) -> None:
    assert from_dict(Request, json.loads(json.dumps(to_dict(request)))) == request


def test_unknown_fields_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cfg_scale'"):
        from_dict(Request, {"cfgscale": 7.5})


def test_every_field_is_documented() -> None:
    assert not [f.name for f in fields(Request) if not f.doc]
