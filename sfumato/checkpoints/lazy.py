"""Tensors that are known by shape and precision before a byte of them is read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


def _nothing() -> None:
    """What is released of a tensor that lies in memory anyway."""


@dataclass(frozen=True)
class Lazy:
    """One tensor of a checkpoint.

    Attributes:
        shape: as the checkpoint has it.
        dtype: as the checkpoint has it.
        read: gives the tensor; of a mapped file it is a view of the mapping, no copy.
        release: gives the memory of its pages back to the system after a copy was taken; reading again is possible.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    release: Callable[[], None] = _nothing

    @property
    def numel(self) -> int:
        """Number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """Bytes in the checkpoint."""
        return self.numel * self.dtype.itemsize

    def meta(self) -> Tensor:
        """A tensor of this shape and precision without content."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


Tensors = Mapping[str, Lazy]
"""A checkpoint's content: name -> tensor."""


def lazy(tensor: Tensor) -> Lazy:
    """A tensor that lies in memory already."""
    return Lazy(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def lazy_all(tensors: Mapping[str, Tensor]) -> dict[str, Lazy]:
    """A state dict that lies in memory already."""
    return {name: lazy(tensor.detach()) for name, tensor in tensors.items()}


def under(tensors: Tensors, prefix: str) -> dict[str, Lazy]:
    """Those whose name begins with ``prefix``, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def listing(names: object, count: int = 8) -> str:
    """``3 (a, b, c)``, or ``40 (the first 8 and …)``: names in an error message."""
    found = sorted(str(n) for n in names) if hasattr(names, "__iter__") else []
    shown = ", ".join(found[:count])
    return f"{len(found)} ({shown}{', …' if len(found) > count else ''})"
