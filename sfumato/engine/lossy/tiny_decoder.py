"""Decoding by a distilled autoencoder; see ``models.tiny_autoencoder``."""

from dataclasses import dataclass
from typing import ClassVar

from sfumato.engine.lossy.types import Lossy
from sfumato.families.types import TINY, Model


@dataclass(frozen=True)
class TinyDecoder(Lossy):
    """The tiny autoencoder that the model was opened with."""

    name: ClassVar = "tiny_decoder"
    title: ClassVar = "decodes with the tiny autoencoder"

    def unfit(self, model: Model) -> str:
        return "" if TINY in model.parts else "no tiny autoencoder was opened; name one with --vae-tiny"

    def decoder(self) -> str:
        return TINY
