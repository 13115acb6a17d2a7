"""Making a network ready for fast inference on a CPU: its layers are replaced by native ones, in place."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from types import MappingProxyType
from typing import Literal

import torch
from torch import nn

from sfumato.core.errors import ConfigError
from sfumato.engine.allocator import return_freed_memory
from sfumato.nn import int8 as coarse
from sfumato.nn import native
from sfumato.nn.embeddings import TimestepEmbedding
from sfumato.nn.float8 import Float8Linear
from sfumato.nn.layers import GEGLU, Conv2d, GroupNorm, Linear
from sfumato.nn.native.shapes import direct_work, tiled_work
from sfumato.nn.transformer import FUSED, PROJECTIONS, Attention, CrossAttention

Eight = Literal["int8", "fp8"]
"""Ways to multiply in 8 bits: whole numbers (``sfumato.nn.int8``), floating-point ones (``sfumato.nn.float8``)."""

SMALL, BALANCED, LARGE, FAST = 0.0, 0.25, 0.7, inf
"""Values of ``growth``: nothing transformed; convolutions on large pictures; nearly all that gain; all that gain.

SD1.5's U-Net has 3.4 GB of weights; with the first three it has 3.4, 4.3 and 5.7 GB. On two cores its steps at 64 x 64
take the same time to 2 % with each of them.
"""

BYTE = 4.0
"""Multiplications with their additions, in float32, that a processor does while a byte of weights arrives."""

AT_ONCE = 1 << 28
"""Bytes of plain weights after which their memory goes back to the system while a network is packed."""

NARROW = 32
"""Channels: a layer with fewer, in or out, is never made to multiply in 8 bits."""

WIDE = 256
"""Channels of a head: attention of wider ones is left to PyTorch, where more queries share what they read."""


@dataclass(frozen=True)
class Packing:
    """What ``pack`` did.

    Attributes:
        layers: replaced.
        winograd: of these, convolutions with transformed weights.
        eight: of these, layers that multiply in 8 bits.
        before, after: bytes of all weights of the network.
        why: where native kernels are not used, the reason; else empty.
    """

    layers: int = 0
    winograd: int = 0
    eight: int = 0
    before: int = 0
    after: int = 0
    why: str = ""


def pack(
    network: nn.Module, growth: float = BALANCED, packed_now: Callable[[str], None] = lambda name: None,
    eight: Eight | None = None, shapes: Mapping[str, Sequence[int]] = MappingProxyType({}), side: int = 64,
) -> Packing:
    """Replace convolutions, linear layers and normalisations of a network by native ones, in place.

    Outputs stay the same to rounding (1e-5 relative). Afterwards the network can no longer be trained, saved, moved or
    cast, so adapters and checkpoints come first. Packed weights replace the plain ones, layer by layer. Where the
    native kernels or the network's device and precision do not allow it, layers stay as they are.

    Args:
        network: built from ``sfumato.nn.layers``, float32, on the CPU; or on the meta device, to see what would come.
        growth: how much larger all weights together may become, as a fraction, by transforming those of 3 x 3
            convolutions for Winograd's algorithm beforehand, where a byte saves the most time first.
        packed_now: is told the name of each layer whose plain weights are needed no more.
        eight: multiply in 8 bits, which is lossy, wherever a layer has ``NARROW`` channels or more in and out: not in
            the first and the last, nor where the text's keys and values are made. ``int8`` is for float32 on the CPU;
            without native kernels it is done in plain PyTorch, with the same result, and slower than float32. ``fp8``
            is for linear layers on any device, and fast where the chip has such products.
        shapes: of the pictures [B, C, H, W] that convolutions will be given, by the layers' names, where that is known.
        side: of the pictures that come out of the network, by which shapes are guessed where they are not known.
    """
    if growth < 0:
        raise ConfigError(f"growth = {growth}: must be 0 or more.")
    before = _size(network)
    kinds = {(p.device.type, p.dtype) for p in network.parameters()}
    exact = kinds in ({("cpu", torch.float32)}, {("meta", torch.float32)})
    fast = exact and native.available()
    why = "" if fast else native.why() if exact else "the network is not in float32 on the CPU"
    if not fast and not (eight == "fp8" or (eight and exact)):
        return Packing(before=before, after=before, why=why)
    from sfumato.nn.native import layers as packed  # only now: its operators exist once the library is loaded

    transformed = _choose(network, growth * before, shapes, side) if fast and eight != "int8" else set()
    network.eval().requires_grad_(False)
    places = Counter(module for _, module in network.named_modules(remove_duplicate=False))
    twice = {module for module, count in places.items() if count > 1}
    places.clear()  # nothing may hold on to a layer that was replaced: that would double the memory
    made: dict[nn.Module, nn.Module] = {}
    winograd = len(transformed)
    layers = eights = freed = 0

    def in_eight(layer: nn.Module) -> nn.Module | None:
        if eight == "fp8":
            if type(layer) is Linear and Float8Linear.fits(layer) and min(layer.weight.shape) >= NARROW:
                return Float8Linear(layer)
            return None
        if type(layer) is Conv2d and _regular(layer) and min(layer.in_channels, layer.out_channels) >= NARROW:
            return packed.PackedInt8Conv2d(layer) if fast else coarse.Int8Conv2d(layer)
        if type(layer) is Linear and min(layer.in_features, layer.out_features) >= NARROW:
            return packed.PackedInt8Linear(layer) if fast else coarse.Int8Linear(layer)
        if type(layer) is GEGLU and layer.proj.out_features % 64 == 0:
            return packed.PackedInt8GEGLU(layer) if fast else coarse.Int8GEGLU(layer.proj)
        return None

    def stand_in(layer: nn.Module) -> nn.Module | None:
        if not fast:
            return None
        if type(layer) is Conv2d and layer in transformed:
            transformed.remove(layer)
            return packed.WinogradConv2d(layer)
        if type(layer) is Conv2d and _regular(layer):
            return packed.PackedConv2d(layer)
        if type(layer) is Linear:
            return packed.PackedLinear(layer)
        if type(layer) is GEGLU and layer.proj.out_features % 64 == 0 and eight != "fp8":
            return packed.PackedGEGLU(layer)
        if type(layer) is GroupNorm and layer.affine:
            return packed.FusedGroupNorm(layer)
        return None

    def walk(parent: nn.Module, prefix: str) -> None:
        nonlocal layers, eights, freed
        if isinstance(parent, TimestepEmbedding):
            return  # it and the blocks' projections of time run once a schedule
        if isinstance(parent, Attention):
            parent.fuse()
            parent.native = fast and parent.width <= WIDE
        for name in [name for name, _ in parent.named_children()]:
            child: nn.Module = getattr(parent, name)
            if name == "time_emb_proj":
                continue
            of_text = isinstance(parent, CrossAttention) and name in ("to_k", "to_v")
            coarser = in_eight(child) if eight and not of_text and child not in made else None
            new = made.get(child) or coarser or stand_in(child)
            if new is None:
                walk(child, f"{prefix}{name}.")
                continue
            layers += child not in made
            eights += coarser is not None
            if child in twice:
                made[child] = new
            setattr(parent, name, new)
            freed += _size(child)
            del child
            for plain in PROJECTIONS if name == FUSED else (name,):
                packed_now(f"{prefix}{plain}")
            if freed > AT_ONCE:
                freed = give_back()

    def give_back() -> int:
        if all(device == "cpu" for device, _ in kinds):
            return_freed_memory()  # the plain weights', where they were no pages of a file
        return 0

    walk(network, "")
    give_back()
    return replace(Packing(layers, winograd, eights, before, why=why), after=_size(network))


def _size(network: nn.Module) -> int:
    return sum(t.nbytes for t in (*network.parameters(), *network.buffers()))


def _regular(layer: nn.Conv2d) -> bool:
    """Whether the native direct convolution covers it."""
    return (
        layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.stride[0] == layer.stride[1]
        and not isinstance(layer.padding, str)
        and layer.padding[0] == layer.padding[1]
        and layer.padding_mode == "zeros"
    )


def _choose(
    network: nn.Module, budget: float, shapes: Mapping[str, Sequence[int]], side: int
) -> set[nn.Module]:
    """The convolutions whose weights are to be transformed beforehand, within ``budget`` more bytes.

    The others transform theirs as they go, or take the direct sum, whichever is less work. A layer takes as long as
    its multiplications or as its weights' way from memory, whichever is more; where a byte saves the most time, it is
    spent first.
    """
    from sfumato.nn.native.layers import tileable

    offers = []
    last = getattr(network, "conv_out", None)
    channels = last.in_channels if isinstance(last, nn.Conv2d) else 320
    for order, (name, m) in enumerate(network.named_modules()):
        if type(m) is Conv2d and _regular(m) and tileable(m):
            shape = shapes.get(name) or _usual(m, side, channels)
            plain = max(min(direct_work(shape), tiled_work(shape, transformed=False)), 36 * BYTE)
            saved = plain - max(tiled_work(shape), 144 * BYTE)
            if saved > 0:
                columns = -(-m.out_channels // 32) * 32  # panels may be as wide
                offers.append((saved, order, 4 * m.in_channels * (36 * columns - 9 * m.out_channels), m))
    chosen: set[nn.Module] = set()
    for _, _, cost, layer in sorted(offers, key=lambda offer: (-offer[0], offer[1])):
        if cost > budget:
            break
        budget -= cost
        chosen.add(layer)
    return chosen


def _usual(layer: nn.Conv2d, side: int, channels: int) -> tuple[int, int, int, int]:
    """The picture that a convolution gets, about, where nobody knows: a layer does not.

    In U-Nets and autoencoders the area falls as the square of the channels rises.

    Args:
        side, channels: of the largest picture.
    """
    side = min(side, round(side * channels / layer.out_channels))
    return 2, layer.in_channels, side, side
