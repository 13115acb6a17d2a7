"""The inner layers of a network, which change little from one step to the next and can be left out for some."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Deep:
    """What a network's inner layers gave: taken from a forward that runs them, given to one that does not.

    A network that takes one says what its inner layers are and what it keeps of them: a U-Net the picture that they
    hand up, a transformer what they add.

    Attributes:
        outer: how many layers at the network's ends are not inner ones.
        value: [R, ...]; a forward that finds None runs all layers and puts it here.
    """

    outer: int
    value: Tensor | None = None

    def pass_through(self, inner: Tensor) -> Tensor:
        """Called where the inner layers end, with what they gave if they ran: what goes on from there."""
        if self.value is None:
            self.value = inner
        return self.value
