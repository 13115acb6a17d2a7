"""The native kernels against the plain layers, in float64 where the answer is to be exact."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.core.errors import CheckpointError, ConfigError, SfumatoError
from sfumato.engine.pack import FAST, SMALL, Eight, Packing, pack
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.unet import UNet, UNetConfig
from sfumato.nn import int8, native
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.layers import GEGLU, Conv2d, GroupNorm, Linear
from sfumato.nn.native import build
from sfumato.nn.native.layers import WinogradConv2d
from tests.conftest import ROOT

needs_native = pytest.mark.skipif(not native.available(), reason=native.why())
TINY = UNetConfig(
    block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, attention_head_dim=4,
    cross_attention_dim=24, norm_num_groups=8,
)


def relative(y: Tensor, truth: Tensor) -> float:
    return float((y.double() - truth).norm() / truth.norm())


def picture(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@needs_native
@settings(max_examples=40)
@given(
    batch=st.integers(1, 3), height=st.integers(1, 19), width=st.integers(1, 19),
    channels=st.sampled_from([16, 32, 48, 64]), out=st.sampled_from([3, 4, 8, 16, 24, 40, 64]), bias=st.booleans(),
    shift=st.sampled_from([0, 1, 2]), residual=st.booleans(),
)
def test_winograd_is_the_convolution(
    batch: int, height: int, width: int, channels: int, out: int, bias: bool, shift: int, residual: bool
) -> None:
    layer = Conv2d(channels, out, 3, padding=1, bias=bias).requires_grad_(False)
    x = picture(batch, channels, height, width)
    added = torch.randn(1 if shift == 1 else batch, out) if shift else None
    after = picture(batch, out, height, width) if residual else None
    packed = torch.ops.sfumato.pack_convolution(layer.weight)
    going = torch.ops.sfumato.winograd(x, packed, layer.bias, added, after, out)
    found = [stand_in(layer, FAST)(x, added, after), going, stand_in(layer)(x, added, after)]
    assert torch.equal(found[0], found[1])
    truth = layer.double()(x.double(), *(None if t is None else t.double() for t in (added, after)))
    for y in found:
        assert y.shape == truth.shape
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert relative(y, truth) < 1e-5


@needs_native
@settings(max_examples=40)
@given(
    batch=st.integers(1, 3), height=st.integers(3, 13), width=st.integers(3, 13),
    channels=st.sampled_from([32, 33, 48]), out=st.sampled_from([32, 35, 64]), kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 2), padding=st.integers(0, 1), shift=st.booleans(), residual=st.booleans(),
)
def test_the_convolution_in_8_bits_is_its_reference(
    batch: int, height: int, width: int, channels: int, out: int, kernel: int, stride: int, padding: int,
    shift: bool, residual: bool,
) -> None:
    layer = Conv2d(channels, out, kernel, stride=stride, padding=padding).requires_grad_(False)
    x = picture(batch, channels, height, width)
    exact = layer(x)
    added = torch.randn(batch, out) if shift else None
    after = picture(*exact.shape) if residual else None
    reference = int8.Int8Conv2d(layer)
    assert relative(reference(x), exact.double()) < 0.02
    truth = reference(x, added, after)
    y = in_eight(layer)(x, added, after)
    assert y.shape == truth.shape
    assert relative(y, truth.double()) < 1e-3  # a number halfway between two may go to either


@needs_native
@settings(max_examples=40)
@given(rows=st.integers(1, 220), dim=st.integers(32, 1600), out=st.integers(32, 70), bias=st.booleans())
def test_linear_and_geglu_in_8_bits_are_their_references(rows: int, dim: int, out: int, bias: bool) -> None:
    linear = Linear(dim, out, bias=bias).requires_grad_(False)
    gated = GEGLU(dim, 64, bias=bias).requires_grad_(False)
    x, residual = torch.randn(rows, dim), torch.randn(rows, out)
    truths = int8.Int8Linear(linear)(x, residual), int8.Int8GEGLU(gated.proj)(x)
    exact = linear(x, residual), gated(x)
    found = in_eight(linear)(x, residual), in_eight(gated)(x)
    for y, truth, plain in zip(found, truths, exact, strict=True):
        assert relative(y, truth.double()) < 1e-3
        assert relative(truth, plain.double()) < 0.03


def test_rows_in_8_bits_are_within_half_a_step_and_keep_zero() -> None:
    x = torch.randn(50, 64) * torch.logspace(-6, 6, 50)[:, None] + torch.linspace(-3, 3, 50)[:, None]
    x[:, 7] = 0
    x[3] = 0
    whole, scale = int8.coarse_rows(x)
    assert torch.equal(whole, whole.round())
    assert (whole.amax(1) - whole.amin(1) <= 255).all()
    assert ((whole * scale - x).abs() <= 1.01 * scale).all()  # half a step, and half of the zero point's
    assert (whole[:, 7] == 0).all()
    assert (whole[3] == 0).all()


@pytest.mark.parametrize("switch", ["1", "0"])
def test_a_unet_in_8_bits_is_near_and_smaller(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if switch == "0":
        monkeypatch.setattr(build, "_outcome", None)
        monkeypatch.setenv("SFUMATO_NATIVE", "0")
    network = UNet(TINY).eval()
    conditioning, x = Conditioning(context=torch.randn(4, 5, 24)), torch.randn(2, 4, 8, 8)
    with torch.inference_mode():
        plain = network(x, 7, conditioning)
        done = pack(network, eight="int8")
        found = network(x, 7, network.prepare(conditioning))
    assert done.eight > 20
    assert not done.winograd
    assert done.after < 0.6 * done.before
    assert 0 < relative(found, plain.double()) < 0.03
    kept = (network.conv_in, network.conv_out)  # the first and the last are exact
    assert not any(isinstance(layer, int8.Int8) or "Int8" in type(layer).__name__ for layer in kept)


@needs_native
@settings(max_examples=40)
@given(
    batch=st.integers(1, 3), height=st.integers(3, 13), width=st.integers(3, 13),
    channels=st.sampled_from([1, 3, 4, 16, 24]), out=st.sampled_from([1, 3, 8, 24, 40]), kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 2), padding=st.integers(0, 1), shift=st.booleans(), residual=st.booleans(),
)
def test_direct_convolution_is_the_convolution(
    batch: int, height: int, width: int, channels: int, out: int, kernel: int, stride: int, padding: int,
    shift: bool, residual: bool,
) -> None:
    layer = Conv2d(channels, out, kernel, stride=stride, padding=padding).requires_grad_(False)
    x = picture(batch, channels, height, width)
    shape = layer(x).shape
    added = torch.randn(batch, out) if shift else None
    after = picture(*shape) if residual else None
    y = stand_in(layer, SMALL)(x, added, after)
    truth = layer.double()(x.double(), *(None if t is None else t.double() for t in (added, after)))
    assert y.shape == truth.shape
    assert relative(y, truth) < 1e-6


@needs_native
@given(rows=st.integers(1, 220), dim=st.integers(1, 70), out=st.integers(1, 70), bias=st.booleans(), more=st.booleans())
def test_linear(rows: int, dim: int, out: int, bias: bool, more: bool) -> None:
    layer = Linear(dim, out, bias=bias).requires_grad_(False)
    x, residual = torch.randn(rows, dim), torch.randn(rows, out) if more else None
    y = stand_in(layer)(x, residual)
    assert relative(y, layer.double()(x.double(), None if residual is None else residual.double())) < 1e-6


@needs_native
def test_linear_deeper_than_one_pass_on_three_axes() -> None:
    layer = Linear(1100, 40).requires_grad_(False)
    x = torch.randn(2, 7, 1100)
    assert relative(stand_in(layer)(x), layer.double()(x.double())) < 1e-6


@needs_native
@pytest.mark.parametrize("bias", [True, False])
def test_geglu_over_the_whole_range_of_the_gate(bias: bool) -> None:
    layer = GEGLU(48, 64, bias=bias).requires_grad_(False)
    layer.proj.weight.mul_(8)
    x = torch.randn(3, 50, 48) * torch.logspace(-3, 1.5, 50)[:, None]
    assert relative(stand_in(layer)(x), layer.double()(x.double())) < 1e-6


@needs_native
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(("channels", "groups"), [(32, 8), (24, 3), (10, 5)])
def test_group_norm_far_from_zero(channels: int, groups: int, silu: bool) -> None:
    layer = GroupNorm(groups, channels).requires_grad_(False)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = 5 * picture(3, channels, 11, 9) + 20
    truth = F.group_norm(x.double(), groups, layer.weight.double(), layer.bias.double(), layer.eps)
    y = stand_in(layer)(x, silu)
    assert relative(y, F.silu(truth) if silu else truth) < 1e-5
    assert y.is_contiguous(memory_format=torch.channels_last)


@needs_native
def test_inputs_in_any_memory_order() -> None:
    layer = Conv2d(16, 16, 3, padding=1).requires_grad_(False)
    x = torch.randn(2, 16, 9, 5)  # channels first
    for growth in (SMALL, FAST):
        assert relative(stand_in(layer, growth)(x), layer(x).double()) < 1e-5


@needs_native
def test_the_result_does_not_hang_on_the_number_of_threads() -> None:
    layer = Conv2d(112, 32, 3, padding=1)
    x, threads = picture(2, 112, 30, 30), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found += [stand_in(layer, growth)(x) for growth in (SMALL, FAST)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], y) for y in found)


@needs_native
@pytest.mark.parametrize("growth", [SMALL, FAST])
def test_a_packed_unet_gives_the_same(growth: float) -> None:
    network = UNet(TINY).eval()
    conditioning = Conditioning(context=torch.randn(4, 5, 24))
    pictures = [torch.randn(2, 4, *size) for size in ((8, 8), (12, 20))]
    with torch.inference_mode():
        plain = [network(x, 7, conditioning) for x in pictures]
        done = pack(network, growth)
        found = [network(x, 7, network.prepare(conditioning)) for x in pictures]
    assert done.layers > 30
    assert not done.why
    assert (done.winograd > 0) == (growth == FAST)
    for y, truth in zip(found, plain, strict=True):
        assert relative(y, truth.double()) < 2e-5


@needs_native
@pytest.mark.parametrize("growth", [SMALL, FAST])
def test_a_packed_autoencoder_gives_the_same(growth: float) -> None:
    network = Autoencoder(AutoencoderConfig(block_out_channels=(32, 64), norm_num_groups=8, layers_per_block=1)).eval()
    z = torch.randn(2, 4, 7, 9)
    with torch.inference_mode():
        plain = network.decode(z)
        pack(network, growth)
        assert relative(network.decode(z), plain.double()) < 2e-5


@needs_native
def test_growth_bounds_the_weights_and_favours_large_pictures() -> None:
    sizes = [pack(UNet(TINY), growth) for growth in (0.0, 0.3, 1.0, 4.0)]
    for growth, done in zip((0.0, 0.3, 1.0, 4.0), sizes, strict=True):
        # What is not transformed grows by no more than panels that are not full.
        assert done.after <= (1.15 + growth) * done.before
    counts = [done.winograd for done in sizes]
    assert counts == sorted(counts)
    assert counts[0] == 0 < counts[1] < counts[3]
    with pytest.raises(ConfigError, match="growth"):
        pack(UNet(TINY), -1)


@needs_native
@pytest.mark.parametrize("eight", [None, "int8", "fp8"])
def test_an_outline_is_packed_to_the_same_size_and_shapes(eight: Eight | None) -> None:
    with torch.device("meta"):
        outline = UNet(TINY).eval()
    network = UNet(TINY).eval()
    assert pack(outline, 1.0, eight=eight) == pack(network, 1.0, eight=eight)
    shapes = [[(t.shape, t.dtype) for t in (*n.parameters(), *n.buffers())] for n in (outline, network)]
    assert shapes[0] == shapes[1]
    x, context = torch.randn(2, 4, 12, 20), torch.randn(4, 5, 24)
    with torch.inference_mode():
        truth = network(x, 7, Conditioning(context=context))
        found = outline(x.to("meta"), 7, Conditioning(context=context.to("meta")))
    assert (found.shape, found.stride()) == (truth.shape, truth.stride())


@needs_native
def test_what_is_given_small_pictures_is_not_transformed() -> None:
    def layers() -> nn.Sequential:
        return nn.Sequential(Conv2d(256, 256, 3, padding=1), Conv2d(256, 256, 3, padding=1))

    def transformed(growth: float = FAST, **known: Any) -> list[bool]:
        pack(network := layers(), growth, **known)
        return [isinstance(layer, WinogradConv2d) for layer in network]

    assert transformed() == [True, True]
    assert transformed(shapes={"0": (1, 256, 4, 4)}) == [False, True]
    assert transformed(side=2) == [False, False]
    # Where a byte saves more comes first.
    for points, found in ((26, [False, False]), (28, [False, True]), (54, [True, True])):
        growth = 1.001 * 4 * 256 * 256 * points / sum(p.nbytes for p in layers().parameters())
        assert transformed(growth, shapes={"0": (2, 256, 16, 16), "1": (2, 256, 32, 32)}) == found


@needs_native
def test_packed_weights_cannot_be_saved_loaded_moved_or_read() -> None:
    network = nn.Sequential(Conv2d(16, 16, 3, padding=1), Linear(8, 8))
    before = network.state_dict()
    pack(network, FAST)
    with pytest.raises(CheckpointError, match="before `pack`"):
        network.state_dict()
    with pytest.raises(CheckpointError, match="before `pack`"):
        network.load_state_dict(before)
    with pytest.raises(SfumatoError, match="float64"):
        network.double()
    with pytest.raises(SfumatoError, match="packed"):
        _ = network[1].weight
    assert network.to("cpu") is network


@needs_native
def test_a_packed_layer_refuses_what_it_was_not_packed_for() -> None:
    with pytest.raises(RuntimeError, match="not packed for"):
        stand_in(Linear(8, 8))(torch.randn(2, 9))
    with pytest.raises(RuntimeError, match="not packed for"):
        stand_in(Conv2d(16, 16, 3, padding=1), FAST)(picture(1, 32, 8, 8))
    with pytest.raises(RuntimeError):
        stand_in(Linear(8, 8))(torch.randn(2, 8, dtype=torch.float64))


def test_a_network_that_cannot_be_packed_stays_as_it_is() -> None:
    network = nn.Sequential(Linear(8, 8)).double()
    assert "float32" in pack(network).why
    assert type(network[0]) is Linear


def test_without_native_kernels_a_network_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_outcome", None)
    monkeypatch.setenv("SFUMATO_NATIVE", "0")
    network = nn.Sequential(Linear(8, 8))
    before = network(torch.ones(1, 8))
    done = pack(network)
    assert torch.equal(network(torch.ones(1, 8)), before)
    assert (done.layers, done.after, done.why) == (0, done.before, "plain PyTorch: turned off by SFUMATO_NATIVE=0")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"SFUMATO_NATIVE": "0"}, "turned off"),
        ({"PATH": "", "CXX": ""}, "no C\\+\\+ compiler"),
        ({"CXX": sys.executable}, "failed"),
        ({"CXX": "/nowhere/c++"}, "/nowhere/c\\+\\+"),
    ],
)
def test_why_there_is_no_library(
    settings: dict[str, str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ({"SFUMATO_NATIVE": "1"} | settings).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(build.BuildError, match=reason):
        build.build(build.SOURCE, tmp_path / "cache")
    assert not list(tmp_path.glob("**/*.so"))


def test_many_that_ask_at_once_compile_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, calls, compiler = tmp_path / "tiny.cpp", tmp_path / "calls", tmp_path / "compiler"
    source.write_text("int answer() { return 42; }")
    compiler.write_text(
        f'#!/bin/sh\necho called >> {calls}\nsleep 0.2\nwhile [ "$1" != -o ]; do shift; done\necho made > "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("SFUMATO_NATIVE", "1")
    with ThreadPoolExecutor(4) as pool:  # a file's lock is held by who opened it, thread or process
        libraries = set(pool.map(lambda _: build.build(source, tmp_path / "cache"), range(4)))
    assert len(libraries) == 1
    assert libraries.pop().read_text() == "made\n"
    assert calls.read_text().count("called") == 1
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".lock", ".so"]


def test_another_source_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho made > "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("SFUMATO_NATIVE", "1")
    source = tmp_path / "tiny.cpp"
    source.write_text("one")
    first = build.build(source, tmp_path)
    written = first.stat().st_mtime_ns
    assert build.build(source, tmp_path) == first
    assert first.stat().st_mtime_ns == written
    source.write_text("two")
    assert build.build(source, tmp_path) != first
    monkeypatch.setenv("SFUMATO_NATIVE", "perhaps")
    with pytest.raises(ConfigError, match="SFUMATO_NATIVE"):
        build.build(source, tmp_path)


def test_a_library_beside_its_source_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_processor", lambda: "sse2 good better best")
    levels: dict[str, tuple[frozenset[str], tuple[str, ...]]] = {
        "beyond": (frozenset({"best", "other"}), ()),
        "high": (frozenset({"best"}), ()),
        "low": (frozenset({"good"}), ()),
    }
    monkeypatch.setattr(build, "LEVELS", levels)
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("SFUMATO_NATIVE", "1")
    source = tmp_path / "tiny.cpp"
    source.write_text("one")
    for level in levels:
        (tmp_path / build.beforehand(source, level)).touch()
    assert build.build(source, tmp_path / "cache").name.endswith("-high.so")
    source.write_text("two")  # which they were not compiled from
    with pytest.raises(build.BuildError, match="/nowhere/c\\+\\+"):
        build.build(source, tmp_path / "cache")


RUN = """
import sys, torch
from sfumato.nn.native import shapes
torch.ops.load_library(sys.argv[1])
x, weight = torch.randn(1, 16, 8, 8).contiguous(memory_format=torch.channels_last), torch.randn(32, 16, 3, 3)
packed = torch.ops.sfumato.pack_winograd(weight)
y = torch.ops.sfumato.winograd(x, packed, None, None, None, 32)
torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weight, padding=1), atol=1e-3, rtol=1e-3)
"""


@pytest.mark.slow
@needs_native
def test_libraries_compiled_for_others_compute(tmp_path: Path) -> None:
    for library, (needed, _) in zip(build.build_beforehand(tmp_path), build.LEVELS.values(), strict=True):
        if needed <= set(build._processor().split()):
            subprocess.run([sys.executable, "-c", RUN, str(library)], check=True, cwd=ROOT)


def in_eight(layer: nn.Module) -> nn.Module:
    """The native layer of 8 bits for a plain one, which is left as it was."""
    holder = nn.Sequential(layer)
    assert pack(holder, eight="int8").eight == 1
    return holder[0]


def stand_in(layer: nn.Module, growth: float = SMALL) -> nn.Module:
    """The native layer for a plain one, which is left as it was."""
    holder = nn.Sequential(layer)
    done: Packing = pack(holder, growth)
    assert done.layers == 1
    assert done.winograd == (growth == FAST)
    return holder[0]
