"""The kernels for GPUs beside what PyTorch does; `make test-cuda`."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.nn import gpu
from sfumato.nn.float8 import E4M3, MOST, Float8Linear, coarse_rows
from sfumato.nn.layers import GEGLU, Conv2d, GroupNorm, LayerNorm, Linear, doubled_convolution
from sfumato.nn.layers import normalised_convolution as with_norm

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]

SHAPES = [(2, 320, 64, 64), (1, 128, 300, 211), (3, 96, 5, 3), (16, 1920, 8, 8), (1, 64, 1, 1)]
DTYPES = {torch.float32: 2e-5, torch.bfloat16: 6e-3, torch.float16: 1e-3}


def picture(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, device="cuda", generator=torch.Generator("cuda").manual_seed(sum(shape)))
    return (3 * x + 5).to(dtype).contiguous(memory_format=torch.channels_last)


def test_this_device_has_them() -> None:
    assert gpu.why_not(torch.device("cuda", 0)) == ""


def far(y: Tensor, truth: Tensor) -> float:
    return float((y.double() - truth.double()).norm() / truth.double().norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_group_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer = GroupNorm(32, shape[1], 1e-6).cuda()
    layer.weight.normal_(), layer.bias.normal_()
    x = picture(*shape, dtype=dtype)
    exact = F.group_norm(x.double(), 32, layer.weight.double(), layer.bias.double(), 1e-6)
    layer.to(dtype)
    assert gpu.fuses(x)
    for silu, truth in ((False, exact), (True, F.silu(exact))):
        y = layer(x, silu=silu)
        assert gpu.is_picture(y)
        assert y.dtype == dtype
        assert far(y, truth) < 2 * DTYPES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_convolution_and_what_is_added(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.randn(2, 200, device="cuda", dtype=dtype)
    for inputs, outputs, kernel, stride in ((8, 70, 3, 1), (32, 64, 1, 1), (32, 96, 3, 2)):
        layer = Conv2d(inputs, outputs, kernel, stride, kernel // 2).cuda().to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = picture(2, inputs, 9, 7, dtype=dtype)
        with monkeypatch.context() as plain:
            plain.setattr(gpu, "why_not", lambda device: "not now")
            bare = layer(x)
        residual = torch.randn_like(bare)
        for shift in (None, table[:1, :outputs], table[:, 20 : 20 + outputs]):
            for more in (None, residual):
                y = layer(x, shift, more)
                truth = bare.double() + (0 if shift is None else shift.double()[:, :, None, None])
                assert far(y, truth if more is None else truth + more.double()) < DTYPES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_convolution_of_a_doubled_picture(dtype: torch.dtype) -> None:
    for inputs, outputs, height, width in ((12, 70, 5, 7), (320, 640, 16, 16), (64, 128, 200, 120)):
        layer = Conv2d(inputs, outputs, 3, padding=1).cuda().to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = picture(2, inputs, height, width, dtype=dtype)
        assert gpu.fuses(x)
        truth = layer.double()(F.interpolate(x.double(), scale_factor=2.0))
        y = doubled_convolution(layer.to(dtype), x)
        assert gpu.is_picture(y)
        assert far(y, truth) < 2 * max(DTYPES[dtype], 5e-4)  # float32 products by TF32


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_convolution_and_norm(dtype: torch.dtype) -> None:
    conv, norm = Conv2d(64, 96, 3, padding=1).cuda(), GroupNorm(32, 96).cuda()
    for parameter in (norm.weight, norm.bias, conv.bias):
        assert parameter is not None
        parameter.normal_()
    x, table = picture(2, 64, 33, 20, dtype=dtype), torch.randn(2, 300, device="cuda", dtype=dtype)
    for shift in (None, table[:1, :96], table[:, 50:146]):
        y = conv.double()(x.double(), None if shift is None else shift.double())
        truth = F.silu(norm.double()(y))
        fast = with_norm(conv.to(dtype, memory_format=torch.channels_last), norm.to(dtype), x, shift)  # type: ignore[call-overload]
        assert far(fast, truth) < 2 * max(DTYPES[dtype], 5e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_gated_gelu(dtype: torch.dtype) -> None:
    layer = GEGLU(16, 1500).cuda().to(dtype)
    x = torch.randn(5, 14_000, 16, device="cuda", dtype=dtype)
    value, gate = layer.proj(x).double().chunk(2, -1)
    assert far(layer(x), value * F.gelu(gate)) < DTYPES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [36, 320, 1280])
@torch.inference_mode()
def test_layer_norm(width: int, dtype: torch.dtype) -> None:
    layer, x = LayerNorm(width).cuda(), (torch.randn(3, 5001, width, device="cuda") + 4).to(dtype)
    layer.weight.normal_(), layer.bias.normal_()
    truth = F.layer_norm(x.double(), (width,), layer.weight.double(), layer.bias.double())
    assert far(layer.to(dtype)(x), truth) < 2 * DTYPES[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [48, 320, 5120])
@torch.inference_mode()
def test_products_in_eight_bits(width: int, dtype: torch.dtype) -> None:
    x = (5 * torch.randn(2, 301, width, device="cuda")).to(dtype)
    rows = x.flatten(0, 1)
    (y, scale), (truth, expected) = gpu.coarse_rows(rows, E4M3, MOST), coarse_rows(rows)
    torch.testing.assert_close(scale, expected)
    assert far(y.float() * scale, truth.float() * expected) < 1e-3  # a few lie between two numbers
    layer = Linear(width, 64).cuda().to(dtype)
    residual = torch.randn(2, 301, 64, device="cuda").to(dtype)
    for more in (None, residual):
        assert far(Float8Linear(layer)(x, more), layer(x, more)) < 0.05


def test_whoever_wants_gradients_gets_them() -> None:
    layer, x = GroupNorm(4, 8).cuda(), picture(1, 8, 4, 4).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
