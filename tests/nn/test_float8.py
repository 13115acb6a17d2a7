"""Products of floating-point numbers of 8 bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.engine.pack import pack
from sfumato.models.dit import DiT, DiTConfig
from sfumato.models.unet import UNet
from sfumato.nn import float8
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.float8 import Float8Linear, coarse_rows
from sfumato.nn.layers import Linear
from tests.nn.test_native import TINY, relative
from tests.parity import tiny


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_rows_are_within_half_a_step_of_three_bits() -> None:
    x = torch.randn(50, 64) * torch.logspace(-20, 20, 50)[:, None]
    x[3] = 0
    coarse, scale = coarse_rows(x)
    found = coarse.float() * scale
    largest = x.abs().amax(-1, keepdim=True)
    assert ((found - x).abs() <= torch.maximum(x.abs() / 16, largest / float8.MOST / 512) * 1.001).all()
    torch.testing.assert_close(found.abs().amax(-1), largest[:, 0])  # all of the range is used
    assert (found[3] == 0).all()


@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from([(1, 1), (3, 5), (2, 77)]), dims=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    bias=st.booleans(), residual=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)  # fmt: skip
def test_a_layer_is_the_product_of_its_coarse_numbers(
    shape: tuple[int, int], dims: tuple[int, int], bias: bool, residual: bool, dtype: torch.dtype
) -> None:
    dim, out = (16 * d for d in dims)
    layer = Linear(dim, out, bias=bias).to(dtype).requires_grad_(False)
    x = torch.randn(*shape, dim).to(dtype)
    after = torch.randn(*shape, out).to(dtype) if residual else None
    (rows, scale), (columns, other) = coarse_rows(x), coarse_rows(layer.weight)
    truth = (rows.double() * scale) @ (columns.double() * other).T
    truth = truth + (0.0 if layer.bias is None else layer.bias.double()) + (0.0 if after is None else after.double())
    y = Float8Linear(layer)(x, after)
    assert y.dtype == dtype
    assert relative(y, truth) < 6e-3  # of bfloat16
    assert relative(y, layer(x, after).double()) < 0.08


def networks() -> dict[str, tuple[nn.Module, Conditioning, Tensor]]:
    dit = DiTConfig(num_attention_heads=4, attention_head_dim=8, num_layers=2, sample_size=8)
    return {
        "unet": (UNet(TINY), Conditioning(context=torch.randn(4, 5, 24)), torch.randn(2, 4, 8, 8)),
        "dit": (DiT(dit), Conditioning(labels=torch.tensor([1, 2])), torch.randn(2, 4, 8, 8)),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_a_network_is_near_and_smaller(kind: str, dtype: torch.dtype) -> None:
    network, told, x = networks()[kind]
    tiny.randomise(network, 0)  # a DiT begins with zeros
    network, told, x = network.to(dtype).eval(), told.to(torch.device("cpu"), dtype), x.to(dtype)
    with torch.inference_mode():
        plain = network(x, 7, told)
        done = pack(network, eight="fp8")
        found = network(x, 7, told)
    assert done.eight >= 8
    assert done.eight == sum(isinstance(layer, Float8Linear) for layer in network.modules())
    assert 0 < relative(found, plain.double()) < 0.06


def test_a_chip_without_them_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no instructions" in float8.why_not(torch.device("cpu"))
    for capability, fits in {(8, 6): False, (8, 9): True, (9, 0): True, (12, 0): True}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert (float8.why_not(torch.device("cuda")) == "") == fits
