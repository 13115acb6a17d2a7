"""What an adapter does to one tensor of a model, whatever its form."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.adapters import dora
from sfumato.adapters.types import Form
from sfumato.checkpoints.layer_names import Layer
from sfumato.checkpoints.lazy import Lazy

ENDINGS = {".alpha": "alpha", **dora.ENDINGS}
"""How keys end in files of all forms -> which factor it is."""


@dataclass(frozen=True)
class Change:
    """Of one layer.

    Attributes:
        factors: the form's, and those of ``ENDINGS``.
        scale: of the change, where the file's settings tell; else ``alpha`` over the rank.
    """

    layer: Layer
    form: type[Form]
    factors: Mapping[str, Lazy]
    scale: float | None = None

    @property
    def name(self) -> str:
        """Of the tensor that is changed, within its part."""
        return f"{self.layer.name}.{self.form.parameter}"

    def made(self, weight: Tensor, factors: Mapping[str, Tensor], strength: float) -> Tensor:
        """The tensor with the change.

        Args:
            weight: float32; it stays as it is.
            factors: float32.
            strength: 0 leaves the tensor as it is, 1 is what was trained.

        Raises:
            RuntimeError: the factors do not fit the weight, or each other.
        """
        scale: Tensor | float = 1.0 if self.scale is None else self.scale
        rank = self.form.rank({role: tuple(tensor.shape) for role, tensor in factors.items()})
        if self.scale is None and "alpha" in factors and rank is not None:
            scale = factors["alpha"] / rank
        delta = self.form.delta(factors, weight.shape)
        if dora.learned(factors):
            return torch.lerp(weight, dora.decomposed(weight + scale * delta, factors), strength)
        return weight + strength * scale * delta
