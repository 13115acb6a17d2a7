"""What mixed precision leaves in float32: normalisation everywhere, and on a CPU attention."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.nn.attention import attend
from sfumato.nn.layers import GroupNorm


def test_group_norm_takes_its_statistics_in_float32() -> None:
    norm = GroupNorm(2, 8)
    x = torch.randn(2, 8, 16, 16).mul(4).add(100).bfloat16()  # whose variance bfloat16 sums get wrong
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x, silu=True)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, F.silu(norm(x.float()).bfloat16()))


@pytest.mark.parametrize("mask", [None, torch.zeros(3, 5).index_fill(1, torch.tensor([2]), -1e4).bfloat16()])
def test_attention_on_a_cpu_is_that_of_float32(mask: Tensor | None) -> None:
    q, k, v = (torch.randn(2, 4, n, 8, dtype=torch.bfloat16, requires_grad=True) for n in (3, 5, 5))
    with torch.autocast("cpu", torch.bfloat16):
        y = attend(q, k, v, mask)
    got = torch.autograd.grad(y.float().square().sum(), (q, k, v))
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    expected = attend(wide[0], wide[1], wide[2], None if mask is None else mask.float())
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, expected.bfloat16())
    for mine, theirs in zip(got, torch.autograd.grad(expected.square().sum(), wide), strict=True):
        assert torch.allclose(mine.float(), theirs, rtol=2e-2, atol=1e-2)
