"""What a network is told beside the noisy picture and the time."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

KeysValues = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class Conditioning:
    """Rows of conditions, row i for picture i. A network reads the fields that its config names and no others.

    Attributes:
        context: [B, L, D] text states for cross-attention.
        context_mask: [B, L] bool, True where ``context`` is to be attended; None: everywhere.
        pooled: [B, P] one vector a prompt (SDXL's pooled text, unCLIP's image embedding).
        sizes: [B, S] numbers embedded as sinusoids beside ``pooled`` (SDXL: original size, crop, target size).
        labels: [B] integer classes, or the noise level of an upscaler's low-resolution picture.
        guidance: [B] the guidance scale, 1 for none, of networks that were taught to guide themselves (LCM).
        concat: [B, C', H, W] channels that stand beside the noisy ones at the network's input (mask, depth, low-res).
        control: [B, C', H, W] what a control network made of its picture, the same for all conditions of a picture;
            None: it has no say.
        control_scale: [B] how much say it has.
        keys_values: what ``network.prepare`` made of ``context``: keys and values of every cross-attention, in the
            order in which the network runs them.
    """

    context: Tensor | None = None
    context_mask: Tensor | None = None
    pooled: Tensor | None = None
    sizes: Tensor | None = None
    labels: Tensor | None = None
    guidance: Tensor | None = None
    concat: Tensor | None = None
    control: Tensor | None = None
    control_scale: Tensor | None = None
    keys_values: KeysValues | None = None

    def __len__(self) -> int:
        """The number of rows; 0 where nothing is conditioned on."""
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                return len(value)
        return len(self.keys_values[0][0]) if self.keys_values else 0

    def map(self, change: Any) -> "Conditioning":
        """A copy in which ``change`` was applied to every tensor."""
        changed: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                changed[f.name] = change(value)
            elif value is not None:
                changed[f.name] = tuple((change(k), change(v)) for k, v in value)
        return replace(self, **changed)

    def rows(self, index: slice | Sequence[int]) -> "Conditioning":
        """The rows named by ``index``."""
        return self.map(lambda tensor: tensor[index if isinstance(index, slice) else list(index)])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Conditioning":
        """On that device; floating-point fields in that precision."""
        return self.map(lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype))

    def signature(self) -> tuple[Any, ...]:
        """Equal for conditionings whose rows can stand in one batch."""
        found: list[Any] = []
        for f in fields(self):
            value = getattr(self, f.name)
            shape = tuple(value.shape[1:]) if isinstance(value, Tensor) else None
            found.append(tuple(tuple(k.shape[1:]) for k, _ in value) if f.name == "keys_values" and value else shape)
        return tuple(found)

    @staticmethod
    def cat(parts: "Sequence[Conditioning]") -> "Conditioning":
        """All rows of all parts, which must have the same signature."""
        if len(parts) == 1:
            return parts[0]
        joined: dict[str, Any] = {}
        for f in fields(Conditioning):
            values = [getattr(part, f.name) for part in parts]
            if isinstance(values[0], Tensor):
                joined[f.name] = torch.cat(values)
            elif values[0] is not None:
                layers = zip(*values, strict=True)
                joined[f.name] = tuple(
                    (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in layers
                )
        return Conditioning(**joined)
