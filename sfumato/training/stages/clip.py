"""Training CLIP, and its tokenizer, on one's own captions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.write import atomic_folder, save_file, save_json
from sfumato.core.config import to_dict
from sfumato.core.errors import ConfigError, DataError
from sfumato.models.clip import Clip
from sfumato.models.clip_vision import preprocess
from sfumato.objectives.contrastive import contrastive
from sfumato.objectives.loss import Loss
from sfumato.text import tokenizer as tokenizers
from sfumato.text.tokenizer import ClipTokenizer
from sfumato.training.export import put_part, put_tokenizer
from sfumato.training.framing import to_network
from sfumato.training.loop import Batch
from sfumato.training.material import Material
from sfumato.training.order import Order, Place
from sfumato.training.recipe import ClipStage, Recipe

EVALUATED = 1024
"""Held-out pairs among which a caption is looked for, at most."""


class ClipTraining:
    """The stage. It fills the run folder's ``tokenizer``, ``text_encoder`` and ``clip`` (both towers)."""

    name = "clip"
    sharded = False  # its temperature is read outside a call

    def __init__(self, recipe: Recipe, material: Material, root: Path) -> None:
        assert recipe.clip is not None
        self.config: ClipStage = recipe.clip
        self.material, self.root, self.seed = material, root, recipe.seed
        if self.config.train.gradient_checkpointing:
            raise ConfigError("gradient_checkpointing is for denoisers alone: leave it out of [clip.train].")
        captions = material.texts(material.training)
        if not captions:
            raise DataError(f"{material.config.where} has no captions, without which CLIP cannot be trained.")
        text = self.config.model.text_config
        self.tokenizer = tokenizers.train(captions, self.config.vocab_size)
        self.tokenizer.length = text.max_position_embeddings
        self.model = replace(
            self.config.model,
            text_config=replace(
                text, vocab_size=len(self.tokenizer), bos_token_id=self.tokenizer.start,
                eos_token_id=self.tokenizer.end, pad_token_id=self.tokenizer.pad,
            ),
        )
        torch.manual_seed(recipe.seed)
        self.network = Clip(self.model)
        self.players: dict[str, nn.Module] = {"clip": self.network}
        self.rates = {"clip": 1.0}
        self.numbers = {caption: i for i, caption in enumerate(dict.fromkeys(material.captions))}

    def order(self, batch: int) -> Order:
        return self.material.order(batch)

    def load(self, places: list[Place]) -> Batch:
        items = [self.material.training[p.item] for p in places]
        pixels = [self.material.framed(item, p).pixels for item, p in zip(items, places, strict=True)]
        return {"pixels": torch.stack(pixels), **self._texts(items, places)}

    def _texts(self, items: list[int], places: Sequence[Place | None]) -> Batch:
        captions = [self.material.caption(i, place) for i, place in zip(items, places, strict=True)]
        ids = torch.tensor([framed_ids(self.tokenizer, caption) for caption in captions])
        return {"ids": ids, "same": torch.tensor([self.numbers[self.material.captions[i]] for i in items])}

    def losses(self, players: Mapping[str, nn.Module], batch: Batch, step: int) -> Iterator[tuple[str, Loss]]:
        with torch.no_grad():
            self.network.logit_scale.clamp_(max=self.network.MAX_LOGIT_SCALE)
        x = preprocess(to_network(batch["pixels"]), self.model.vision_config.image_size)
        found = players["clip"](batch["ids"], x)
        yield "clip", contrastive(found.texts, found.pictures, self.network.logit_scale.exp(), batch["same"])

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss, and how often a held-out picture's own caption is the nearest, or among the five nearest."""
        items = self.material.held_out[:EVALUATED]
        if not items:
            return {}
        device = next(self.network.parameters()).device
        batch = {k: v.to(device) for k, v in self._texts(items, [None] * len(items)).items()}
        pixels = torch.stack([self.material.framed(i).pixels for i in items]).to(device)
        found = self.network(batch["ids"], preprocess(to_network(pixels), self.model.vision_config.image_size))
        loss = contrastive(found.texts, found.pictures, self.network.logit_scale.exp(), batch["same"])
        right = batch["same"][found.logits.T.topk(min(5, len(items)), dim=1).indices] == batch["same"][:, None]
        return {
            "loss": loss.total.item(), "top1": right[:, 0].float().mean().item(),
            "top5": right.any(1).float().mean().item(),
        }

    def export(self, weights: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        put_tokenizer(self.root, self.tokenizer)
        text = {name: t for name, t in weights.items() if name.startswith("text_model.")}
        put_part(self.root, "text_encoder", "CLIPTextModel", self.model.text_config, text)
        with atomic_folder(self.root / "clip", overwrite=True) as made:
            about = {"architectures": ["CLIPModel"], "model_type": "clip"}
            save_json(made / "config.json", about | to_dict(self.model))
            save_file(made / "model.safetensors", lazy_all({k: v.cpu() for k, v in weights.items()}))
            self.tokenizer.save(made)

    def sample(self, path: Path) -> None:
        """CLIP draws nothing."""


def framed_ids(tokenizer: ClipTokenizer, caption: str) -> list[int]:
    """``tokenizer.length`` ids; a caption that is longer is cut, as the data check says of it."""
    return tokenizer.frame(tokenizer.encode(caption)[: tokenizer.length - 2])
