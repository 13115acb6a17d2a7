"""Numbers on their way from the device: asked for at once, read when they have come, so that no step waits for them."""

import torch
from torch import Tensor


class Late:
    """A few numbers of one step.

    Args:
        numbers: [N] on the device that computes them.
    """

    def __init__(self, numbers: Tensor) -> None:
        self.arrived: torch.cuda.Event | None = None
        self.numbers = numbers
        if numbers.is_cuda:
            # Only memory that stays in its place is copied to while the processor goes on.
            self.numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self.numbers.copy_(numbers, non_blocking=True)
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.arrived.record()

    def read(self) -> list[float]:
        """Wait until they have come."""
        if self.arrived is not None:
            self.arrived.synchronize()
        found: list[float] = self.numbers.tolist()
        return found
