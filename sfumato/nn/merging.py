"""Token merging: Bolya and Hoffman, "Token merging for fast Stable Diffusion", 2023, section 4.

Before self-attention the tokens that are most like one another are averaged; after it each takes the answer of the
average that it went into. In every square of 2 x 2 positions one token, chosen at random, is kept; of all others
the given share goes, each into the kept token that it is most like.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.errors import ConfigError


@dataclass(frozen=True)
class Merging:
    """What is merged while a network runs.

    Attributes:
        share: of all tokens, that is merged into others; at most 3/4.
        size: only pictures of so many positions, (h, w), are: the finest level, where attention costs most.
    """

    share: float
    size: tuple[int, int]

    def __post_init__(self) -> None:
        if not 0 < self.share <= 0.75:
            raise ConfigError(f"share = {self.share}: of 4 tokens 1 is kept, so it must be above 0 and at most 0.75.")


_merging: ContextVar[Merging | None] = ContextVar("token_merging", default=None)


@contextmanager
def merging(chosen: Merging) -> Iterator[None]:
    """While open, self-attentions of this thread merge tokens."""
    token = _merging.set(chosen)
    try:
        yield
    finally:
        _merging.reset(token)


def is_merging() -> bool:
    """Whether tokens of this thread are merged: then a compiled network has to run as it is written."""
    return _merging.get() is not None


def share_at(size: Sequence[int]) -> float:
    """The share of tokens to be merged in pictures of this size; 0: none, which is always so where it is one line."""
    if torch.compiler.is_compiling():
        return 0.0  # see `is_merging`
    chosen = _merging.get()
    return chosen.share if chosen is not None and chosen.size == tuple(size) and min(size) > 1 else 0.0


@dataclass(frozen=True)
class Merge:
    """Which tokens go where, for each picture on its own.

    Attributes:
        kept: [K] positions of tokens into which others go.
        free: [N - K] positions of the others.
        gone: [B, r] which of the free ones go (indices into ``free``), the most alike first.
        stay: [B, N - K - r] those that do not.
        into: [B, r] into which of the kept ones.
    """

    kept: Tensor
    free: Tensor
    gone: Tensor
    stay: Tensor
    into: Tensor

    @staticmethod
    def of(x: Tensor, size: Sequence[int], share: float) -> "Merge":
        """Find it by the cosine between tokens: x [B, h * w, C]."""
        kept, free = squares(size[0], size[1], x.device)
        count = min(int((len(kept) + len(free)) * share), len(free))
        unit = F.normalize(x.float(), dim=-1)
        alike, into = (unit[:, free] @ unit[:, kept].transpose(1, 2)).max(-1)  # [B, N - K] each
        order = alike.argsort(dim=-1, descending=True, stable=True)
        gone, stay = order[:, :count], order[:, count:]
        return Merge(kept, free, gone, stay, into.gather(1, gone))

    def join(self, x: Tensor) -> Tensor:
        """[B, N, C] -> [B, N - r, C]: those that stay, then the kept ones as means of themselves and what joined."""
        width = x.shape[-1]
        free, kept = x[:, self.free], x[:, self.kept]
        leaving = free.gather(1, _wide(self.gone, width))  # [B, r, C]
        kept = kept.scatter_reduce(1, _wide(self.into, width), leaving, "mean", include_self=True)
        return torch.cat([free.gather(1, _wide(self.stay, width)), kept], dim=1)

    def part(self, y: Tensor) -> Tensor:
        """[B, N - r, C] -> [B, N, C]: each token takes what it went into."""
        width, staying = y.shape[-1], self.stay.shape[1]
        stay, kept = y[:, :staying], y[:, staying:]
        out = y.new_empty(len(y), len(self.kept) + len(self.free), width)
        out[:, self.kept] = kept
        out.scatter_(1, _wide(self.free[self.stay], width), stay)
        out.scatter_(1, _wide(self.free[self.gone], width), kept.gather(1, _wide(self.into, width)))
        return out


def _wide(index: Tensor, width: int) -> Tensor:
    return index[..., None].expand(-1, -1, width)


@lru_cache(maxsize=16)
def squares(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions of one token of every 2 x 2 square, and of all others; an odd last row or column has none.

    The choice is random so that no grid shows, and the same for all pictures and steps, so that a picture comes out
    the same alone, in a batch, and when it is drawn again.
    """
    rows, columns = height // 2, width // 2
    corner = torch.randint(4, (rows, columns), generator=torch.Generator().manual_seed(0))
    y = 2 * torch.arange(rows)[:, None] + corner // 2
    x = 2 * torch.arange(columns)[None] + corner % 2
    chosen = torch.zeros(height * width, dtype=torch.bool)
    chosen[(y * width + x).flatten()] = True
    return chosen.nonzero()[:, 0].to(device), (~chosen).nonzero()[:, 0].to(device)
