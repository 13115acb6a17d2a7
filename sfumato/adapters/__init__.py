"""Adapters: small files that change a model's layers."""

from sfumato.core.errors import CheckpointError
from sfumato.core.registry import Registry

FORMS = Registry(
    kind="adapter",
    targets={"lora": "sfumato.adapters.lora:Lora"},
    error=CheckpointError,
)
"""The ways in which a few tensors say how a layer changes; each is an ``adapters.types.Form``."""

NOT_READ = {
    "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT",
    "oft_blocks": "OFT", "on_input": "(IA)³", "diff": "full differences", "diff_b": "full differences of biases",
    "lora_embedding_A": "LoRA of embeddings", "lora_B.bias": "LoRA with biases",
}
"""What the last part of a key says in files of other adapters, and what they are called."""
