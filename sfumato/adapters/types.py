"""What an adapter's form is, and what one use of an adapter is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor


class Form(Protocol):
    """A way to say how a layer changes.

    Attributes:
        name: its name in ``FORMS``.
        parameter: of the layer, that changes: its weight or its bias.
        endings: how a key ends -> which factor it is.
        needed: sets of factors, one of which a layer's change has to have.
    """

    name: ClassVar[str]
    parameter: ClassVar[Literal["weight", "bias"]]
    endings: ClassVar[Mapping[str, str]]
    needed: ClassVar[tuple[frozenset[str], ...]]

    @staticmethod
    def rank(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """By which alpha is divided; None: the change is not scaled.

        Args:
            shapes: of the factors.
        """

    @staticmethod
    def delta(factors: Mapping[str, Tensor], shape: torch.Size) -> Tensor:
        """What is added to the parameter, before it is scaled.

        Args:
            factors: float32.
            shape: of the parameter: of a linear layer [out, in], of a convolution [out, in, k, k].

        Raises:
            RuntimeError: the factors do not fit it, or each other.
        """


@dataclass(frozen=True)
class Wanted:
    """An adapter that a request asks for.

    Attributes:
        name: as the request has it: a path, a name on the hub, or that of a file in the folder of LoRAs.
        text: strength in the text encoders.
        denoiser: strength in the denoiser.
        tag: whether the prompt asks for it, which may name files of that folder and nothing else.
    """

    name: str
    text: float = 1.0
    denoiser: float = 1.0
    tag: bool = False

    def strength(self, part: str) -> float:
        """In a part of the model."""
        return self.text if part.startswith("text_encoder") else self.denoiser

    def __str__(self) -> str:
        numbers = [self.text] if self.text == self.denoiser else [self.text, self.denoiser]
        return ":".join([self.name, *(f"{number:g}" for number in numbers)])


@dataclass(frozen=True)
class Applied:
    """An adapter that is merged into a model.

    Attributes:
        path: of the file.
        sha256: of the file.
        short: A1111's short hash of it (AutoV3), or of the whole file where that has none.
        layers: how many it changed, by parts.
    """

    wanted: Wanted
    path: Path
    sha256: str
    short: str
    layers: Mapping[str, int]

    def note(self) -> str:
        """What the caller ought to know."""
        where = ", ".join(f"{count} layers of {part}" for part, count in self.layers.items())
        name = Path(self.wanted.name).name.removesuffix(self.path.suffix)
        return f"LoRA {name} at {str(self.wanted).removeprefix(f'{self.wanted.name}:')}: {where or 'nothing'}."
