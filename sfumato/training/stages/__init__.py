"""What can be trained: one stage a file, one line in the table."""

from sfumato.core.errors import ConfigError
from sfumato.core.registry import Registry

STAGES = Registry(
    "stage",
    {
        "autoencoder": "sfumato.training.stages.autoencoder:AutoencoderTraining",
        "clip": "sfumato.training.stages.clip:ClipTraining",
        "diffusion": "sfumato.training.stages.diffusion:DiffusionTraining",
    },
    error=ConfigError,
)
"""In the order in which a recipe trains them."""
