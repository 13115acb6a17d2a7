"""What a lossy mode is."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any, ClassVar

from sfumato.engine.denoiser import Shortcut
from sfumato.families.types import Model


@dataclass(frozen=True)
class Lossy:
    """A way to draw faster whose pictures differ: what it does to guidance, to the network's steps, to decoding.

    Attributes:
        name: its name in ``LOSSY``.
        title: what it does, in one line.
    """

    name: ClassVar[str]
    title: ClassVar[str]

    def __str__(self) -> str:
        """The name and all values, as ``read`` takes them."""
        values = (f"{value:g}" if isinstance(value, float) else str(value) for value in astuple(self))
        return ":".join([self.name, *values])

    def unfit(self, model: Model) -> str:
        """Why it cannot be used with this model; empty where it can."""
        return ""

    def guidance(self) -> Mapping[str, Any]:
        """Keyword arguments of ``guidance.build``."""
        return {}

    def shortcut(self) -> Shortcut | None:
        """What a job takes along to the network; a new one for each job."""
        return None

    def decoder(self) -> str | None:
        """The part that decodes in place of the model's own autoencoder."""
        return None
