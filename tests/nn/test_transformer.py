"""The transformer of U-Nets."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sfumato.nn.attention import tapped
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.transformer import CrossAttention, SelfAttention, SpatialTransformer, picture, tokens


def test_attention_is_its_formula() -> None:
    attention = SelfAttention(8, heads=2)
    x, residual = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    mixed = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        q, k, v = (to(x)[..., part] for to in (attention.to_q, attention.to_k, attention.to_v))
        mixed.append(torch.softmax(q @ k.transpose(1, 2) / 2, dim=-1) @ v)
    expected = residual + attention.to_out[0](torch.cat(mixed, dim=-1))
    torch.testing.assert_close(attention(x, residual), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_fused_projections_give_the_same_and_are_saved_as_three(bias: bool) -> None:
    attention = SelfAttention(8, heads=2, bias=bias)
    x, names = torch.randn(3, 5, 8), attention.state_dict()
    expected = attention(x)
    for _ in range(2):
        attention.fuse()
        assert {name for name, _ in attention.named_children()} == {"to_qkv", "to_out"}
        torch.testing.assert_close(attention(x), expected)
    saved = nn.ModuleList([attention]).state_dict(prefix="there.")
    assert {name: saved[f"there.0.{name}"].tolist() for name in names} == {k: t.tolist() for k, t in names.items()}
    assert len(saved) == len(names)


def test_masked_context_is_as_if_it_were_not_there() -> None:
    attention = CrossAttention(8, heads=2, context_dim=6)
    x, context = torch.randn(1, 5, 8), torch.randn(1, 4, 6)
    masked = Conditioning(context=context, context_mask=torch.tensor([[True, False, True, False]]))
    torch.testing.assert_close(attention(x, x, masked), attention(x, x, Conditioning(context=context[:, ::2])))


def test_rows_of_the_condition_decide() -> None:
    attention = CrossAttention(8, heads=2, context_dim=6)
    x, conditioning = torch.randn(2, 5, 8), Conditioning(context=torch.randn(6, 4, 6))
    repeated = x.repeat(3, 1, 1)
    torch.testing.assert_close(attention(x, x, conditioning), attention(repeated, repeated, conditioning))


@pytest.mark.parametrize("upcast", [False, True])
def test_upcast_attends_in_float32(upcast: bool) -> None:
    attention = SelfAttention(8, heads=2, upcast=upcast, name="here").bfloat16()
    x = torch.randn(1, 5, 8, dtype=torch.bfloat16)
    seen: list[torch.dtype] = []

    def tap(q: Tensor, k: Tensor, name: str) -> None:
        seen.append(q.dtype)

    with tapped(tap):
        assert attention(x, x).dtype == torch.bfloat16
    assert seen == [torch.float32 if upcast else torch.bfloat16]


def test_linear_and_convolution_are_one_arithmetic() -> None:
    linear = SpatialTransformer(8, 2, 6, groups=4, linear=True)
    convolution = SpatialTransformer(8, 2, 6, groups=4)
    convolution.load_state_dict({
        name: tensor[:, :, None, None] if name in ("proj_in.weight", "proj_out.weight") else tensor
        for name, tensor in linear.state_dict().items()
    })
    x = torch.randn(1, 8, 3, 5).contiguous(memory_format=torch.channels_last)
    conditioning = Conditioning(context=torch.randn(2, 4, 6))
    torch.testing.assert_close(linear(x, conditioning), convolution(x, conditioning))
    nothing = replace(conditioning, context=conditioning.context[:1] if conditioning.context is not None else None)
    torch.testing.assert_close(linear(x, nothing), linear(x, conditioning)[:1])


def test_tokens_are_views() -> None:
    x = torch.randn(2, 8, 3, 5).contiguous(memory_format=torch.channels_last)
    assert tokens(x).data_ptr() == x.data_ptr()
    back = picture(tokens(x), x.shape[-2:])
    assert back.data_ptr() == x.data_ptr()
    assert torch.equal(back, x)
