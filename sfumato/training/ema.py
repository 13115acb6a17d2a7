"""Averages of the weights over the course of training, which draw better than the last weights do."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from sfumato.core.errors import CheckpointError, ConfigError
from sfumato.training.posthoc import exponent
from sfumato.training.sharded import like


@dataclass(frozen=True)
class EmaConfig:
    """How the weights are averaged."""

    kind: Annotated[Literal["none", "constant", "warmup", "power"], "how the decay runs; power: EDM2's profile"] = (
        "warmup"
    )
    decay: Annotated[float, "of constant and warmup: the share of the old average that a step keeps"] = 0.9999
    widths: Annotated[
        tuple[float, ...], "of power: the spread of each average as a share of the training so far; the first draws",
    ] = (0.05, 0.10)

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"decay = {self.decay}: must be from 0 to below 1.")
        if not self.widths or not all(0 < w < 0.28 for w in self.widths):
            raise ConfigError(f"widths = {self.widths}: at least one, each above 0 and below 0.28.")


class Ema:
    """Averages of one network's parameters, in float32 on its device; buffers are copied.

    Attributes:
        averages: one table of tensors for each width; a single one unless the kind is ``power``.
    """

    def __init__(self, network: nn.Module, config: EmaConfig) -> None:
        self.config = config
        count = {"none": 0, "power": len(config.widths)}.get(config.kind, 1)
        self.exponents = [exponent(width) for width in config.widths] if config.kind == "power" else []
        self.averages: list[dict[str, Tensor]] = [
            {name: _float(tensor).detach().clone() for name, tensor in network.state_dict().items()}
            for _ in range(count)
        ]

    def decay(self, step: int, which: int = 0) -> float:
        """The share of the old average that optimiser step ``step`` (counted from 1) keeps."""
        if self.config.kind == "power":  # Karras et al., EDM2, 2024, eq. 127
            return float((1.0 - 1.0 / step) ** (self.exponents[which] + 1.0))
        if self.config.kind == "warmup":
            return min(self.config.decay, (1.0 + step) / (10.0 + step))
        return self.config.decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after optimiser step ``step``, counted from 1."""
        for which, average in enumerate(self.averages):
            kept = self.decay(step, which)
            parameters = dict(network.named_parameters())
            mine = [average[name] for name in parameters]
            torch._foreach_lerp_(mine, [_float(p.detach()) for p in parameters.values()], 1.0 - kept)
            for name, buffer in network.state_dict().items():
                if name not in parameters:
                    average[name].copy_(buffer)

    def tensors(self) -> dict[str, Tensor]:
        """All averages as one table, ``"0.conv_in.weight"`` and so on."""
        return {f"{i}.{name}": t for i, average in enumerate(self.averages) for name, t in average.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``tensors``.

        Raises:
            CheckpointError: averages of another network or another config.
        """
        mine = self.tensors()
        if mine.keys() != tensors.keys():
            raise CheckpointError("The averaged weights of the checkpoint are of another network or another recipe.")
        for name, tensor in mine.items():
            tensor.copy_(like(tensors[name], tensor))

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """What to draw with: the first average, or the network's own weights where nothing is averaged."""
        return self.averages[0] if self.averages else dict(network.state_dict())

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """While open, the network has the averaged weights."""
        if not self.averages:
            yield
            return
        own = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        network.load_state_dict(self.averages[0])
        try:
            yield
        finally:
            network.load_state_dict(own)


def _float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
