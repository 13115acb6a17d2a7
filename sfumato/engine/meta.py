"""What operations make of tensors without content: shape, type and memory order.

PyTorch has such rules too, many of them in Python, and the first of these to run imports its whole compiler: seconds,
and 100 MB that the process then holds. What networks are made of stands here; the rest is left to PyTorch. Where a
backend of ours lays out its result in another way, or does at once what PyTorch takes apart, it stands here as well.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

META = torch.device("meta")
_aten = torch.ops.aten


def _is_last(*tensors: Tensor) -> bool:
    """Whether any is a picture in channels-last order, and could be told from one that is not."""
    pictures = [t for t in tensors if t.dim() == 4]
    return any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in pictures)


def _new(like: Tensor, shape: Sequence[int], last: bool = False) -> Tensor:
    """In whole rows, or channels-last."""
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty(*shape, dtype=like.dtype, device=META, memory_format=order)  # `new_empty` has a rule in Python


def _like(x: Tensor, *_: Any, dtype: torch.dtype | None = None, **__: Any) -> Tensor:
    """In the order in which x lies, without its gaps."""
    steps, step = [0] * x.dim(), 1
    for i in sorted(range(x.dim()), key=lambda i: (x.stride(i), -i)):
        steps[i] = step
        step *= x.shape[i]
    return torch.empty_strided(x.shape, steps, dtype=dtype or x.dtype, device=META)


def _joint(shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The shape to which all can be expanded."""
    rank = max(map(len, shapes), default=0)
    sides = zip(*((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes), strict=True)
    return tuple(next((n for n in side if n != 1), 1) for side in sides)


def _spread(dtype: torch.dtype, *operands: Any) -> Tensor:
    """Of the shape to which all operands can be expanded, lying as the first that has it."""
    tensors = [t for t in operands if isinstance(t, Tensor)]
    shape = _joint([t.shape for t in tensors])
    whole = next((t for t in tensors if t.shape == shape), None)
    return torch.empty(shape, dtype=dtype, device=META) if whole is None else _like(whole, dtype=dtype)


def _elementwise(x: Any, y: Any, **_: Any) -> Tensor:
    return _spread(torch.result_type(x, y), x, y)


def _added(x: Tensor, y: Tensor, z: Tensor, **_: Any) -> Tensor:
    return _spread(x.dtype, x, y, z)


def _compared(x: Tensor, y: Any) -> Tensor:
    return _spread(torch.bool, x, y)


def _chosen(condition: Tensor, x: Any, y: Any) -> Tensor:
    return _spread(torch.result_type(x, y), condition, x, y)


def _product(a: Tensor, b: Tensor, **_: Any) -> Tensor:
    return _new(a, (*_joint([a.shape[:-2], b.shape[:-2]]), a.shape[-2], b.shape[-1]))


def _matrices(a: Tensor, b: Tensor) -> Tensor:
    """A vector is a matrix of one row, or of one column, without that side."""
    y = _product(a if a.dim() > 1 else a[None], b if b.dim() > 1 else b[:, None])
    y = y if b.dim() > 1 else y[..., 0]
    return y if a.dim() > 1 else y[..., 0, :] if b.dim() > 1 else y[..., 0]


def _added_product(_: Tensor, a: Tensor, b: Tensor, **__: Any) -> Tensor:
    return _product(a, b)


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    shape = list(tensors[0].shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return _new(tensors[0], shape, all(map(_is_last, tensors)))


def _stacked(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    shape = list(tensors[0].shape)
    shape.insert(dim % (len(shape) + 1), len(tensors))
    return _new(tensors[0], shape)


def _cloned(x: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    if memory_format == torch.preserve_format:
        return _like(x)
    return _new(x, x.shape, memory_format == torch.channels_last)


def _viewed(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.view(*shape)


def _convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    options = map(tuple, (stride, padding, dilation, output_padding))
    step, edge, apart, more = (given * (x.dim() - 2) if len(given) == 1 else given for given in options)
    places = zip(x.shape[2:], weight.shape[2:], step, edge, apart, more, strict=True)
    if transposed:
        channels = weight.shape[1] * groups
        sizes = [(n - 1) * s - 2 * p + d * (k - 1) + 1 + m for n, k, s, p, d, m in places]
    else:
        channels = weight.shape[0]
        sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in places]
    return _new(x, (len(x), channels, *sizes), _is_last(x, weight))


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """No backend of ours spills the logits. The result lies as the queries did, heads inside positions."""
    return _new(q, (q.shape[0], q.shape[2], q.shape[1], v.shape[3])).transpose(1, 2)


def _layer_normalised(x: Tensor, shape: Sequence[int], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    statistics = (*x.shape[: x.dim() - len(shape)], *(1 for _ in shape))
    return _new(x, x.shape), _new(x, statistics), _new(x, statistics)


def _upsampled(x: Tensor, size: Sequence[int] | None, *rest: Any, **__: Any) -> Tensor:
    if size is None:
        size = [int(n * factor) for n, factor in zip(x.shape[2:], rest[0], strict=True)]
    return _new(x, (*x.shape[:2], *size), _is_last(x))


def _shuffled(x: Tensor, factor: int) -> Tensor:
    *count, channels, height, width = x.shape
    return _new(x, (*count, channels // factor**2, height * factor, width * factor), _is_last(x))


def _unshuffled(x: Tensor, factor: int) -> Tensor:
    *count, channels, height, width = x.shape
    return _new(x, (*count, channels * factor**2, height // factor, width // factor), _is_last(x))


def _looked_up(weight: Tensor, indices: Tensor, *_: Any) -> Tensor:
    return _new(weight, (*indices.shape, weight.shape[1]))


def _picked(x: Tensor, indices: Sequence[Tensor]) -> Tensor:
    """By one index for each of the first dimensions."""
    return _new(x, (*_joint([i.shape for i in indices]), *x.shape[len(indices) :]))


def _best(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    shape = list(x.shape) if dim is not None else []
    if dim is not None:
        shape[dim : dim % len(shape) + 1] = [1] if keepdim else []
    return torch.empty(shape, dtype=torch.int64, device=META)


def _counted(*bounds: float, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    start, end, step = (0, bounds[0], 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    whole = all(isinstance(n, int) for n in (start, end, step))
    count = math.ceil((end - start) / step)
    return torch.empty(count, dtype=dtype or (torch.int64 if whole else torch.get_default_dtype()), device=META)


SHAPES: Mapping[Any, Callable[..., Any]] = {
    **dict.fromkeys(
        (
            _aten.silu.default, _aten.gelu.default, _aten.relu.default, _aten.sigmoid.default, _aten.tanh.default,
            _aten.exp.default, _aten.sin.default, _aten.cos.default, _aten.neg.default, _aten.sqrt.default,
        ),
        _like,
    ),
    **dict.fromkeys(
        (_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor, _aten.add.Scalar, _aten.mul.Scalar),
        _elementwise,
    ),
    **dict.fromkeys(
        (
            _aten.eq.Scalar, _aten.ne.Scalar, _aten.lt.Scalar, _aten.le.Scalar, _aten.gt.Scalar, _aten.ge.Scalar,
            _aten.eq.Tensor, _aten.ne.Tensor, _aten.lt.Tensor, _aten.le.Tensor, _aten.gt.Tensor, _aten.ge.Tensor,
        ),
        _compared,
    ),
    _aten.addcmul.default: _added,
    _aten.where.self: _chosen,
    _aten.where.ScalarOther: _chosen,
    _aten.mm.default: _product,
    _aten.matmul.default: _matrices,
    _aten.bmm.default: _product,
    _aten.addmm.default: _added_product,
    _aten.baddbmm.default: _added_product,
    _aten.cat.default: _joined,
    _aten.stack.default: _stacked,
    _aten.clone.default: _cloned,
    _aten._unsafe_view.default: _viewed,
    _aten.convolution.default: _convolved,
    _aten.scaled_dot_product_attention.default: _attention,
    _aten.group_norm.default: _like,  # which PyTorch takes apart as for a device without channels-last pictures
    _aten.native_layer_norm.default: _layer_normalised,
    _aten.upsample_nearest2d.default: _upsampled,
    _aten.upsample_nearest2d.vec: _upsampled,
    _aten.pixel_shuffle.default: _shuffled,
    _aten.pixel_unshuffle.default: _unshuffled,
    _aten.embedding.default: _looked_up,
    _aten.index.Tensor: _picked,
    _aten.argmax.default: _best,
    _aten.arange.default: _counted,
    _aten.arange.start: _counted,
    _aten.arange.start_step: _counted,
}  # fmt: skip
