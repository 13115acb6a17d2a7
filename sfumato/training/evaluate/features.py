"""Networks in whose features sets of pictures are compared, from given weights: Inception, DINOv2."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints.lazy import Lazy
from sfumato.checkpoints.load import load_into
from sfumato.checkpoints.store import open_file
from sfumato.core.config import from_dict, read_json
from sfumato.core.errors import CheckpointError, ConfigError
from sfumato.models.dino import Dino, DinoConfig, preprocess
from sfumato.models.inception import Inception
from sfumato.training.framing import to_network

BATCH = 64


class Given:
    """Pictures to features.

    Args:
        path: a file of Inception's weights, as ``pt_inception-2015-12-05`` has them; or a folder of DINOv2's, as
            transformers has them (config.json beside model.safetensors).

    Raises:
        CheckpointError: it is neither.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.device = device
        self.network: Callable[[Tensor], Tensor]
        if path.is_dir():
            dino = open_dino(path, device)
            self.network, self.name = (lambda x: dino(preprocess(x))), f"DINOv2 {path}"
        else:
            self.network, self.name = open_inception(path, device), f"Inception {path}, last pool"

    @torch.inference_mode()
    def pictures(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] uint8 -> [N, D]."""
        parts = torch.split(pixels, BATCH)
        return torch.cat([self.network(to_network(part.to(self.device))).cpu() for part in parts])


def open_inception(path: Path, device: torch.device) -> Inception:
    """Without the layer of classes."""
    kept: dict[str, Lazy] = {
        name: tensor for name, tensor in open_file(path).tensors.items()
        if not name.startswith(("fc.", "AuxLogits.")) and not name.endswith("num_batches_tracked")
    }  # fmt: skip
    return load_into(Inception, kept, str(path), dtype=torch.float32, device=device)


def open_dino(folder: Path, device: torch.device) -> Dino:
    """A folder's DINOv2; those with registers, and the giant with its gated layers, are other networks."""
    try:
        said: dict[str, Any] = read_json(folder / "config.json")
    except ConfigError as problem:
        raise CheckpointError(str(problem)) from None
    if said.get("model_type") != "dinov2" or said.get("use_swiglu_ffn"):
        raise CheckpointError(
            f"{folder} is a {said.get('model_type')!r}{' with gated layers' if said.get('use_swiglu_ffn') else ''}: "
            "features are taken from a dinov2 of sizes S, B or L without registers, or from a file of Inception."
        )
    names = {field.name for field in fields(DinoConfig)}
    config = from_dict(DinoConfig, {name: value for name, value in said.items() if name in names}, str(folder))
    tensors = open_file(folder / "model.safetensors").tensors
    return load_into(lambda: Dino(config), tensors, str(folder), dtype=torch.float32, device=device)
