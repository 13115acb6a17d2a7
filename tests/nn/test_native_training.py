"""What training takes of the native kernels, forward and gradients, against the plain layers in float64."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.engine.pack import FAST, pack
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.dit import DiT, DiTConfig
from sfumato.models.unet import UNet, UNetConfig
from sfumato.nn import native
from sfumato.nn.attention import attend
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.layers import GEGLU, Conv2d, ModulatedNorm, TanhGELU, gated_sum
from sfumato.nn.native import build, training

needs_native = pytest.mark.skipif(not native.available(), reason=native.why())
UNET = UNetConfig(
    block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, attention_head_dim=4,
    cross_attention_dim=24, norm_num_groups=8,
)
DIT = DiTConfig(
    sample_size=16, num_layers=2, num_attention_heads=2, attention_head_dim=16, num_embeds_ada_norm=3, out_channels=4
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def agree(function: Callable[..., Tensor], inputs: list[Tensor], limit: float, truth: Callable[..., Tensor]) -> None:
    """Values and gradients of a function are those of the truth in float64, relative to the lengths of both ends."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    y, expected = function(*(x.requires_grad_() for x in inputs)), truth(*exact)
    gradient = torch.randn_like(y)
    found = [y, *torch.autograd.grad(y, inputs, gradient)]
    wanted = [expected, *torch.autograd.grad(expected, exact, gradient.double())]
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert float((a.detach().double() - b.detach()).norm()) <= limit * float(b.detach().norm() + gradient.norm())


@needs_native
@settings(max_examples=40)
@given(
    batch=st.integers(1, 2), heads=st.integers(1, 3), queries=st.integers(1, 300), keys=st.integers(1, 210),
    dim=st.sampled_from([1, 5, 8, 16, 17, 40, 64, 200]), spread=st.sampled_from([0.1, 1.0, 30.0]),
    scale=st.sampled_from([None, 0.3]),
)
def test_attention(
    batch: int, heads: int, queries: int, keys: int, dim: int, spread: float, scale: float | None
) -> None:
    def tokens(count: int) -> Tensor:
        """As a linear layer leaves them: the heads side by side."""
        return torch.randn(batch, count, heads * dim)

    def split(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], heads, dim).transpose(1, 2)

    def truth(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        logits = split(q) @ split(k).transpose(-1, -2) * (dim**-0.5 if scale is None else scale)
        return logits.softmax(-1) @ split(v)

    q, k, v = spread * tokens(queries), tokens(keys), tokens(keys)
    assert training.learns(q.requires_grad_())
    # Logits of up to hundreds are known to 1e-5 in float32, and so are their exponentials.
    agree(lambda q, k, v: attend(split(q), split(k), split(v), scale=scale), [q, k, v], 5e-6 * max(1, spread), truth)


@needs_native
def test_attention_whose_channels_do_not_lie_side_by_side() -> None:
    inputs = [torch.randn(2, 3, 8, 20) for _ in range(3)]
    agree(
        lambda *x: attend(*(t.transpose(-1, -2) for t in x)), inputs, 2e-6,
        lambda *x: F.scaled_dot_product_attention(*(t.transpose(-1, -2) for t in x)),
    )


@needs_native
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_attention_does_not_hide_what_is_no_number(broken: float) -> None:
    q, k, v = (torch.randn(1, 2, 200, 8) for _ in range(3))
    q[0, 1, 7, 3] = broken
    y, truth = attend(q, k, v, native=True), F.scaled_dot_product_attention(q, k, v)
    assert truth[0, 1, 7].isnan().all()
    assert torch.equal(y.isnan(), truth.isnan())


@needs_native
@pytest.mark.parametrize("place", [0, 5, 150])
def test_a_key_that_is_no_number_is_in_all_that_ask(place: int) -> None:
    q, k, v = (torch.randn(1, 1, 200, 8) for _ in range(3))
    k[0, 0, place, 3] = float("nan")
    assert attend(q, k, v, native=True).isnan().all()


@needs_native
@pytest.mark.parametrize("slope", [-3.0, 3.0])
def test_attention_whose_scores_rise_and_fall_by_hundreds(slope: float) -> None:
    q, v = torch.rand(1, 1, 70, 8) + 0.5, torch.randn(1, 1, 400, 8)
    k = slope * torch.arange(400.0)[None, None, :, None] + torch.randn(1, 1, 400, 8)
    truth = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert (attend(q, k, v, native=True) - truth).norm() < 1e-4 * truth.norm()


@needs_native
def test_no_pictures_give_none() -> None:
    none = torch.empty(0, 2, 5, 8)
    assert attend(none, none, none, native=True).shape == none.shape
    layer = nn.Sequential(Conv2d(32, 32, 3, padding=1))
    pack(layer, FAST)
    with torch.inference_mode():
        assert layer(torch.empty(0, 32, 8, 8)).shape == (0, 32, 8, 8)


@needs_native
@settings(max_examples=40)
@given(
    batch=st.integers(1, 3), height=st.integers(3, 21), width=st.integers(3, 21),
    channels=st.sampled_from([16, 32, 48]), out=st.sampled_from([16, 48, 64]), bias=st.booleans(),
    channels_last=st.booleans(), added=st.booleans(),
)
def test_convolution(
    batch: int, height: int, width: int, channels: int, out: int, bias: bool, channels_last: bool, added: bool
) -> None:
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(batch, channels, height, width).contiguous(memory_format=order)
    residual, shift = torch.randn(batch, out, height, width), torch.randn(batch, out)
    layer = Conv2d(channels, out, 3, padding=1, bias=bias).to(memory_format=order)  # type: ignore[call-overload]
    plain = copy.deepcopy(layer).double()
    more, exact = ((shift, residual), (shift.double(), residual.double())) if added else ((), ())

    def own(x: Tensor, *parameters: Tensor) -> Tensor:
        """The layer as a function of its parameters too."""
        named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        found: Tensor = torch.func.functional_call(layer, named, (x, *more))
        return found

    def truth(x: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        found: Tensor = torch.func.functional_call(plain, named, (x, *exact))
        return found

    agree(own, [x, *(p.detach() for p in layer.parameters())], 1e-5, truth)


def test_which_convolutions_take_the_native_way() -> None:
    x = torch.randn(2, 32, 16, 16, requires_grad=True)
    own = Conv2d(32, 32, 3, padding=1)
    assert training.convolves(own, x) == native.available()
    assert training.convolves(own, x.detach()) == native.available()  # for its weights' gradient
    with torch.no_grad():
        assert not training.convolves(own, x)
    others = [
        Conv2d(32, 30, 3, padding=1), Conv2d(32, 32, 3), Conv2d(32, 32, 3, 2, 1), Conv2d(32, 32, 1),
        Conv2d(32, 32, 3, padding="same"), Conv2d(32, 32, 3, padding=1, groups=2), own.to(torch.bfloat16),
        Conv2d(32, 32, 3, padding=1, padding_mode="reflect"), Conv2d(32, 32, 3, padding=2, dilation=2),
    ]  # fmt: skip
    assert not any(training.convolves(layer, x) for layer in others)
    own.float()
    assert not training.convolves(own, x[:, :, :4, :4])  # few tiles
    assert not training.convolves(own, x[:, :, ::5].repeat(9, 1, 1, 1)[..., :5])  # tiles that hang over


@needs_native
@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_a_convolution_of_which_something_is_frozen(frozen: str) -> None:
    x, layer = torch.randn(2, 16, 16, 16), Conv2d(16, 16, 3, padding=1)
    x.requires_grad_(frozen != "x")
    layer.get_parameter("weight").requires_grad_(frozen != "weight")
    layer.get_parameter("bias").requires_grad_(frozen != "bias")
    assert training.convolves(layer, x)
    wanted = [t for t in (x, *layer.parameters()) if t.requires_grad]
    plain = F.conv2d(x, layer.weight, layer.bias, padding=1)
    gradient = torch.randn_like(plain)
    pairs = (torch.autograd.grad(y, wanted, gradient) for y in (layer(x), plain))
    for a, b in zip(*pairs, strict=True):
        assert torch.allclose(a, b, atol=1e-3, rtol=1e-4)


@needs_native
def test_gradients_do_not_hang_on_the_number_of_threads() -> None:
    x, layer, threads = torch.randn(3, 32, 64, 64), Conv2d(32, 32, 3, padding=1), torch.get_num_threads()
    q = torch.randn(2, 3, 130, 16, requires_grad=True)
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            total = layer(x.requires_grad_()).square().sum() + attend(q, q, q).square().sum()
            found.append(torch.autograd.grad(total, [x, layer.weight, q]))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@needs_native
@pytest.mark.parametrize("layer", [GEGLU(5, 23), TanhGELU(5, 23), GEGLU(5, 32)], ids=lambda layer: type(layer).__name__)
def test_gelu_over_its_whole_range(layer: nn.Module) -> None:
    x = torch.linspace(-12, 12, 5 * 301).view(7, 43, 5)
    agree(layer, [x], 1e-6, copy.deepcopy(layer).double())


@needs_native
@settings(max_examples=30)
@given(batch=st.integers(1, 3), count=st.integers(1, 150), dim=st.sampled_from([4, 16, 37, 64]), alone=st.booleans())
def test_what_modulates_tokens(batch: int, count: int, dim: int, alone: bool) -> None:
    def tokens() -> Tensor:
        return 3 * torch.randn(batch, count, dim) + 2

    def told() -> Tensor:
        return torch.randn(1 if alone else batch, 1, dim)

    layer = ModulatedNorm(dim, 1e-6)
    agree(layer, [tokens(), told(), told()], 5e-6, layer)
    agree(gated_sum, [tokens(), told(), tokens()], 1e-6, gated_sum)


def test_who_takes_the_native_way() -> None:
    x = torch.ones(2, requires_grad=True)
    assert training.learns(x) == native.available()
    assert training.learns(x, x.detach()) == native.available()
    assert not training.learns(x.detach())
    assert not training.learns(x.double())
    assert not training.learns(x.to("meta"))
    with torch.no_grad():
        assert not training.learns(x)


@pytest.mark.parametrize("layer", [GEGLU(16, 16), TanhGELU(16, 16), Conv2d(16, 16, 3, padding=1)], ids=str)
def test_what_is_compiled_is_one_graph_and_plain(layer: nn.Module) -> None:
    x = torch.randn(2, 16, 16, 16, requires_grad=True)
    graphs: list[str] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(str(graph.graph))
        return graph.forward

    y = torch.compile(layer, backend=keep, fullgraph=True)(x)
    assert len(graphs) == 1
    assert "sfumato" not in graphs[0]
    assert torch.allclose(y, layer(x), atol=1e-4)


def test_what_the_kernels_do_not_cover_is_plain() -> None:
    q = torch.randn(1, 2, 9, 8, requires_grad=True)
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    with torch.no_grad():
        truth = F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    assert torch.allclose(attend(q, q, q, mask), truth, atol=1e-6)
    assert torch.allclose(attend(q, q, q, causal=True), truth, atol=1e-6)
    twice = q.double()
    assert torch.equal(attend(twice, twice, twice), F.scaled_dot_product_attention(twice, twice, twice))


@needs_native
@pytest.mark.parametrize("kind", ["unet", "dit", "autoencoder"])
def test_training_is_the_same_without_the_kernels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network: nn.Module
    inputs: tuple[object, ...] = (torch.randn(2, 4, 16, 16), torch.tensor([7.0, 900.0]))
    if kind == "unet":
        network, inputs = UNet(UNET), (*inputs, Conditioning(context=torch.randn(2, 5, 24)))
    elif kind == "dit":
        network, inputs = DiT(DIT), (*inputs, Conditioning(labels=torch.tensor([0, 2])))
        for p in network.parameters():  # it begins as the identity
            nn.init.normal_(p, std=0.05)
    else:
        config = AutoencoderConfig(block_out_channels=(32, 64), norm_num_groups=8, layers_per_block=1)
        network, inputs = Autoencoder(config).decoder, inputs[:1]
    start = copy.deepcopy(network.state_dict())

    def losses() -> list[float]:
        network.load_state_dict(start)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        found = []
        for step in range(4):
            loss = (network(*inputs) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
            assert step == 0 or found[-1] != found[-2]
        return found

    fast = losses()
    monkeypatch.setattr(build, "_outcome", "turned off")
    assert not native.available()
    assert fast == pytest.approx(losses(), rel=1e-4)
