"""Counting without computing: arithmetic against formulas, memory against what a sequence of tensors must take."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.engine.meta import META
from sfumato.engine.trace import Work, size, trace, weights
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.unet import SD1, UNet
from sfumato.nn.conditioning import Conditioning


def of(kind: str, work: Work) -> int:
    return sum(operation.flops for operation in work.operations if operation.kind == kind)


def test_products_convolutions_and_attention_are_counted_by_their_formulas() -> None:
    a, b = torch.empty(3, 5, device=META), torch.empty(7, 5, device=META)
    bias = torch.empty(7, device=META)
    assert trace(lambda: F.linear(a, b, bias))[1].flops == 2 * 3 * 5 * 7
    assert trace(lambda: a @ b.T)[1].flops == 2 * 3 * 5 * 7
    x, w = torch.empty(2, 4, 9, 9, device=META), torch.empty(6, 4, 3, 3, device=META)
    assert of("convolution", trace(lambda: F.conv2d(x, w, stride=2))[1]) == 2 * 2 * 4 * 4 * 6 * 4 * 9
    q, k = torch.empty(2, 3, 10, 8, device=META), torch.empty(2, 3, 20, 8, device=META)
    work = trace(lambda: F.scaled_dot_product_attention(q, k, k))[1]
    assert of("attention", work) == 2 * 2 * 3 * 10 * 20 * (8 + 8)


def test_the_peak_is_of_what_lives_together() -> None:
    x = torch.empty(1000, device=META)  # 4,000 bytes, given

    def chain() -> torch.Tensor:
        a = x + 1
        b = a * 2  # a and b
        del a
        c = b - 1  # b and c
        return c.view(10, 100)  # a look at c, no memory

    result, work = trace(chain, [x])
    assert (work.peak, work.kept, work.read) == (8000, 4000, 4000)
    assert result.shape == (10, 100)
    assert len(work.operations) == 3
    assert all(operation.moved == 8000 for operation in work.operations)


def test_what_is_not_used_is_not_read() -> None:
    x, y = torch.empty(10, device=META), torch.empty(1000, device=META)
    assert trace(lambda: x.sin() + x, [x, y])[1].read == 40


def test_a_convolution_on_the_cpu_holds_its_weights_twice() -> None:
    x, w = torch.empty(1, 8, 4, 4, device=META), torch.empty(64, 8, 3, 3, device=META)
    out = 4 * 64 * 16
    last = x.to(memory_format=torch.channels_last)
    assert trace(lambda: F.conv2d(last, w, padding=1), [last, w], "cpu")[1].peak == out + w.nbytes
    assert trace(lambda: F.conv2d(x, w, padding=1), [x, w], "cpu")[1].peak == 2 * out + w.nbytes + x.nbytes
    assert trace(lambda: F.conv2d(x, w, padding=1), [x, w], "cuda")[1].peak == out


def test_stable_diffusion_takes_what_is_known_of_it() -> None:
    """622 GFLOP decode 256 pixels; the U-Net's two guidance halves take 360, less what they share."""
    with META:
        unet, vae = UNet(SD1), Autoencoder(AutoencoderConfig())
        x, t, told = torch.empty(1, 4, 32, 32), torch.empty(1), Conditioning(context=torch.empty(2, 77, 768))
    assert size(unet) == 4 * 859_520_964
    _, ready = trace(lambda: unet.prepare(told), weights(unet))
    work = trace(lambda: unet(x, t, unet.prepare(told)), weights(unet))[1]
    assert 345e9 < work.flops - ready.flops < 360e9
    assert abs(trace(lambda: vae.decode(x), weights(vae))[1].flops - 622.2e9) < 0.1e9


def test_attention_does_not_spill_and_half_precision_halves() -> None:
    with META:
        unet = UNet(SD1)
        x, t, told = torch.empty(1, 4, 64, 64), torch.empty(1), Conditioning(context=torch.empty(2, 77, 768))
        full = trace(lambda: unet(x, t, told), weights(unet), "cuda")[1]
        half_unet, half = unet.half(), told.to(META, torch.float16)
        lean = trace(lambda: half_unet(x.half(), t, half), weights(half_unet), "cuda")[1]
    assert full.peak < 400e6  # the logits of one attention at 64 x 64 alone would be 1 GB
    assert 0.45 < lean.peak / full.peak < 0.6


X, SQUARE = torch.randn(2, 8, 6, 6), torch.randn(5, 8, 3, 3)
LAST = X.to(memory_format=torch.channels_last)
ROWS, MATRIX, TABLE = torch.randn(2, 3, 8), torch.randn(8, 4), torch.randn(10, 4)
RULES: dict[str, Callable[..., Tensor]] = {
    "channels-last convolution": lambda: F.conv2d(LAST, SQUARE, torch.zeros(5), stride=2, padding=1),
    "convolution": lambda: F.conv2d(X, SQUARE, dilation=2),
    "one dimension": lambda: F.conv1d(X[:, :, 0], SQUARE[..., 0]),
    "transposed convolution": lambda: F.conv_transpose2d(X, SQUARE.transpose(0, 1), stride=2, padding=1),
    "grouped": lambda: F.conv2d(X, SQUARE[:4, :2], groups=4),
    "sum": lambda: LAST + X.mean((2, 3), keepdim=True),
    "three": lambda: torch.addcmul(ROWS[:1, :1], ROWS, ROWS[:, :1]),
    "difference of types": lambda: X.half() - 1.5 * X,
    "quotient": lambda: 2 * X[:, :, :1] / X,
    "linear": lambda: F.linear(ROWS, MATRIX.T, torch.zeros(4)),
    "linear without bias": lambda: F.linear(ROWS, MATRIX.T),
    "many matrices": lambda: ROWS[:, None] @ torch.randn(5, 8, 4),
    "vector": lambda: ROWS @ MATRIX[:, 0],
    "vector and matrix": lambda: ROWS[0, 0] @ MATRIX,
    "group norm": lambda: F.group_norm(LAST, 4, torch.ones(8), torch.ones(8)),
    "layer norm": lambda: F.layer_norm(ROWS.transpose(0, 1), (8,)),
    "silu": lambda: F.silu(LAST[:, 2:]),
    "gelu of a turned one": lambda: F.gelu(ROWS.transpose(1, 2)),
    "upsampling": lambda: F.interpolate(LAST, scale_factor=2.0, mode="nearest"),
    "upsampling to a size": lambda: F.interpolate(X, size=(7, 9), mode="nearest"),
    "shuffle": lambda: F.pixel_shuffle(LAST, 2),
    "unshuffle": lambda: F.pixel_unshuffle(X, 3),
    "embedding": lambda: F.embedding(torch.tensor([[1, 2, 3]]), TABLE),
    "rows by index": lambda: ROWS[torch.arange(2), torch.tensor([0, 2])],
    "best": lambda: ROWS.argmax(-1),
    "joined": lambda: torch.cat([LAST, LAST], 1),
    "joined unlike": lambda: torch.cat([X, LAST], dim=-1),
    "stacked": lambda: torch.stack([ROWS, ROWS], -1),
    "copy": lambda: ROWS.transpose(0, 1).contiguous(),
    "turned copy": lambda: X.contiguous(memory_format=torch.channels_last),
    "numbers": lambda: torch.arange(3, 20, 4, device=X.device),
    "fractions": lambda: torch.arange(0.5, 4, device=X.device),
    "truth": lambda: X == 0,
    "comparison": lambda: LAST.lt(LAST[:1]),
    "choice": lambda: X.where(X[:, :1] < 0, 0.5),
    "attention": lambda: F.scaled_dot_product_attention(ROWS[:, None], ROWS[:, None], ROWS[:, None]),
}


@pytest.mark.parametrize("name", RULES)
def test_what_an_operation_makes_is_known_as_a_cpu_makes_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        expected = RULES[name]()
    for given in ("X", "SQUARE", "LAST", "ROWS", "MATRIX", "TABLE"):
        monkeypatch.setitem(globals(), given, globals()[given].to(META))
    made = RULES[name]
    found, _ = trace(made)
    assert found.device == META
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    whole = [side > 1 for side in found.shape]  # the step of a side of one means nothing
    assert [s for s, w in zip(found.stride(), whole, strict=True) if w] == [
        s for s, w in zip(expected.stride(), whole, strict=True) if w
    ]

