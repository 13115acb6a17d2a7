"""The kernels of ``sfumato.nn.gpu``, in Triton. Each works on tiles of ROWS positions and COLUMNS channels.

Triton compiles them when they are first used, for a precision, and keeps them in its cache folder.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def moments(x, means, spreads, positions, channels, tiles, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of each channel, over the positions of a chunk: the mean, and the sum of squares around it."""
    chunk, picture = tl.program_id(0), tl.program_id(2).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x += picture * positions * channels
    seen = 0.0
    mean, spread = tl.zeros([COLUMNS], tl.float32), tl.zeros([COLUMNS], tl.float32)
    for tile in range(tiles):
        first = (chunk * tiles + tile) * ROWS
        row = first + tl.arange(0, ROWS)
        there = (row < positions)[:, None] & (column < channels)[None, :]
        value = tl.load(x + row.to(tl.int64)[:, None] * channels + column[None, :], there, 0.0).to(tl.float32)
        new = tl.minimum(tl.maximum(positions - first, 0), ROWS).to(tl.float32)
        own = tl.sum(value, 0) / tl.maximum(new, 1.0)
        apart = tl.where(there, value - own[None, :], 0.0)
        # Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm", 1979, eq. 2.1
        both, step = seen + new, own - mean
        mean += step * (new / tl.maximum(both, 1.0))
        spread += tl.sum(apart * apart, 0) + step * step * (seen * new / tl.maximum(both, 1.0))
        seen = both
    place = (picture * tl.num_programs(0) + chunk) * channels + column
    tl.store(means + place, mean, column < channels)
    tl.store(spreads + place, spread, column < channels)


@triton.jit
def join(
    means, spreads, weight, bias, scale, shift, positions, channels, members, chunks, length, eps,
    MEMBERS: tl.constexpr, CHUNKS: tl.constexpr,
):
    """What every channel of a group is multiplied by, and what is added then."""
    group, picture = tl.program_id(0), tl.program_id(1)
    member = tl.arange(0, MEMBERS)
    channel = group * members + member
    total = 0.0
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        there = (chunk < chunks)[:, None] & (member < members)[None, :]
        seen = tl.minimum(tl.maximum(positions - chunk * length, 0), length).to(tl.float32)
        place = (picture * chunks + chunk)[:, None] * channels + channel[None, :]
        total += tl.sum(tl.sum(tl.load(means + place, there, 0.0) * seen[:, None], 1), 0)
    count = positions * members + 0.0
    mean = total / count
    total = 0.0
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        there = (chunk < chunks)[:, None] & (member < members)[None, :]
        seen = tl.minimum(tl.maximum(positions - chunk * length, 0), length).to(tl.float32)
        place = (picture * chunks + chunk)[:, None] * channels + channel[None, :]
        apart = tl.load(means + place, there, 0.0) - mean
        more = tl.load(spreads + place, there, 0.0) + apart * apart * seen[:, None]
        total += tl.sum(tl.sum(tl.where(there, more, 0.0), 1), 0)
    own = member < members
    factor = tl.load(weight + channel, own, 0.0).to(tl.float32) / tl.sqrt(total / count + eps)
    tl.store(scale + picture * channels + channel, factor, own)
    more = tl.load(bias + channel, own, 0.0).to(tl.float32) - mean * factor
    tl.store(shift + picture * channels + channel, more, own)


@triton.jit
def normalise(
    x, scale, shift, y, positions, channels, SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """``x * scale + shift``, and SiLU of that."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column, picture = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.program_id(2).to(tl.int64)
    there = (row < positions)[:, None] & (column < channels)[None, :]
    place = (picture * positions + row.to(tl.int64))[:, None] * channels + column[None, :]
    own = picture * channels + column
    factor, more = tl.load(scale + own, column < channels, 0.0), tl.load(shift + own, column < channels, 0.0)
    value = tl.load(x + place, there, 0.0).to(tl.float32) * factor[None, :] + more[None, :]
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(y + place, value.to(y.dtype.element_ty), there)


@triton.jit
def add(
    y, bias, shift, residual, positions, channels, stride, BIAS: tl.constexpr, SHIFT: tl.constexpr,
    RESIDUAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):
    """What follows a convolution, in its place."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column, picture = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.program_id(2).to(tl.int64)
    there = (row < positions)[:, None] & (column < channels)[None, :]
    place = (picture * positions + row.to(tl.int64))[:, None] * channels + column[None, :]
    value = tl.load(y + place, there, 0.0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + column, column < channels, 0.0).to(tl.float32)[None, :]
    if SHIFT:
        value += tl.load(shift + picture * stride + column, column < channels, 0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        value += tl.load(residual + place, there, 0.0).to(tl.float32)
    tl.store(y + place, value.to(y.dtype.element_ty), there)


@triton.jit
def gate(both, y, inner, WIDE: tl.constexpr):
    """``value * gelu(gate)`` of rows that hold both."""
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    there = column < inner
    value = tl.load(both + row * 2 * inner + column, there, 0.0).to(tl.float32)
    gate = tl.load(both + row * 2 * inner + inner + column, there, 0.0).to(tl.float32)
    gate = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(y + row * inner + column, (value * gate).to(y.dtype.element_ty), there)
