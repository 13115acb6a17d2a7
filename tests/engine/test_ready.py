"""A model made ready where nothing is packed: self-attention's three projections become one product."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sfumato.core.request import Request
from sfumato.engine.rates import NOMINAL
from sfumato.engine.ready import make_ready, unpack
from sfumato.engine.residence import USUAL, asleep, wake
from sfumato.engine.trace import size
from sfumato.families.load import open_model
from sfumato.nn.conditioning import Conditioning
from sfumato.tasks.forecast import Forecaster
from tests.parity import tiny

CONTEXT = 768
"""Channels of its text's states."""
RATES = replace(NOMINAL, latency=1e-4)
"""By which every operation counts."""
REQUEST = Request("a red apple", width=64, height=64, steps=2, sampler="euler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sd1")
    tiny.pipeline("sd1", place).save_pretrained(place / "model")
    return place / "model"


def test_in_half_precision_queries_keys_and_values_are_one_product(folder: Path) -> None:
    model = open_model(folder, device="cpu", dtype="bfloat16")
    told = Conditioning(context=torch.randn(2, 77, CONTEXT, dtype=model.dtype))
    x = torch.randn(1, 4, 8, 8, dtype=model.dtype)
    plain, before, weights = model.network, size(model.network), model.network.state_dict()
    calls = Forecaster(model, REQUEST, RATES).forecast(USUAL)
    with torch.inference_mode():
        truth = plain(x, 7, told)
        make_ready(model)
        found = model.network(x, 7, told)
    assert model.packed == {"unet"}
    assert float((found - truth).float().norm() / truth.float().norm()) < 0.01
    assert size(model.network) == before
    saved = model.network.state_dict()
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], weight) for name, weight in weights.items())
    now = Forecaster(model, REQUEST, RATES).forecast(USUAL)
    assert now.seconds < calls.seconds
    assert [phase.flops for phase in now.phases] == [phase.flops for phase in calls.phases]
    assert now.peak == pytest.approx(calls.peak, rel=0.01)
    unpack(model)
    assert asleep(model.network)
    wake(model, "unet")
    assert model.network.state_dict().keys() == weights.keys()
    assert not any("to_qkv" in name for name, _ in model.network.named_modules())
