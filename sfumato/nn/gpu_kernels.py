"""The kernels of ``sfumato.nn.gpu``, in Triton. Each works on tiles of ROWS positions and COLUMNS channels.

Triton compiles them when they are first used, for a precision, and keeps them in its cache folder.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def moments(x, means, spreads, positions, channels, tiles, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of each channel, over the positions of a chunk: the mean, and the sum of squares around it.

    Sums are of what is above or below the chunk's first position, so that they lose nothing where a channel is far from
    zero (Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983, section 3).
    """
    chunk, picture = tl.program_id(0), tl.program_id(2).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < channels
    x += picture * positions * channels
    begin = chunk * tiles * ROWS
    pivot = tl.load(x + begin.to(tl.int64) * channels + column, inside & (begin < positions), 0.0).to(tl.float32)
    sums, squares = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)
    for tile in range(tiles):
        row = begin + tile * ROWS + tl.arange(0, ROWS)
        there = (row < positions)[:, None] & inside[None, :]
        value = tl.load(x + row.to(tl.int64)[:, None] * channels + column[None, :], there, 0.0).to(tl.float32)
        apart = tl.where(there, value - pivot[None, :], 0.0)
        sums += apart
        squares += apart * apart
    seen = tl.maximum(tl.minimum(positions - begin, tiles * ROWS), 1).to(tl.float32)
    total = tl.sum(sums, 0)
    place = (picture * tl.num_programs(0) + chunk) * channels + column
    tl.store(means + place, pivot + total / seen, inside)
    tl.store(spreads + place, tl.sum(squares, 0) - total * total / seen, inside)


@triton.jit
def join(
    means, spreads, weight, bias, before, more, scale, shift, positions, channels, members, chunks, length, stride, eps,
    BEFORE: tl.constexpr, MORE: tl.constexpr, MEMBERS: tl.constexpr, CHUNKS: tl.constexpr,
):
    """What every channel of a group is multiplied by, and what is added then.

    What was to be added to the channels before, ``before`` and ``more``, moves their means and nothing else.
    """
    group, picture = tl.program_id(0), tl.program_id(1)
    member = tl.arange(0, MEMBERS)
    own = member < members
    channel = group * members + member
    moved = tl.zeros([MEMBERS], tl.float32)
    if BEFORE:
        moved += tl.load(before + channel, own, 0.0).to(tl.float32)
    if MORE:
        moved += tl.load(more + picture * stride + channel, own, 0.0).to(tl.float32)
    pivot = tl.load(means + picture * chunks * channels + group * members)
    sums, squares = tl.zeros([CHUNKS, MEMBERS], tl.float32), tl.zeros([CHUNKS, MEMBERS], tl.float32)
    for first in range(0, chunks, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)
        seen = tl.minimum(tl.maximum(positions - chunk * length, 0), length).to(tl.float32)[:, None]
        there = (seen > 0.0) & own[None, :]
        place = (picture * chunks + chunk)[:, None] * channels + channel[None, :]
        apart = tl.where(there, tl.load(means + place, there, 0.0) - pivot + moved[None, :], 0.0)
        sums += apart * seen
        squares += tl.load(spreads + place, there, 0.0) + apart * apart * seen
    count = positions * members + 0.0
    off = tl.sum(tl.sum(sums, 1), 0) / count
    variance = tl.sum(tl.sum(squares, 1), 0) / count - off * off
    factor = tl.load(weight + channel, own, 0.0).to(tl.float32) / tl.sqrt(tl.maximum(variance, 0.0) + eps)
    base = tl.load(bias + channel, own, 0.0).to(tl.float32) + (moved - pivot - off) * factor
    tl.store(scale + picture * channels + channel, factor, own)
    tl.store(shift + picture * channels + channel, base, own)


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
def parities(weight, y, inputs, outputs, by_output, by_input, by_row, by_column, COLUMNS: tl.constexpr):
    """[C', C, 3, 3] -> [4 C', 2, 2, C], a kernel for each parity of row and column of a picture of doubled size.

    Every value stands there twice each way, so that 3 x 3 weights meet 2 x 2 values: a row of even number those of the
    row before and its own, the first weights and the sum of the others; a row of odd number its own and the next.
    """
    output, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < inputs
    weight += output * by_output + column * by_input
    for down in tl.static_range(2):
        for right in tl.static_range(2):
            for i in tl.static_range(2):
                for j in tl.static_range(2):
                    total = tl.zeros([COLUMNS], tl.float32)
                    for row in tl.static_range(3):
                        for place in tl.static_range(3):
                            if (row + 1 - down) // 2 == i and (place + 1 - right) // 2 == j:
                                total += tl.load(weight + row * by_row + place * by_column, inside, 0.0).to(tl.float32)
                    own = (((2 * down + right) * outputs + output) * 2 + i) * 2 + j
                    tl.store(y + own * inputs + column, total.to(y.dtype.element_ty), inside)


@triton.jit
def interleave(x, bias, y, height, width, channels, BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[B, H + 1, W + 1, 2, 2, C'] -> [B, 2 H, 2 W, C'], what each parity has in each window; and a bias."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column, picture = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.program_id(2).to(tl.int64)
    there = (row < 4 * height * width)[:, None] & (column < channels)[None, :]
    down, right = row // (2 * width), row % (2 * width)
    window = (down + 1) // 2 * (width + 1) + (right + 1) // 2
    place = (picture * (height + 1) * (width + 1) + window) * 4 + down % 2 * 2 + right % 2
    value = tl.load(x + place[:, None] * channels + column[None, :], there, 0.0).to(tl.float32)
    if BIAS:
        value += tl.load(bias + column, column < channels, 0.0).to(tl.float32)[None, :]
    own = picture * 4 * height * width + row
    tl.store(y + own[:, None] * channels + column[None, :], value.to(y.dtype.element_ty), there)


@triton.jit
def gate(both, y, rows, inner, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """``value * gelu(gate)`` of rows that hold both."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = (row < rows)[:, None] & (column < inner)[None, :]
    place = row.to(tl.int64)[:, None] * inner
    value = tl.load(both + 2 * place + column[None, :], there, 0.0).to(tl.float32)
    by = tl.load(both + 2 * place + inner + column[None, :], there, 0.0).to(tl.float32)
    by = 0.5 * by * (1.0 + tl.erf(by * 0.7071067811865476))
    tl.store(y + place + column[None, :], (value * by).to(y.dtype.element_ty), there)


@triton.jit
def layer_norm(x, weight, bias, y, rows, width, eps, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Rows that fit into a program whole."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    inside = column < width
    there = (row < rows)[:, None] & inside[None, :]
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    value = tl.load(x + place, there, 0.0).to(tl.float32)
    apart = tl.where(there, value - (tl.sum(value, 1) / width)[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(apart * apart, 1) / width + eps)
    factor, more = tl.load(weight + column, inside, 0.0).to(tl.float32), tl.load(bias + column, inside, 0.0)
    tl.store(y + place, (apart * scale[:, None] * factor[None, :] + more[None, :]).to(y.dtype.element_ty), there)


@triton.jit
def coarse(x, y, scale, rows, width, MOST: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Rows in E4M3, as large as it allows, and what they were divided by."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    there = (row < rows)[:, None] & (column < width)[None, :]
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    value = tl.load(x + place, there, 0.0).to(tl.float32)
    by = tl.maximum(tl.max(tl.abs(value), 1) / MOST, 1e-30)
    value = tl.minimum(tl.maximum(value / by[:, None], -MOST), MOST)
    tl.store(y + place, value.to(y.dtype.element_ty), there)
    tl.store(scale + row, by, row < rows)
