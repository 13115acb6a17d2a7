"""Training by low-rank adaptation (Hu et al., 2021): a network that stays as it is, and factors beside its layers."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from torch import Tensor, nn

from sfumato.adapters.write import Format
from sfumato.checkpoints.lazy import listing
from sfumato.core.errors import ConfigError, nearest

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
"""How the names of attentions' layers end, in denoisers and in text encoders."""

KINDS: Mapping[str, Callable[[str, nn.Module], bool]] = {
    "attention": lambda name, layer: name.endswith(tuple(f".{end}" for end in PROJECTIONS)),
    "linear": lambda name, layer: isinstance(layer, nn.Linear),
    "convolution": lambda name, layer: isinstance(layer, nn.Conv2d),
}
"""Targets that are no patterns: name and layer -> whether it is one."""


@dataclass(frozen=True)
class LoraConfig:
    """What is trained in place of the network."""

    rank: Annotated[int, "of a layer's change: how many numbers pass from one factor to the other"] = 8
    alpha: Annotated[float | None, "the change is scaled by alpha / rank; None: by 1"] = None
    targets: Annotated[
        tuple[str, ...], "the denoiser's layers: attention, linear, convolution, or patterns of names as mid_block.*",
    ] = ("attention",)
    dropout: Annotated[float, "0 to below 1: the share of a layer's input that its factors are not shown"] = 0.0
    text: Annotated[bool, "the text encoder's layers learn too"] = False
    text_targets: Annotated[tuple[str, ...], "which of them"] = ("attention",)
    text_rate: Annotated[float, "their learning rate, as a share of the denoiser's"] = 1.0
    format: Annotated[Format, "whose names lora.safetensors has: kohya, which all programs read, or peft"] = "kohya"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora.rank = {self.rank}: must be at least 1.")
        if self.alpha is not None and not self.alpha > 0:
            raise ConfigError(f"lora.alpha = {self.alpha}: must be above 0.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout = {self.dropout}: must be from 0 to below 1.")
        if not self.text_rate > 0:
            raise ConfigError(f"lora.text_rate = {self.text_rate}: must be above 0; text = false leaves the texts out.")

    @property
    def strength(self) -> float:
        """``alpha``, whether or not it was given."""
        return float(self.rank if self.alpha is None else self.alpha)


class Factors(nn.Module):
    """What is added to a layer's answer: ``alpha / rank * up(down(x))`` (ibid., eq. 3).

    A convolution's first factor has its kernel, the second is 1 x 1. In the beginning nothing is added: ``up`` is zero
    (ibid., section 4.1).
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, config: LoraConfig) -> None:
        super().__init__()
        rank = config.rank
        self.down: nn.Module
        self.up: nn.Module
        if isinstance(layer, nn.Conv2d):
            self.down = nn.Conv2d(
                layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, layer.dilation,  # type: ignore[arg-type]
                bias=False, padding_mode=layer.padding_mode,
            )
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)
        self.dropout = nn.Dropout(config.dropout)
        self.scale = config.strength / rank

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] or [..., in] -> [B, out, H', W'] or [..., out]."""
        y: Tensor = self.up(self.down(self.dropout(x)))
        return self.scale * y


def attach(network: nn.Module, config: LoraConfig, targets: Iterable[str], what: str) -> None:
    """Freeze a network, and put factors beside those of its layers that the targets name, as ``LAYER.lora``.

    Args:
        targets: names in ``KINDS``, or patterns of layers' names (``*``, ``?``, ``[ab]``).
        what: the network, for messages.

    Raises:
        ConfigError: a target that names no layer.
    """
    freeze(network)
    layers = {
        name: module for name, module in network.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }
    chosen: set[str] = set()
    for target in targets:
        holds = KINDS.get(target, lambda name, layer, target=target: fnmatchcase(name, target))
        found = {name for name, layer in layers.items() if holds(name, layer)}
        if not found:
            raise ConfigError(
                f"lora: {target!r} names no layer of the {what}{nearest(target, KINDS)} Name {', '.join(KINDS)}, or a "
                f"pattern of its layers' names: {listing(layers)}."
            )
        chosen |= found
    if not chosen:
        raise ConfigError(f"lora: no layers of the {what} are named, so it would learn nothing.")
    for name, layer in layers.items():  # random numbers are drawn in the network's order, whatever that of the targets
        if name in chosen:
            layer.add_module("lora", Factors(layer, config))
            layer.register_forward_hook(_add)


def freeze(network: nn.Module) -> None:
    """Make parameters plain tensors: they are moved with the network, and neither learned, averaged nor saved."""
    for module in network.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)


def _add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    added: Tensor = layer.lora(inputs[0])  # type: ignore[operator]
    return output + added
