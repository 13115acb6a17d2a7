"""A denoiser left to PyTorch's compiler: the same picture, kept on disk, and written down."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sfumato
from sfumato.core.errors import ConfigError
from sfumato.engine.compiled import KEPT_IN, compile_denoiser
from sfumato.families.load import open_model
from sfumato.models.unet import UNet
from sfumato.nn.attention import tapped
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.merging import Merging, merging
from sfumato.nn.transformer import Attention
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


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """Compiling is no more than finding the graph, which has to be one; a number is added for each that is found."""
    found: list[int] = []
    compiled = nn.Module.compile

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        found.append(len([*graph.graph.nodes]))
        assert not any("arange" in str(node.target) for node in graph.graph.nodes)  # positions are given
        return graph.forward

    monkeypatch.setattr(
        nn.Module, "compile", lambda network, **_: compiled(network, backend=backend, fullgraph=True, dynamic=False)
    )
    monkeypatch.setenv(KEPT_IN, str(tmp_path / "kept"))
    torch.compiler.reset()
    return found


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_network_is_one_graph_and_is_heard_all_the_same(
    kind: str, traced: list[int], tmp_path: Path
) -> None:
    if kind == "dit":
        tiny.save_dit(tiny.dit(num_layers=2), tmp_path)
        told = Conditioning(labels=torch.tensor([1, 2]))
    else:
        tiny.pipeline("sd1", tmp_path).save_pretrained(tmp_path)
        told = Conditioning(context=torch.randn(2, 7, 768))
    model = open_model(tmp_path, device="cpu")
    network: Any = model.network
    x, heard = torch.randn(1, 4, 8, 8), set[str]()
    with torch.inference_mode():
        times = network.prepare_times(torch.tensor([5.0]), told)[0]
        told = network.prepare(told) if isinstance(network, UNet) else told
        truth = network(x, times, told)
        compile_denoiser(model, "default")
        torch.testing.assert_close(network(x, times, told), truth)
        assert len(traced) == 1
        with tapped(lambda q, k, name: heard.add(name)):
            torch.testing.assert_close(network(x, times, told), truth)
        assert len(heard) == sum(isinstance(module, Attention) for module in network.modules())
        if kind == "unet":
            with merging(Merging(0.5, (8, 8))):
                assert not torch.equal(network(x, times, told), truth)
        torch.testing.assert_close(network(x, times, told), truth)
    assert len(traced) == 1


@pytest.mark.parametrize("more", [{"quantize": "int8"}, {"max_memory": "1GB"}, {"optimize": False}])
def test_other_ways_to_hold_a_denoiser_exclude_it(more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="use one or the other"):
        sfumato.load("anything", compile="default", **more)
    wrong: Any = "fastest"
    with pytest.raises(ConfigError, match="fastest"):
        sfumato.load("anything", compile=wrong)
