"""Numbers made into vectors."""

import math

import torch

from sfumato.nn.embeddings import Times, TimestepEmbedding, sinusoid
from sfumato.nn.rows import expand_rows


def test_sinusoid_is_what_its_formula_says() -> None:
    t = torch.tensor([0.0, 3.5, 999.0])
    rates = [10_000 ** -(i / 3) for i in range(4)]  # dim 8, shift 1: the last rate is 1 / 10000
    expected = torch.tensor([[f(float(v) * r) for f in (math.sin, math.cos) for r in rates] for v in t])
    torch.testing.assert_close(sinusoid(t, 8, cosine_first=False, freq_shift=1), expected, rtol=1e-5, atol=1e-5)
    flipped = sinusoid(t, 8, cosine_first=True, freq_shift=1)
    torch.testing.assert_close(flipped, expected.roll(4, dims=1), rtol=1e-5, atol=1e-5)


def test_sinusoid_tells_times_apart_in_half_precision() -> None:
    t = torch.arange(1000)
    vectors = sinusoid(t.half(), 64)
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, sinusoid(t, 64))
    assert sinusoid(t.reshape(10, 100), 64).shape == (10, 100, 64)


def test_a_second_input_is_added_to_the_first() -> None:
    embedding = TimestepEmbedding(4, 6, condition=3)
    assert embedding.cond_proj is not None
    x, told = torch.randn(2, 4), torch.randn(2, 3)
    assert torch.equal(embedding(x, told), embedding(x + embedding.cond_proj(told)))


def test_times_are_taken_apart_and_joined_by_rows() -> None:
    table = Times(torch.arange(24.0).reshape(3, 2, 4))
    step = table[1]
    assert torch.equal(step.shifts, table.shifts[1])
    assert torch.equal(Times.cat([step, table[2][[1]]]).shifts, torch.cat([table.shifts[1], table.shifts[2, 1:]]))


def test_expanded_rows_go_round_and_keep_their_memory() -> None:
    x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    expanded = expand_rows(x, 6)
    assert expanded.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(expanded[r], x[r % 2]) for r in range(6))
    assert expand_rows(x, 2) is x
