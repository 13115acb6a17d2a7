"""The kernels for GPUs, by Triton's interpreter, where Triton is there. `make test-cuda` runs them on a GPU."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which nothing does before

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("triton")

from sfumato.nn import gpu
from sfumato.nn.float8 import MOST, coarse_rows
from sfumato.nn.layers import Conv2d, GroupNorm, doubled_convolution, normalised_convolution


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())


def far(y: Tensor, truth: Tensor) -> float:
    return float((y.double() - truth.double()).norm() / truth.double().norm())


def randomise(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.normal_(parameter)


def test_a_device_that_cannot_have_them_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.why_not.cache_clear()
    assert gpu.why_not(torch.device("cpu"))
    capability = (7, 5)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert "7.5" in gpu.why_not(torch.device("cuda", 0))
    capability = (9, 0)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
    for i, (problem, said) in enumerate((
        (None, ""), (ImportError("no module"), "no Triton"),
        (RuntimeError("\nFailed to find a C compiler.\n"), "Failed to find a C compiler."),
    )):  # fmt: skip

        def add(*_: object, problem: Exception | None = problem) -> None:
            if problem is not None:
                raise problem

        monkeypatch.setattr(gpu, "_add", add)
        found = gpu.why_not(torch.device("cuda", 1 + i))
        assert found.endswith(said)
        assert bool(found) == bool(problem)
    gpu.why_not.cache_clear()


@pytest.mark.parametrize("programs", [1024, 4])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-5), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("shape", [(2, 20, 9, 7), (1, 96, 5, 3), (2, 320, 8, 8), (1, 132, 2, 1)])
@torch.inference_mode()
def test_group_norm(
    shape: tuple[int, ...], dtype: torch.dtype, limit: float, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "PROGRAMS", programs)
    monkeypatch.setattr(gpu, "CHUNKS", 2)
    layer = nn.GroupNorm(4, shape[1], 1e-5)
    randomise(layer)
    x = (3 * torch.randn(shape) + 20).to(dtype).contiguous(memory_format=torch.channels_last)
    for silu in (True, False):
        y, truth = gpu.group_norm(layer, x, silu), layer(x.float())
        assert gpu.is_picture(y)
        assert y.dtype == dtype
        assert far(y, F.silu(truth) if silu else truth) < limit


@pytest.mark.parametrize("shifted", ["none", "one row", "each row"])
@pytest.mark.parametrize("added", [False, True])
@torch.inference_mode()
def test_convolution_and_what_is_added(added: bool, shifted: str) -> None:
    layer, x = nn.Conv2d(8, 70, 3, padding=1), torch.randn(2, 8, 9, 7).contiguous(memory_format=torch.channels_last)
    truth = layer(x)
    shift = {"none": None, "one row": torch.randn(1, 70), "each row": torch.randn(2, 200)[:, 50:120]}[shifted]
    residual = torch.randn_like(truth) if added else None
    y = gpu.convolution(layer, x, shift, residual)
    truth = truth if shift is None else truth + shift[:, :, None, None]
    assert far(y, truth if residual is None else truth + residual) < 1e-6


@pytest.mark.parametrize("shifted", ["one row", "each row"])
@torch.inference_mode()
def test_what_a_norm_takes_away_is_added_to_means_alone(shifted: str) -> None:
    layer, x = nn.GroupNorm(4, 20), torch.randn(2, 20, 9, 7).contiguous(memory_format=torch.channels_last)
    randomise(layer)
    bias, shift = 3 * torch.randn(20), torch.randn(2, 90)[: 1 if shifted == "one row" else 2, 50:70]
    truth = layer(x + (bias + shift)[:, :, None, None])
    assert far(gpu.group_norm(layer, x, False, bias, shift), truth) < 1e-6
    assert far(gpu.group_norm(layer, x, True, bias), F.silu(layer(x + bias[:, None, None]))) < 1e-6


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_convolution_of_a_doubled_picture(
    bias: bool, memory: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LINE", 8)
    layer = nn.Conv2d(12, 70, 3, padding=1, bias=bias).to(memory_format=memory)  # type: ignore[call-overload]
    for shape in ((2, 12, 5, 7), (1, 12, 1, 1)):
        x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        y = gpu.doubled_convolution(layer, x)
        assert gpu.is_picture(y)
        assert far(y, layer(F.interpolate(x, scale_factor=2.0))) < 1e-6


@torch.inference_mode()
def test_layers_that_are_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where somebody listens to one: what he hears is what it gives."""
    conv, norm = Conv2d(12, 16, 3, padding=1), GroupNorm(4, 16)
    randomise(norm)
    x, shift = torch.randn(2, 12, 5, 7).contiguous(memory_format=torch.channels_last), torch.randn(2, 16)
    ways: list[Callable[[], Tensor]] = [
        partial(normalised_convolution, conv, norm, x, shift), partial(doubled_convolution, conv, x),
    ]  # fmt: skip
    truths, heard = [way() for way in ways], []
    given = [conv(x, shift), truths[1]]
    monkeypatch.setattr(gpu, "fuses", lambda x: True)
    for way, truth, output in zip(ways, truths, given, strict=True):
        assert 0 < far(way(), truth) < 1e-6
        with conv.register_forward_hook(lambda *found: heard.append(found[-1])):
            assert far(way(), truth) < 1e-6
        assert far(heard.pop(), output) < 1e-6
        assert not heard


@pytest.mark.parametrize("inner", [36, 1280])
@torch.inference_mode()
def test_rows(inner: int) -> None:
    both = torch.randn(3, 5, 2 * inner)
    value, gate = both.chunk(2, -1)
    assert far(gpu.gated_gelu(both), value * F.gelu(gate)) < 1e-6
    layer = nn.LayerNorm(inner)
    randomise(layer)
    assert far(gpu.layer_norm(layer, value + 9), layer(value + 9)) < 1e-6


@pytest.mark.parametrize("width", [36, 320])
@torch.inference_mode()
def test_eight_bits(width: int) -> None:
    x = 5 * torch.randn(7, width)
    x[2] = 0
    y, scale = gpu.coarse_rows(x, torch.float16, MOST)  # the interpreter rounds wrongly to 8 bits
    torch.testing.assert_close(scale, coarse_rows(x)[1])
    assert y.abs().max() == MOST
    assert far(y.float() * scale, x) < 1e-3
    residual, bias = torch.randn(7, width), torch.randn(width)
    truth = x + bias + residual
    gpu.add_to_rows(x, bias, residual)
    torch.testing.assert_close(x, truth)
