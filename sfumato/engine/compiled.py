"""Compiling a denoiser with PyTorch's own compiler, whose results are kept on disk from one process to the next."""

import os
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import nn

from sfumato.core.errors import ConfigError
from sfumato.core.files import cache_folder
from sfumato.families.types import TINY, Model
from sfumato.models.dit import positions
from sfumato.nn.attention import is_tapped
from sfumato.nn.merging import is_merging

Mode = Literal["default", "max-autotune"]
"""``max-autotune`` tries several kernels for each product, which takes many minutes. In either a GPU is given a step's
kernels as one (see ``engine.recorded``)."""

KEPT_IN = "TORCHINDUCTOR_CACHE_DIR"


def compile_denoiser(model: Model, mode: Mode) -> None:
    """From now on the denoiser's forward is compiled when it is first called with inputs of a shape; exact to rounding.

    The first call takes minutes, and for every new size and number of pictures again. What was compiled is kept in
    ``$TORCHINDUCTOR_CACHE_DIR``, which is ``inductor`` in the project's cache folder unless it is set, so that the next
    process finds it. Its module stays the same, with its weights and its names. While a tap hears the attentions, and
    while tokens are merged, it runs as it is written.

    Raises:
        ConfigError: its layers were packed for the CPU already.
    """
    if model.family.denoiser not in model.files or model.family.denoiser in model.packed:
        raise ConfigError(
            "compile comes too late: the denoiser's layers were packed or changed. Open the model with it."
        )
    os.environ.setdefault(KEPT_IN, str(cache_folder() / "inductor"))
    # Else they are made anew in each call, and not on the device.
    torch.compiler.assume_constant_result(positions)  # type: ignore[no-untyped-call]
    _compile(model.network, mode)
    _step_aside(model.network)
    model.opened = {**model.opened, "compile": mode}  # a picture's recipe tells it
    note = f"Compiled ({mode}): the first picture of each size takes minutes more, once a machine."
    if note not in model.notes:
        model.notes.append(note)


def compile_decoders(model: Model, mode: Mode) -> None:
    """The same of what decodes."""
    for name in ("vae", TINY):
        if name in model.parts:
            _compile(model.parts[name].get_submodule("decoder"), mode)


def _compile(network: nn.Module, mode: Mode) -> None:
    network.compile(mode="max-autotune-no-cudagraphs" if mode == "max-autotune" else None, dynamic=False)


def _step_aside(network: nn.Module) -> None:
    """Leave calls that are listened to, or changed from outside, to the network as it is written.

    What is asked here cannot be asked within: it would cut the network into one graph for each of its attentions.
    """
    fast = cast(Callable[..., Any], network._compiled_call_impl)

    def call(*inputs: Any, **named: Any) -> Any:
        return (network._call_impl if is_tapped() or is_merging() else fast)(*inputs, **named)  # type: ignore[no-untyped-call]

    network._compiled_call_impl = call
