"""Which captions are drawn, and which of them are the same."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sfumato.core import rng
from sfumato.core.errors import ConfigError, DataError


def choose(captions: Sequence[str], count: int, seed: int = 0) -> list[str]:
    """``count`` different captions out of those given: the ones of the least random key, so that others do not matter.

    All, where there are fewer.
    """
    return sorted(set(captions) - {""}, key=lambda caption: rng.key(seed, "caption", caption))[:count]


def read(path: Path) -> list[str]:
    """One caption a line; lines that begin with # are comments.

    Raises:
        ConfigError: there is no such file. DataError: it is no text, or has no captions.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path}.") from None
    except UnicodeDecodeError as problem:
        raise DataError(f"{path} is no UTF-8 text: {problem}.") from None
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise DataError(f"{path} has no captions.")
    return found


def numbered(captions: Sequence[str], among: Sequence[str]) -> Tensor:
    """[N] integers: the first place of each caption ``among`` others; equal captions have equal numbers."""
    places: dict[str, int] = {}
    for i, caption in enumerate(among):
        places.setdefault(caption, i)
    return torch.tensor([places[caption] for caption in captions])
