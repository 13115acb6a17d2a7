"""What a table of weights is when it is not a whole model: a LoRA, an embedding, one network alone.

Literal predicates over names and shapes. They serve messages and ``sfumato inspect``; a family is never guessed here.
"""

import re
from collections.abc import Callable, Mapping

from sfumato.checkpoints.lazy import Tensors


def _any(pattern: str) -> Callable[[Tensors], bool]:
    compiled = re.compile(pattern)
    return lambda tensors: any(compiled.search(name) for name in tensors)


def _embedding(tensors: Tensors) -> bool:
    names = {"emb_params", "string_to_param.*", "clip_l", "clip_g"}
    return 0 < len(tensors) <= 4 and (bool(names & set(tensors)) or (len(tensors) == 1 and _one_row(tensors)))


def _one_row(tensors: Tensors) -> bool:
    (tensor,) = tensors.values()
    return len(tensor.shape) <= 2 and tensor.shape[-1:] in ((768,), (1024,), (1280,))


DESCRIPTIONS: Mapping[str, Callable[[Tensors], bool]] = {
    "a LoRA (kohya naming)": _any(r"^lora_(unet|te\d?|transformer)_.*\.(lora_down|lora_up)\."),
    "a LoHa, LoKr or other LyCORIS adapter": _any(r"\.(hada_w1_a|lokr_w1|oft_blocks|on_input|diff$)"),
    "a LoRA (PEFT naming)": _any(r"\.lora_A\.(\w+\.)?weight$"),
    "a LoRA (old diffusers naming)": _any(r"(processor|to_[qkv]|to_out\.0)(\.\w+)?[._]lora(_layer)?\.(up|down)\."),
    "a LoRA (diffusers naming)": _any(r"\.lora_(layer|linear_layer)\.(up|down)\.|\.lora\.(up|down)\."),
    "a textual inversion embedding": _embedding,
    "a hypernetwork": lambda t: bool(t) and all(re.match(r"^\d+\.[01]\.linear", name) for name in t),
    "an IP-Adapter": _any(r"^ip_adapter\."),
    "a ControlNet (single file)": _any(r"^control_model\."),
    "a ControlNet (diffusers naming)": _any(r"^controlnet_cond_embedding\."),
    "a T2I-Adapter": _any(r"^(adapter\.)?body\.\d+\."),
    "a whole latent-diffusion model in one file": _any(r"^model\.diffusion_model\.(input_blocks|joint_blocks)\."),
    "an SD 3 or other MMDiT transformer": _any(r"(^|\.)joint_blocks\.\d+\."),
    "a DiT transformer (its authors' naming)": _any(r"^blocks\.\d+\.adaLN_modulation\.1\."),
    "a DiT transformer (diffusers naming)": _any(r"^transformer_blocks\.\d+\.norm1\.emb\.class_embedder\."),
    "a FLUX transformer": _any(r"(^|\.)(double_blocks|single_transformer_blocks)\.\d+\."),
    "a U-Net alone (diffusers naming)": _any(r"^down_blocks\.\d+\.(resnets|attentions)\..*"),
    "a U-Net alone (LDM naming)": _any(r"^input_blocks\.\d+\.\d+\."),
    "an autoencoder alone (LDM naming)": _any(r"(^|\.)(encoder|decoder)\.(down|up)\.\d+\.block\."),
    "an autoencoder alone (diffusers naming)": _any(r"^(encoder|decoder)\.(down|up)_blocks\.\d+\.resnets\."),
    "a whole CLIP, both towers": lambda t: _any(r"(^|\.)(vision_model|visual)\.")(t) and _any(r"token_embedding")(t),
    "a CLIP text encoder alone": _any(r"(embeddings\.token_embedding|^token_embedding)\.weight$"),
    "a CLIP picture encoder alone": _any(r"(^|\.)vision_model\.|^visual\."),
    "a T5 encoder": _any(r"^encoder\.block\.\d+\.layer\."),
}
"""Description -> predicate. The first that holds is the description."""

ADAPTERS = tuple(name for name in DESCRIPTIONS if re.match(r"an? (LoRA|LoHa|textual|hyper|IP-)", name))
"""Descriptions of what changes a model and is none itself."""


def describe(tensors: Tensors) -> str:
    """What these weights seem to be; empty where nothing known fits."""
    return next((name for name, holds in DESCRIPTIONS.items() if holds(tensors)), "")
