"""Random numbers that are functions of (seed, stream, index) and of nothing else.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a 64-bit key and a 128-bit
counter into 128 random bits. There is no state to advance, save or share: any device, batch size, worker or resumed
run that asks for the same (seed, stream, index) is told the same numbers. They are computed on the CPU, in float64,
and rounded once, so that every device sees the same bits.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_LOW, _HIGH = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Ten rounds of Philox 4x32.

    Args:
        counter: [..., 4], any values.
        key: [2], the same for all counters.

    Returns:
        [..., 4] uniformly random 32-bit words.
    """
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = np.uint32(key[0]), np.uint32(key[1])
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _HIGH) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _HIGH) ^ c3 ^ np.uint64(k1), p0 & _LOW
        with np.errstate(over="ignore"):
            k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def key(*parts: int | str) -> int:
    """A 64-bit seed made of several parts, e.g. ``key(seed, "crop", epoch)``; other parts, other streams."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def bits(seed: int, count: int, stream: int = 0, start: int = 0) -> NDArray[np.uint32]:
    """``count`` random 32-bit words: words ``start`` to ``start + count`` of the numbered stream of this seed."""
    first, last = start // 4, (start + count + 3) // 4
    words = _words(seed, np.array([stream & 0xFFFFFFFFFFFFFFFF], np.uint64), first, last).reshape(-1)
    return words[start - 4 * first : start - 4 * first + count]


def uniform(seed: int, count: int, stream: int = 0) -> NDArray[np.float64]:
    """``count`` numbers in [0, 1), each of 53 random bits."""
    return _uniform(bits(seed, 2 * count, stream))


def normal(seed: int, count: int, stream: int = 0) -> NDArray[np.float64]:
    """``count`` standard normal numbers (Box-Muller on pairs of uniforms)."""
    return normals(seed, count, np.array([stream & 0xFFFFFFFFFFFFFFFF], np.uint64)).reshape(-1)


def normals(seed: int, count: int, streams: NDArray[np.uint64]) -> NDArray[np.float64]:
    """[N, count]: row i is ``normal(seed, count, streams[i])``; all in one go, which is several times as quick."""
    pairs = (count + 1) // 2
    u = _uniform(_words(seed, streams, 0, pairs)).reshape(len(streams), pairs, 2)
    radius, angle = np.sqrt(-2.0 * np.log1p(-u[..., 0])), 2.0 * np.pi * u[..., 1]
    drawn = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return drawn.reshape(len(streams), 2 * pairs)[:, :count]


def _words(seed: int, streams: NDArray[np.uint64], first: int, last: int) -> NDArray[np.uint32]:
    """[N, 4 (last - first)] the blocks ``first`` to ``last``, of four words each, of every stream."""
    block = np.arange(first, last, dtype=np.uint64)
    counter = np.empty((len(streams), len(block), 4), np.uint32)
    counter[..., 0], counter[..., 1] = block & _LOW, block >> _HIGH
    counter[..., 2], counter[..., 3] = (streams & _LOW)[:, None], (streams >> _HIGH)[:, None]
    seed &= 0xFFFFFFFFFFFFFFFF
    halves = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
    return philox(counter, halves).reshape(len(streams), 4 * len(block))


def _uniform(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """[..., 2 n] words -> [..., n] numbers."""
    wide = words.astype(np.uint64).reshape(*words.shape[:-1], -1, 2)
    return ((wide[..., 0] << np.uint64(21)) ^ (wide[..., 1] >> np.uint64(11))).astype(np.float64) * 2.0**-53


def permutation(seed: int, count: int, stream: int = 0) -> NDArray[np.int64]:
    """A random order of ``range(count)``: the argsort of random words, ties broken by index."""
    return np.argsort(uniform(seed, count, stream), kind="stable")
