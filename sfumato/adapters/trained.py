"""The folder of a LoRA that was trained here: it holds what changes a model, and names the model."""

import json
from pathlib import Path
from typing import NamedTuple

from sfumato.checkpoints.store import open_file
from sfumato.core.errors import CheckpointError

FILE = "lora.safetensors"
"""What a run of training leaves."""

ABOUT = "sfumato"
"""Entry of the file's header: how it was trained, as JSON."""


class Trained(NamedTuple):
    """A trained LoRA.

    Attributes:
        base: the model that it changes, as the recipe names it.
    """

    file: Path
    base: str


def trained(folder: Path) -> Trained | None:
    """What a folder holds, if it is a LoRA's and no model's.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = folder / FILE
    if (folder / "model_index.json").exists() or not file.is_file():
        return None
    try:
        return Trained(file, str(json.loads(open_file(file).metadata[ABOUT])["base"]))
    except (KeyError, TypeError, ValueError):
        return None  # somebody else's file of that name


def refuse_trained(folder: Path) -> None:
    """Say how to draw with the folder of a LoRA, where it is given as a model.

    Raises:
        CheckpointError: it is one.
    """
    if (found := trained(folder)) is not None:
        raise CheckpointError(
            f"{folder} holds a LoRA and no model: it changes {found.base}. Draw with "
            f"--model {found.base} --lora {found.file}"
        )
