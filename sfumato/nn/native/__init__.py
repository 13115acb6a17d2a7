"""Native kernels, float32 and int8, for CPUs, and the layers that use them.

``available()`` says whether they can be used here and ``why()`` in words. For inference ``sfumato.engine.pack`` puts
them into a network; in training its layers ask for them (``training``). Where they cannot be used a network stays as it
is, in plain PyTorch, with the same result.
"""

from sfumato.nn.native.build import available, why, why_half, why_int8

__all__ = ["available", "why", "why_half", "why_int8"]
