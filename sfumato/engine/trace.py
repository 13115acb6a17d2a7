"""What a computation costs, counted without doing it: it is run on the meta device, where tensors have no content.

The true modules are run, so nothing here knows of U-Nets or autoencoders. Each operation that reaches the backend is
seen: its multiplications, the bytes it reads and writes, and the tensors that are alive while it runs.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sfumato.engine.meta import META, SHAPES
from sfumato.nn.native.shapes import tiled_work, tiles

T = TypeVar("T")
Kind = Literal["convolution", "product", "attention", "movement", "packed", "winograd", "int8"]
"""What an operation's time hangs on: each kind has a measured rate."""


@dataclass(frozen=True)
class Operation:
    """One operation of the backend.

    Attributes:
        flops: floating-point operations, a multiplication and an addition counted as two.
        moved: bytes read and written.
    """

    kind: Kind
    flops: int
    moved: int


@dataclass
class Work:
    """What a computation costs.

    Attributes:
        operations: in the order in which they ran.
        peak: bytes of the tensors it made, and of what its operations hold aside, when they were the most.
        kept: bytes that were still alive when it had ended: its result.
        read: bytes of the given tensors that it used, tables of embeddings left out.
    """

    operations: list[Operation] = field(default_factory=list)
    peak: int = 0
    kept: int = 0
    read: int = 0

    @property
    def flops(self) -> int:
        """Of all operations."""
        return sum(operation.flops for operation in self.operations)


def trace(call: Callable[[], T], given: Iterable[Tensor] = (), device: str = "cpu") -> tuple[T, Work]:
    """Run a computation on meta tensors and count.

    Args:
        call: the computation.
        given: tensors that were there before (weights, inputs); they are not counted.
        device: type of the device that is to do it in earnest, which decides what its operations hold aside.

    Returns:
        What ``call`` returned, and its cost.
    """
    counter = _Counter(given, device)
    with torch.inference_mode(), counter:  # with gradients, attention would be taken apart
        result = call()
    counter.work.kept = counter.live
    return result, counter.work


def weights(module: nn.Module) -> list[Tensor]:
    """All parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def size(module: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(tensor.nbytes for tensor in weights(module))


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hears every operation, down to those that the backend does itself."""

    def __init__(self, given: Iterable[Tensor], device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.work = Work()
        self.live = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._held = [tensor.untyped_storage() for tensor in given]  # an id is one storage's while that one lives
        self._given = {id(storage): storage.nbytes() for storage in self._held}
        self._read: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """True would import the whole compiler, for seconds, to be told to keep away."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        hollow = any(t.device == META for t in given) or kwargs.get("device") == META
        if hollow and func in SHAPES:
            result = SHAPES[func](*args, **kwargs)
        else:
            if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
                with self:  # in inference mode composite operations come whole
                    return func.decompose(*args, **kwargs)
            result = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self._born(outputs)
        self._note(func, args, given, outputs)
        return result

    def _born(self, outputs: Sequence[Tensor]) -> None:
        for tensor in outputs:
            storage = tensor.untyped_storage()
            key = id(storage)
            if key in self._given or key in self._alive or tensor.device != META:
                continue
            count = storage.nbytes()

            def died(_: Any, key: int = key, count: int = count) -> None:
                self.live -= count
                self._alive.pop(key, None)

            self._alive[key] = weakref.ref(storage, died)
            self.live += count

    def _note(self, func: Any, args: tuple[Any, ...], inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        aside = 0
        looked_up = func is _aten.embedding.default  # a few rows of a table, which is as good as nothing
        for key in {id(t.untyped_storage()) for t in inputs[looked_up:]} & self._given.keys() - self._read:
            self._read.add(key)
            self.work.read += self._given[key]
        counted = FLOPS.get(func) or NATIVE.get(func.name())
        if counted is not None:
            kind, count = counted
            flops = count(args, outputs)
            moved = sum(t.nbytes for t in (*inputs, *outputs))
            if kind == "convolution" and self.device == "cpu":
                aside = _repacked(inputs, outputs)
            self.work.operations.append(Operation(kind, flops, moved))
        elif not _is_view(inputs, outputs):
            moved = sum(t.nbytes for t in (*inputs, *outputs) if t.device == META)
            self.work.operations.append(Operation("movement", 0, moved))
        self.work.peak = max(self.work.peak, self.live + aside)


def _is_view(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
    """Whether nothing was computed: the results are other looks at what was there, or not of this device."""
    there = {id(t.untyped_storage()) for t in inputs}
    return all(id(t.untyped_storage()) in there or t.device != META for t in outputs)


def _repacked(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """Bytes that oneDNN holds aside in a convolution: weights in its own order, and so the pictures unless they are
    channels-last. A 1 x 1 convolution is a product and needs neither."""
    x, weight = inputs[0], inputs[1]
    if weight.shape[2:].numel() == 1:
        return 0
    plain = not x.is_contiguous(memory_format=torch.channels_last)
    return weight.nbytes + (x.nbytes + outputs[0].nbytes if plain else 0)


_aten = torch.ops.aten


def _product(args: tuple[Any, ...], outputs: Sequence[Tensor]) -> int:
    return 2 * outputs[0].numel() * int(args[0].shape[-1])


def _added_product(args: tuple[Any, ...], outputs: Sequence[Tensor]) -> int:
    return 2 * outputs[0].numel() * int(args[1].shape[-1])


def _convolved(args: tuple[Any, ...], outputs: Sequence[Tensor]) -> int:
    transposed = bool(args[6])
    places = args[0].numel() // args[0].shape[1] if transposed else outputs[0].numel() // outputs[0].shape[1]
    return 2 * places * int(args[1].numel())


def _attended(args: tuple[Any, ...], outputs: Sequence[Tensor]) -> int:
    q, k, v = args[:3]
    rows = int(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
    return 2 * rows * int(q.shape[3] + v.shape[3])


FLOPS: Mapping[Any, tuple[Kind, Callable[[tuple[Any, ...], Sequence[Tensor]], int]]] = {
    _aten.matmul.default: ("product", _product),
    _aten.mm.default: ("product", _product),
    _aten._scaled_mm.default: ("product", _product),  # in 8 bits: faster, by how much was never measured
    _aten.bmm.default: ("product", _product),
    _aten.addmm.default: ("product", _added_product),
    _aten.baddbmm.default: ("product", _added_product),
    _aten.convolution.default: ("convolution", _convolved),
    _aten.scaled_dot_product_attention.default: ("attention", _attended),
}


def _panels(args: tuple[Any, ...], outputs: Sequence[Tensor]) -> int:
    """Every column that the packed weights hold, for every row."""
    return 2 * (outputs[0].numel() // int(args[-1])) * int(args[1].numel())


def _panels_of_pictures(args: tuple[Any, ...], outputs: Sequence[Tensor]) -> int:
    return 2 * (outputs[0].numel() // outputs[0].shape[1]) * int(args[1].numel())


def _tiled(args: tuple[Any, ...], outputs: Sequence[Tensor]) -> int:
    x, packed = args[:2]
    transformed = packed.dim() == 4
    pairs = int(packed.numel()) // (36 if transformed else 9)
    return 2 * pairs * (36 * tiles(x.shape) + tiled_work(x.shape, transformed) - tiled_work(x.shape))


NATIVE: Mapping[str, tuple[Kind, Callable[[tuple[Any, ...], Sequence[Tensor]], int]]] = {
    "sfumato::linear": ("packed", _panels),
    "sfumato::geglu": ("packed", _panels),
    "sfumato::convolution": ("packed", _panels_of_pictures),
    "sfumato::winograd": ("winograd", _tiled),
    "sfumato::attention": ("attention", _attended),
    "sfumato::linear_int8": ("int8", lambda args, outputs: 4 * _panels(args, outputs)),
    "sfumato::geglu_int8": ("int8", lambda args, outputs: 4 * _panels(args, outputs)),
    "sfumato::convolution_int8": ("int8", lambda args, outputs: 4 * _panels_of_pictures(args, outputs)),
}
"""Operators of ``sfumato.nn.native``, by name since they exist only where they could be compiled: what is multiplied in
earnest, which by Winograd is less than the direct sum."""
