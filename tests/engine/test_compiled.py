"""A denoiser left to PyTorch's compiler: the same picture, kept on disk, and written down."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sfumato
from sfumato.core.errors import ConfigError
from sfumato.engine.compiled import KEPT_IN
from tests.parity import tiny

ASKED: dict[str, Any] = {"steps": 3, "width": 64, "height": 64, "seed": 3}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_compiled_denoiser_draws_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save_dit(tiny.dit(num_layers=1), tmp_path / "model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(KEPT_IN, "elsewhere")  # so that what is set in its place is undone
    monkeypatch.delenv(KEPT_IN)
    [plain] = sfumato.load(str(tmp_path / "model"), device="cpu", optimize=False)("goldfish", **ASKED).pictures
    pipe = sfumato.load(str(tmp_path / "model"), device="cpu", compile="default")
    [made] = pipe("goldfish", **ASKED).pictures
    assert np.abs(made.pixels.astype(int) - plain.pixels.astype(int)).max() <= 1
    assert made.recipe["model"]["opened"]["compile"] == "default"
    assert any((tmp_path / "cache" / "sfumato" / "inductor").iterdir())


@pytest.mark.parametrize("more", [{"quantize": "int8"}, {"max_memory": "1GB"}, {"optimize": False}])
def test_other_ways_to_hold_a_denoiser_exclude_it(more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="use one or the other"):
        sfumato.load("anything", compile="default", **more)
    wrong: Any = "fastest"
    with pytest.raises(ConfigError, match="fastest"):
        sfumato.load("anything", compile=wrong)
