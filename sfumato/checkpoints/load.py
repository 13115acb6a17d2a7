"""From a checkpoint's tensors to a module: made on the meta device, filled one tensor at a time, one copy in memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sfumato.checkpoints.lazy import Lazy, Tensors, listing
from sfumato.core.errors import CheckpointError

M = TypeVar("M", bound=nn.Module)


class _Unfilled(TorchFunctionMode):
    """Leaves new parameters as they are: to draw random weights on the meta device takes torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


@contextmanager
def outlines() -> Iterator[None]:
    """Modules that are made inside cost neither memory nor time: they have shapes, and no content."""
    with torch.device("meta"), _Unfilled():
        yield


def shapes_of(build: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all that a checkpoint of this module holds; the module costs no memory."""
    with outlines():
        return {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}


def load_into(
    build: Callable[[], M],
    tensors: Tensors,
    where: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
    seems: str = "",
) -> M:
    """Build a module and give it these weights, every one of them and no others.

    A tensor that needs no conversion stays a view of the mapped file: nothing is copied. One that does is converted
    alone and its pages of the file are given back at once, so the peak is the module plus one tensor.

    Args:
        build: makes the module; it is called on the meta device. A buffer that is not part of a checkpoint has to be
            made with an explicit ``device="cpu"``.
        where: the file, for messages.
        dtype: precision of floating-point tensors; None: as stored.
        device: where the module is to live.
        channels_last: memory layout of 4-dimensional weights.
        seems: what the file seems to be, for messages (``inspect.describe``).

    Returns:
        The module in evaluation mode.

    Raises:
        CheckpointError: keys missing, unknown or of another shape; the message lists eight of each.
    """
    with outlines():
        module = build()
    check_fit({n: tuple(t.shape) for n, t in module.state_dict().items()}, tensors, type(module).__name__, where, seems)
    filled = {name: place(tensor, dtype, torch.device(device), channels_last) for name, tensor in tensors.items()}
    module.load_state_dict(filled, strict=True, assign=True)
    for name, buffer in module.named_buffers():
        if buffer.is_meta:
            raise TypeError(f'{type(module).__name__}.{name} is no part of a checkpoint: make it with device="cpu".')
    return module.to(device).eval()


def check_fit(wanted: dict[str, tuple[int, ...]], tensors: Tensors, what: str, where: str, seems: str = "") -> None:
    """Raise CheckpointError unless ``tensors`` are exactly those wanted."""
    missing = wanted.keys() - tensors.keys()
    unknown = tensors.keys() - wanted.keys()
    misshapen = [
        f"{name} is {list(tensors[name].shape)}, not {list(wanted[name])}"
        for name in wanted.keys() & tensors.keys()
        if tensors[name].shape != wanted[name]
    ]
    problems = [
        f"{label} {listing(names)}"
        for label, names in (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
        if names
    ]
    if problems:
        hint = f" It seems to be {seems}." if seems else ""
        raise CheckpointError(f"{where} does not fit {what}: {'; '.join(problems)}.{hint}")


def place(tensor: Lazy, dtype: torch.dtype | None, device: torch.device, channels_last: bool) -> Tensor:
    """A checkpoint's tensor in this precision (None: as stored), place and layout; see ``load_into``."""
    source = tensor.read()
    target = dtype if dtype is not None and source.is_floating_point() else source.dtype
    layout = torch.channels_last if channels_last and source.dim() == 4 else torch.contiguous_format
    # In one step: a copy between would leave a hole in the heap of each tensor's size. `to` gives the tensor itself
    # where nothing changes; a view that is not in the layout's order (a transposed one) is what `contiguous` is for.
    placed = source.to(device=device, dtype=target, memory_format=layout).contiguous(memory_format=layout)
    if placed.untyped_storage().data_ptr() != source.untyped_storage().data_ptr() or placed.device != source.device:
        tensor.release()
    return placed
