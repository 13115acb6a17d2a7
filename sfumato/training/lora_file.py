"""A trained LoRA as a file, and what its header says to other programs."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.adapters.trained import ABOUT
from sfumato.adapters.write import Pair, write
from sfumato.checkpoints.hashes import file_hashes
from sfumato.checkpoints.hub import locate
from sfumato.checkpoints.layer_names import Layer
from sfumato.core.config import to_dict
from sfumato.core.version import VERSION
from sfumato.families.load import digest, find
from sfumato.training.lora import LoraConfig
from sfumato.training.recipe import DiffusionStage, Recipe
from sfumato.training.start import Start

BASES = {768: {"ss_base_model_version": "sd_v1", "ss_v2": "False"},
         1024: {"ss_base_model_version": "sd_v2", "ss_v2": "True"}}  # fmt: skip
"""Width of the text states -> how kohya's headers name the model. Other models have no name there."""


def put(path: Path, weights: Mapping[str, Tensor], parts: Mapping[str, str], config: LoraConfig,
        about: Mapping[str, str]) -> None:  # fmt: skip
    """Write the factors of a denoiser in training.

    Args:
        weights: ``unet.LAYER.lora.down.weight`` [r, …] and ``….up.weight`` [out, r, …].
        parts: the first part of these names -> that part's name in a model folder.
        about: see ``header``.
    """
    roles: dict[Layer, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        network, _, rest = name.partition(".")
        layer, _, role = rest.removesuffix(".weight").rpartition(".lora.")
        roles.setdefault(Layer(parts[network], layer), {})[role] = tensor
    write(path, {layer: Pair(**pair) for layer, pair in roles.items()}, config.strength, config.format, about)


def header(recipe: Recipe, stage: DiffusionStage, start: Start, step: int) -> dict[str, str]:
    """What kohya's header has and other programs look for, and everything about the run as JSON.

    Args:
        stage: the recipe's, with the settings that follow from the model.
    """
    config, train = stage.lora, stage.train
    assert config is not None
    base = _base(start.source)
    size = recipe.data.resolution
    found: dict[str, Any] = {
        "ss_network_module": "networks.lora", "ss_network_dim": config.rank, "ss_network_alpha": config.strength,
        "ss_output_name": recipe.name, "ss_sd_model_name": start.source, "ss_seed": recipe.seed, "ss_steps": step,
        "ss_max_train_steps": train.steps, "ss_learning_rate": train.rate.learning_rate,
        "ss_optimizer": train.optimizer, "ss_mixed_precision": train.precision, "ss_resolution": f"({size}, {size})",
        **({"ss_network_args": json.dumps({"conv_dim": config.rank, "conv_alpha": config.strength})}
           if "convolution" in config.targets else {}),
        **({} if stage.unet is None else BASES.get(stage.unet.cross_attention_dim, {})),
        **({"ss_sd_model_hash": base["autov1"], "ss_new_sd_model_hash": base["sha256"]} if "autov1" in base else {}),
    }
    told = {"sfumato": VERSION, "base": start.source, "base_hashes": base, "step": step, "recipe": to_dict(recipe)}
    return {key: str(value) for key, value in found.items()} | {ABOUT: json.dumps(told, ensure_ascii=False)}


@cache
def _base(source: str) -> Mapping[str, str]:
    """The hashes by which the model is known: of a single file, A1111's; of a folder, that of all its tensors."""
    path = locate(source)
    if path.is_file():
        hashes = file_hashes(path)
        return {"sha256": hashes.sha256, "autov1": hashes.autov1}
    return {"tensors": digest(find(source).parts)}
