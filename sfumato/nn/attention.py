"""The one attention function, and the tap by which its maps can be read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.nn.native import training

Tap = Callable[[Tensor, Tensor, str], None]
"""Is told queries [B, heads, N, d], keys [B, heads, L, d] and the name of the place that attends."""

_tap: ContextVar[Tap | None] = ContextVar("attention_tap", default=None)


@contextmanager
def tapped(tap: Tap) -> Iterator[None]:
    """While open, ``tap`` hears every attention of this thread that has a name."""
    token = _tap.set(tap)
    try:
        yield
    finally:
        _tap.reset(token)


def is_tapped() -> bool:
    """Whether a tap hears this thread's attentions: then a compiled network has to run as it is written."""
    return _tap.get() is not None


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False, scale: float | None = None,
    name: str = "", native: bool = False,
) -> Tensor:
    """softmax(q k^T * scale + mask) v (Vaswani et al., 2017, eq. 1).

    Args:
        q: [B, heads, N, d]; k, v: [B, heads, L, d].
        mask: broadcastable to [B, heads, N, L]; bool (True attends) or added to the logits.
        scale: 1 / sqrt(d) unless given.
        name: where in the network this is, for the tap; without a name the tap is not told.
        native: by the native kernel, if there is no mask; the caller knows that it is there, and wants no gradients.

    Returns:
        [B, heads, N, d].
    """
    tap = None if torch.compiler.is_compiling() else _tap.get()  # see `is_tapped`
    if tap is not None and name:
        tap(q, k, name)
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return _wide(q, k, v, mask, causal, scale)
    return _attend(q, k, v, mask, causal, scale, native)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None, native: bool = False
) -> Tensor:
    if mask is None and not causal and (native or training.learns(q, k, v)):
        return training.attention(q, k, v, scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)


def _wide(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """In float32, whatever mixed precision says: a CPU takes 4 to 15 times as long for the gradient in bfloat16."""
    with torch.autocast("cpu", enabled=False):
        if mask is not None and mask.is_floating_point():
            mask = mask.float()
        return _attend(q.float(), k.float(), v.float(), mask, causal, scale).to(v.dtype)
