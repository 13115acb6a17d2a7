"""Compiling a denoiser with PyTorch's own compiler, whose results are kept on disk from one process to the next."""

import os
from typing import Literal

from sfumato.core.errors import ConfigError
from sfumato.core.files import cache_folder
from sfumato.families.types import Model

Mode = Literal["default", "reduce-overhead", "max-autotune"]
"""``torch.compile``'s: ``reduce-overhead`` replays the kernels of a step as one CUDA graph where it can."""

KEPT_IN = "TORCHINDUCTOR_CACHE_DIR"


def compile_denoiser(model: Model, mode: Mode) -> None:
    """From now on the denoiser's forward is compiled when it is first called with inputs of a shape; exact to rounding.

    The first call takes minutes, and for every new size and number of pictures again. What was compiled is kept in
    ``$TORCHINDUCTOR_CACHE_DIR``, which is ``inductor`` in the project's cache folder unless it is set, so that the next
    process finds it. Its module stays the same, with its weights and its names.

    Raises:
        ConfigError: its layers were packed for the CPU already.
    """
    if model.family.denoiser not in model.files or model.family.denoiser in model.packed:
        raise ConfigError(
            "compile comes too late: the denoiser's layers were packed or changed. Open the model with it."
        )
    os.environ.setdefault(KEPT_IN, str(cache_folder() / "inductor"))
    model.network.compile(mode=mode, dynamic=False)
    model.opened = {**model.opened, "compile": mode}  # a picture's recipe tells it
    note = f"The denoiser is compiled ({mode}): the first picture of each size takes minutes more, once a machine."
    if note not in model.notes:
        model.notes.append(note)
