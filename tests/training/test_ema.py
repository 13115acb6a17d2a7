"""Averages of weights, against sums written out; and averages of other widths made afterwards."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sfumato.core.errors import CheckpointError, ConfigError
from sfumato.training.ema import Ema, EmaConfig
from sfumato.training.posthoc import Profile, coefficients, combine, exponent
from sfumato.training.rate import RateConfig


class Number(nn.Module):
    """A network of one number and one buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))
        self.count: Tensor
        self.register_buffer("count", torch.zeros(1, dtype=torch.long))


def course(ema_config: EmaConfig, values: NDArray[np.float64]) -> Ema:
    network = Number()
    ema = Ema(network, ema_config)
    for step, value in enumerate(values, 1):
        with torch.no_grad():
            network.value.fill_(float(value))
            network.count.fill_(step)
        ema.update(network, step)
    return ema


VALUES = np.random.default_rng(0).normal(size=400).cumsum() / 20


def test_constant_decay() -> None:
    expected = 0.0
    for value in VALUES:
        expected = 0.9 * expected + 0.1 * value
    ema = course(EmaConfig("constant", 0.9), VALUES)
    assert abs(float(ema.averages[0]["value"]) - expected) < 1e-5
    assert int(ema.averages[0]["count"]) == len(VALUES)


def test_warmup_forgets_the_start() -> None:
    ema = course(EmaConfig("warmup", 0.9999), VALUES)
    assert ema.decay(1) == 2 / 11
    assert ema.decay(10**6) == 0.9999
    constant = course(EmaConfig("constant", 0.9999), VALUES)
    assert abs(float(ema.averages[0]["value"])) > 5 * abs(float(constant.averages[0]["value"]))


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_a_power_profile_has_its_width(width: float) -> None:
    g = exponent(width)
    t = (np.arange(100_000) + 0.5) / 100_000
    p = (g + 1) * t**g
    mean = (p * t).mean()
    assert abs(np.sqrt((p * (t - mean) ** 2).mean()) - width) < 1e-3


def test_power_averages_follow_their_profile() -> None:
    ema = course(EmaConfig("power", widths=(0.1,)), VALUES)
    t, g = np.arange(1, len(VALUES) + 1), exponent(0.1)
    weights = t ** (g + 1.0) - (t - 1.0) ** (g + 1.0)  # the profile's mass between two steps
    assert abs(float(ema.averages[0]["value"]) - (weights * VALUES).sum() / weights.sum()) < 1e-3


def test_another_width_is_made_afterwards() -> None:
    network, config = Number(), EmaConfig("power", widths=(0.05, 0.10))
    ema = Ema(network, config)
    profiles, snapshots = [], []
    for step, value in enumerate(VALUES, 1):
        with torch.no_grad():
            network.value.fill_(float(value))
        ema.update(network, step)
        if step % 25 == 0:
            for width, average in zip(config.widths, ema.averages, strict=True):
                profiles.append(Profile(step, exponent(width)))
                snapshots.append({k: v.clone() for k, v in average.items()})
    for width in (0.07, 0.15):
        wanted = course(EmaConfig("power", widths=(width,)), VALUES)
        shares = coefficients(profiles, Profile(len(VALUES), exponent(width)))
        assert abs(shares.sum() - 1) < 0.02
        made = combine(snapshots, shares)
        nearest = min(abs(float(a["value"]) - float(wanted.averages[0]["value"])) for a in ema.averages)
        apart = abs(float(made["value"]) - float(wanted.averages[0]["value"]))
        assert apart < 0.02
        assert apart < 0.3 * nearest


def test_applied_is_undone() -> None:
    network = Number()
    ema = Ema(network, EmaConfig("constant", 0.5))
    with torch.no_grad():
        network.value.fill_(2.0)
    ema.update(network, 1)
    with ema.applied(network):
        assert network.value.item() == 1.0
    assert network.value.item() == 2.0


def test_averages_are_saved_and_restored() -> None:
    ema = course(EmaConfig("power"), VALUES)
    other = Ema(Number(), EmaConfig("power"))
    other.restore(ema.tensors())
    assert all(t.equal(other.tensors()[name]) for name, t in ema.tensors().items())
    with pytest.raises(CheckpointError, match="another recipe"):
        Ema(Number(), EmaConfig("constant")).restore(ema.tensors())


def test_no_average_draws_with_the_weights_themselves() -> None:
    network = Number()
    ema = Ema(network, EmaConfig("none"))
    ema.update(network, 1)
    assert ema.tensors() == {}
    with ema.applied(network):
        assert ema.weights(network)["value"].equal(network.value)


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="widths"):
        EmaConfig(widths=(0.5,))
    with pytest.raises(ConfigError, match="decay"):
        EmaConfig(decay=1.0)


def test_rates() -> None:
    cosine = RateConfig(1.0, "cosine", warmup=10, floor=0.1)
    assert [cosine.at(s, 110) for s in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert cosine.at(10, 110) == 1.0
    assert abs(cosine.at(60, 110) - 0.55) < 1e-12
    assert abs(cosine.at(110, 110) - 0.1) < 1e-12
    assert RateConfig(2.0, "linear").at(50, 100) == 1.0
    assert RateConfig(2.0, "constant").at(99, 100) == 2.0
    with pytest.raises(ConfigError, match="learning_rate"):
        RateConfig(0.0)
