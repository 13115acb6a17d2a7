"""The random streams: the published numbers, independence of how they are asked for, and their distribution."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.core import rng

# Known answers of Random123 (D. E. Shaw Research, kat_vectors, "philox4x32 10").
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.array([int(word, 16) for word in text.split()], np.uint32)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_published_numbers(counter: str, key: str, answer: str) -> None:
    assert rng.philox(words(counter), words(key)).tolist() == words(answer).tolist()


def test_philox_takes_many_counters_at_once() -> None:
    counters = np.stack([words(counter) for counter, _, _ in KNOWN])
    together = rng.philox(counters, words(KNOWN[2][1]))
    assert together[2].tolist() == words(KNOWN[2][2]).tolist()
    assert together[0].tolist() == rng.philox(counters[0], words(KNOWN[2][1])).tolist()


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 50), st.integers(0, 50))
def test_any_part_of_a_stream_is_the_same_numbers(seed: int, stream: int, start: int, count: int) -> None:
    whole = rng.bits(seed, start + count, stream)
    assert rng.bits(seed, count, stream, start).tolist() == whole[start:].tolist()


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_fewer_numbers_are_the_first_of_more(count: int) -> None:
    for draw in (rng.uniform, rng.normal):
        assert draw(3, count, 5).tolist() == draw(3, 9, 5)[:count].tolist()


def test_other_seeds_and_streams_are_other_numbers() -> None:
    drawn = {tuple(rng.bits(seed, 4, stream).tolist()) for seed in (0, 1, 2**32, 2**63) for stream in (0, 1, 2**32)}
    assert len(drawn) == 12


def test_uniform_is_uniform() -> None:
    found = rng.uniform(7, 40_000)
    assert found.min() >= 0.0
    assert found.max() < 1.0
    # Kolmogorov-Smirnov against the uniform distribution: 1.95 / sqrt(n) is passed once in 1,000 seeds.
    sorted_, n = np.sort(found), len(found)
    distance = np.abs(sorted_ - (np.arange(n) + 0.5) / n).max() + 0.5 / n
    assert distance < 1.95 / np.sqrt(n)


def test_normal_has_the_moments_of_the_normal_distribution() -> None:
    found, n = rng.normal(7, 40_000), 40_000
    # Five standard errors each, whose variances are 1, 2, 15 and 96 by n.
    for power, expected, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs((found**power).mean() - expected) < 5 * np.sqrt(variance / n)
    assert abs(np.corrcoef(found[::2], found[1::2])[0, 1]) < 5 / np.sqrt(n / 2)  # the two halves of Box-Muller


@given(st.integers(0, 2**64 - 1), st.integers(0, 200))
def test_permutation_is_one(seed: int, count: int) -> None:
    assert sorted(rng.permutation(seed, count).tolist()) == list(range(count))


def test_keys_tell_their_parts_apart() -> None:
    parts: list[tuple[int | str, ...]] = [(1, "crop"), ("1", "crop"), ("1crop",), (1, "cro", "p"), (2, "crop")]
    assert len({rng.key(*p) for p in parts}) == len(parts)
    assert rng.key(7, "crop", 3) == rng.key(7, "crop", 3) < 2**64


@pytest.mark.parametrize("count", [1, 2, 7, 512])
def test_rows_of_streams_are_the_streams(count: int) -> None:
    streams = np.array([0, 1, 5 << 40 | 3, 2**64 - 1], np.uint64)
    rows = rng.normals(9, count, streams)
    assert [row.tobytes() for row in rows] == [rng.normal(9, count, int(s)).tobytes() for s in streams]
