"""Making a network ready for fast inference on a CPU: its layers are replaced by native ones, in place."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import nn

from sfumato.core.errors import ConfigError
from sfumato.engine.allocator import return_freed_memory
from sfumato.nn import int8 as coarse
from sfumato.nn import native
from sfumato.nn.embeddings import TimestepEmbedding
from sfumato.nn.layers import GEGLU, Conv2d, GroupNorm, Linear
from sfumato.nn.transformer import CrossAttention

SMALL, BALANCED, LARGE, FAST = 0.0, 0.25, 0.7, inf
"""Values of ``growth``: nothing transformed; convolutions on large pictures; nearly all that gain; every one.

SD1.5's U-Net has 3.4 GB of weights; with these it has 3.4, 4.3, 5.8 and 9.7 GB. The last is for small networks.
"""

NARROW = 32
"""Channels: a layer with fewer, in or out, is never made to multiply in 8 bits."""


@dataclass(frozen=True)
class Packing:
    """What ``pack`` did.

    Attributes:
        layers: replaced.
        winograd: of these, convolutions with transformed weights.
        int8: of these, layers that multiply in 8 bits.
        before, after: bytes of all weights of the network.
        why: where native kernels are not used, the reason; else empty.
    """

    layers: int = 0
    winograd: int = 0
    int8: int = 0
    before: int = 0
    after: int = 0
    why: str = ""


def pack(
    network: nn.Module, growth: float = BALANCED, packed_now: Callable[[str], None] = lambda name: None,
    int8: bool = False,
) -> Packing:
    """Replace convolutions, linear layers and normalisations of a network by native ones, in place.

    Outputs stay the same to rounding (1e-5 relative). Afterwards the network can no longer be trained, saved, moved or
    cast, so adapters and checkpoints come first. Packed weights replace the plain ones, layer by layer. Where the
    native kernels or the network's device and precision do not allow it, the network stays as it is.

    Args:
        network: built from ``sfumato.nn.layers``, float32, on the CPU.
        growth: how much larger all weights together may become, as a fraction, by transforming those of 3 x 3
            convolutions for Winograd's algorithm, where a byte saves the most multiplications first.
        packed_now: is told the name of each layer whose plain weights are needed no more.
        int8: multiply in 8 bits, which is lossy (``sfumato.nn.int8``), wherever a layer has ``NARROW`` channels or more
            in and out: not in the first and the last, nor where the text's keys and values are made. Without native
            kernels this is done in plain PyTorch, with the same result, and slower than float32.
    """
    if growth < 0:
        raise ConfigError(f"growth = {growth}: must be 0 or more.")
    before = _size(network)
    kinds = {(p.device.type, p.dtype) for p in network.parameters()}
    if kinds != {("cpu", torch.float32)}:
        return Packing(before=before, after=before, why="the network is not in float32 on the CPU")
    fast = native.available()
    why = "" if fast else native.why()
    if not fast and not int8:
        return Packing(before=before, after=before, why=why)
    from sfumato.nn.native import layers as packed  # only now: its operators exist once the library is loaded

    transformed = {} if int8 else _choose(network, growth * before)
    network.eval().requires_grad_(False)
    places = Counter(module for _, module in network.named_modules(remove_duplicate=False))
    twice = {module for module, count in places.items() if count > 1}
    places.clear()  # nothing may hold on to a layer that was replaced: that would double the memory
    made: dict[nn.Module, nn.Module] = {}
    winograd = len(transformed)
    layers = eights = 0

    def in_eight(layer: nn.Module) -> nn.Module | None:
        if type(layer) is Conv2d and _regular(layer) and min(layer.in_channels, layer.out_channels) >= NARROW:
            convolution = coarse.Int8Conv2d(layer)
            return packed.PackedInt8Conv2d(convolution) if fast else convolution
        if type(layer) is Linear and min(layer.in_features, layer.out_features) >= NARROW:
            linear = coarse.Int8Linear(layer)
            return packed.PackedInt8Linear(linear) if fast else linear
        if type(layer) is GEGLU and layer.proj.out_features % 64 == 0:
            geglu = coarse.Int8GEGLU(layer.proj)
            return packed.PackedInt8GEGLU(geglu) if fast else geglu
        return None

    def stand_in(layer: nn.Module) -> nn.Module | None:
        if not fast:
            return None
        if type(layer) is Conv2d and layer in transformed:
            return packed.WinogradConv2d(layer, transformed.pop(layer))
        if type(layer) is Conv2d and _regular(layer):
            return packed.PackedConv2d(layer)
        if type(layer) is Linear:
            return packed.PackedLinear(layer)
        if type(layer) is GEGLU and layer.proj.out_features % 64 == 0:
            return packed.PackedGEGLU(layer)
        if type(layer) is GroupNorm and layer.affine:
            return packed.FusedGroupNorm(layer)
        return None

    def walk(parent: nn.Module, prefix: str) -> None:
        nonlocal layers, eights
        if isinstance(parent, TimestepEmbedding):
            return  # it and the blocks' projections of time run once a schedule
        for name in [name for name, _ in parent.named_children()]:
            child: nn.Module = getattr(parent, name)
            if name == "time_emb_proj":
                continue
            of_text = isinstance(parent, CrossAttention) and name in ("to_k", "to_v")
            eight = in_eight(child) if int8 and not of_text and child not in made else None
            new = made.get(child) or eight or stand_in(child)
            if new is None:
                walk(child, f"{prefix}{name}.")
                continue
            layers += child not in made
            eights += eight is not None
            if child in twice:
                made[child] = new
            setattr(parent, name, new)
            packed_now(f"{prefix}{name}")

    walk(network, "")
    report = Packing(layers, winograd, eights, before, why=why)
    return_freed_memory()  # the plain weights'
    return replace(report, after=_size(network))


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


def _choose(network: nn.Module, budget: float) -> dict[nn.Module, int]:
    """The convolutions whose weights are to be transformed and for which tile, within ``budget`` more bytes.

    What a byte saves is proportional to the picture's area, which a layer does not know. But in U-Nets and autoencoders
    the area falls as the square of the channels rises, so that the product of channels stands for it.
    """
    offers = []
    for order, m in enumerate(network.modules()):
        if type(m) is Conv2d and _regular(m) and m.in_channels % 16 == 0 and (
            (m.kernel_size, m.stride, m.padding) == ((3, 3), (1, 1), (1, 1))
        ):
            columns = -(-m.out_channels // 32) * 32  # panels may be as wide
            small, large = (4 * m.in_channels * (points * columns - 9 * m.out_channels) for points in (16, 36))
            area = 1 / (m.in_channels * m.out_channels)
            # Of the direct sum's multiplications tiles of 2 save 5/9, tiles of 4 save 3/4.
            offers.append((area * (5 / 9) / 7, order, 2, small, m))
            offers.append((area * (3 / 4 - 5 / 9) / 20, order, 4, large - small, m))
    chosen: dict[nn.Module, int] = {}
    for _, _, tile, cost, layer in sorted(offers, key=lambda offer: (-offer[0], offer[1])):
        if cost > budget:
            break
        budget -= cost
        chosen[layer] = tile
    return chosen
