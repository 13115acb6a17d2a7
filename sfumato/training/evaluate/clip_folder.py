"""A whole CLIP on disk: both towers, the projections, the tokenizer, as transformers' ``CLIPModel`` has them."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sfumato.checkpoints.diffusers import open_weights
from sfumato.checkpoints.load import load_into
from sfumato.checkpoints.parts import IGNORED_BUFFERS, read_config
from sfumato.core.config import read_json
from sfumato.core.errors import CheckpointError, ConfigError
from sfumato.models.clip import Clip, ClipConfig
from sfumato.models.clip_vision import preprocess
from sfumato.text import tokenizer as tokenizers
from sfumato.training.framing import to_network
from sfumato.training.stages.clip import framed_ids

TOWERS = {"text_config": "CLIPTextModel", "vision_config": "CLIPVisionModelWithProjection"}
BATCH = 64


def open_clip(folder: Path, device: torch.device) -> Clip:
    """The networks alone, in float32.

    Raises:
        CheckpointError: the folder holds no whole CLIP.
    """
    try:
        settings = read_json(folder / "config.json")
    except ConfigError as problem:
        raise CheckpointError(str(problem)) from None
    if not all(isinstance(settings.get(name), dict) for name in TOWERS):
        raise CheckpointError(f"{folder} holds no CLIP with both towers (text_config and vision_config).")
    where = str(folder / "config.json")
    towers = {
        name: read_config(kind, {k: v for k, v in settings[name].items() if k != "with_projection"}, where)
        for name, kind in TOWERS.items()
    }
    config = ClipConfig(**towers, projection_dim=settings.get("projection_dim", ClipConfig.projection_dim))
    tensors = open_weights(folder, "CLIPVisionModelWithProjection").tensors
    kept = {name: tensor for name, tensor in tensors.items() if not re.fullmatch(IGNORED_BUFFERS, name)}
    return load_into(lambda: Clip(config), kept, str(folder), dtype=torch.float32, device=device)


class ClipFolder:
    """Texts and pictures to vectors of one space. The tokenizer lies in the folder, or beside it as in a model folder.

    Raises:
        CheckpointError: the folder holds no whole CLIP, or one with a tokenizer of another size.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.network = open_clip(folder, device)
        config = self.network.config
        self.tokenizer = tokenizers.load(folder if (folder / "vocab.json").is_file() else folder.parent / "tokenizer")
        if len(self.tokenizer) > config.text_config.vocab_size:
            raise CheckpointError(
                f"{folder}: the tokenizer has {len(self.tokenizer)} tokens, the text tower "
                f"{config.text_config.vocab_size}: they do not belong together."
            )
        self.tokenizer.length = config.text_config.max_position_embeddings
        self.name = f"CLIP {folder}, projected"

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """[N, P]; a text that is too long is cut, as it is in training."""
        found = []
        for start in range(0, len(texts), BATCH):
            ids = torch.tensor([framed_ids(self.tokenizer, text) for text in texts[start : start + BATCH]])
            found.append(self.network.encode_text(ids.to(self.device)).projected)
        return torch.cat([part.cpu() for part in found if part is not None])

    @torch.inference_mode()
    def pictures(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] uint8 -> [N, P]."""
        found = []
        for part in torch.split(pixels, BATCH):
            x = preprocess(to_network(part.to(self.device)), self.network.config.vision_config.image_size)
            found.append(self.network.encode_picture(x).projected)
        return torch.cat([part.cpu() for part in found if part is not None])
