"""Adapters: small files that change a model's layers."""

from sfumato.core.errors import CheckpointError
from sfumato.core.registry import Registry

FORMS = Registry(
    kind="adapter",
    targets={
        "lora": "sfumato.adapters.lora:Lora",
        "loha": "sfumato.adapters.loha:Loha",
        "lokr": "sfumato.adapters.lokr:Lokr",
        "difference": "sfumato.adapters.difference:Difference",
        "difference of biases": "sfumato.adapters.difference:BiasDifference",
    },
    error=CheckpointError,
)
"""The ways in which a few tensors say how a layer changes; each is an ``adapters.types.Form``. What holds for all of
them is in ``adapters.change``."""

NOT_READ = {
    "oft_": "OFT", "oft_blocks": "OFT", "on_input": "(IA)³", "lora_embedding_A": "LoRA of embeddings",
    "lora_B.bias": "LoRA with biases",
}
"""What the last part of a key says in files of other adapters, and what they are called."""
