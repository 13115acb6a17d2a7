"""Writing LoRA files, in the names that other programs look for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sfumato.adapters.file import HEADER
from sfumato.checkpoints.layer_names import NAMINGS, Layer, spell
from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.write import save_file

Format = Literal["kohya", "peft"]


class Pair(NamedTuple):
    """The factors of a layer's change, ``alpha / rank * up @ down``."""

    down: Tensor  # [r, in] or, of a convolution, [r, in, k, k]
    up: Tensor  # [out, r] or [out, r, 1, 1]


def write(path: Path, layers: Mapping[Layer, Pair], alpha: float, form: Format, about: Mapping[str, str]) -> None:
    """Write one LoRA.

    Args:
        layers: what it changes.
        alpha: of all of them.
        form: kohya's names (Stable Diffusion's programs all read them), or peft's as diffusers writes them.
        about: more entries of the header.

    Raises:
        CapacityError, CheckpointError: see ``atomic_file``.
    """
    tensors, header = (_kohya if form == "kohya" else _peft)(layers, alpha)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(path, lazy_all(contiguous), {**header, **about})


def _kohya(layers: Mapping[Layer, Pair], alpha: float) -> tuple[dict[str, Tensor], dict[str, str]]:
    made: dict[str, Tensor] = {}
    for layer, (down, up) in layers.items():
        stem = spell(NAMINGS["kohya"], layer)
        made |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(alpha)}
    return made, {}


def _peft(layers: Mapping[Layer, Pair], alpha: float) -> tuple[dict[str, Tensor], dict[str, str]]:
    made: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    for layer, (down, up) in layers.items():
        stem = spell(NAMINGS["diffusers"], layer)
        made |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
        settings |= {f"{layer.part}.r": len(down), f"{layer.part}.lora_alpha": alpha}
        # peft looks for layers whose name ends so; transformers 5 leaves the tower's own name out.
        settings.setdefault(f"{layer.part}.target_modules", []).append(layer.name.removeprefix("text_model."))
    return made, {HEADER: json.dumps(settings, sort_keys=True)}
