"""LoRA files of random numbers for tiny models, in every naming that people have them in."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from sfumato.checkpoints.keymap import names
from sfumato.checkpoints.ldm import unet_rows
from sfumato.models.unet import UNetConfig

RANK, ALPHA = 3, 1.5
ATTENTION = ("attn1.to_q", "attn1.to_out.0", "attn2.to_k", "attn2.to_v")
OTHERS = ("proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv_shortcut", "time_emb_proj", "0.conv")
TEXT = ("q_proj", "out_proj", "fc1")

Factors = Mapping[str, tuple[Tensor, Tensor]]
"""Of each layer, down and up."""


def factors(state: Mapping[str, Tensor], endings: Iterable[str], seed: int = 0) -> Factors:
    """Random factors for the layers of a network whose names end so."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for key, weight in state.items():
        layer = key.removesuffix(".weight")
        if layer != key and weight.ndim in (2, 4) and layer.endswith(tuple(endings)):
            down, up = (RANK, *weight.shape[1:]), (weight.shape[0], RANK, *(1,) * (weight.ndim - 2))
            found[layer] = tuple(0.3 * torch.randn(shape, generator=generator) for shape in (down, up))
    assert found
    return found  # type: ignore[return-value]


def kohya(parts: Mapping[str, Factors], config: UNetConfig | None = None) -> dict[str, Tensor]:
    """``lora_unet_….lora_down.weight``; with a config, by the names of the original single file."""
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}
    if "text_encoder_2" in parts:
        prefixes["text_encoder"] = "lora_te1_"
    single = {}
    for row in [] if config is None else unet_rows(config):
        (theirs,), (ours,) = names(row.theirs), names(row.ours)
        single[ours.removesuffix(".weight")] = theirs.removesuffix(".weight")
    made: dict[str, Tensor] = {}
    for part, layers in parts.items():
        for layer, (down, up) in layers.items():
            name = single[layer] if single and part == "unet" else layer
            stem = prefixes[part] + name.replace(".", "_")
            made |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            made[f"{stem}.alpha"] = torch.tensor(ALPHA)
    return made


def dotted(ends: tuple[str, str], texts: tuple[str, str]) -> Callable[[Mapping[str, Factors]], dict[str, Tensor]]:
    """``unet.….to_q`` and these endings; text encoders may have others."""

    def make(parts: Mapping[str, Factors]) -> dict[str, Tensor]:
        return {
            f"{part}.{layer}{ending}": tensor
            for part, layers in parts.items() for layer, pair in layers.items()
            for ending, tensor in zip(ends if part == "unet" else texts, pair, strict=True)
        }

    return make


PEFT = (".lora_A.weight", ".lora_B.weight")
peft = dotted(PEFT, PEFT)
diffusers = dotted(
    (".lora.down.weight", ".lora.up.weight"), (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
)


def processors(parts: Mapping[str, Factors]) -> dict[str, Tensor]:
    """``unet.….attn1.processor.to_q_lora.down.weight``, of attention alone."""
    made: dict[str, Tensor] = {}
    for layer, (down, up) in parts["unet"].items():
        above, _, name = layer.removesuffix(".0").rpartition(".")
        made |= {f"unet.{above}.processor.{name}_lora.{end}.weight": t for end, t in (("down", down), ("up", up))}
    return made


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None) -> Path:
    """A safetensors file; the metadata as diffusers writes peft's settings."""
    said = {"format": "pt"} | ({} if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)})
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path, said)
    return path
