"""What frozen encoders say of a data set, computed once: shards of safetensors, found again by what they were made of.

The name of a shard is a hash of its items' contents and of the encoder. So a run that was interrupted goes on where it
was, a changed picture costs one shard, a changed encoder all of them, and nothing stale is ever read.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.checkpoints.hashes import content_hash, verify
from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.store import open_safetensors
from sfumato.checkpoints.write import save_file
from sfumato.core.errors import CheckpointError

Compute = Callable[[list[int]], Mapping[str, Tensor]]
"""Indices of a few items -> tensors whose row i is of item i."""

SHARD = 256
"""Items of one shard: what an interruption costs at most."""


class Rows:
    """A filled cache: for each item, its row of every tensor."""

    def __init__(self) -> None:
        self._shards: list[dict[str, Tensor]] = []
        self._places: dict[int, tuple[int, int]] = {}

    def add(self, items: Sequence[int], tensors: dict[str, Tensor]) -> None:
        """Row i of each tensor is of ``items[i]``."""
        for row, item in enumerate(items):
            self._places[item] = (len(self._shards), row)
        self._shards.append(tensors)

    def row(self, item: int) -> dict[str, Tensor]:
        """The tensors of one item, without the batch dimension; views of the mapped file."""
        shard, row = self._places[item]
        return {name: tensor[row] for name, tensor in self._shards[shard].items()}

    def column(self, name: str) -> list[Tensor]:
        """One tensor of all items, shard by shard."""
        return [shard[name] for shard in self._shards]


def fingerprint(network: nn.Module, *settings: object) -> str:
    """A hash of a network's weights and of whatever else its answers depend on."""
    weights = content_hash(lazy_all(network.state_dict()))
    return hashlib.sha256("\x1f".join([weights, *map(repr, settings)]).encode()).hexdigest()


def fill(
    folder: Path, name: str, groups: Sequence[Sequence[int]], contents: Mapping[int, str], encoder: str,
    compute: Compute, batch: int = 32, progress: Callable[[int], None] = lambda done: None,
) -> Rows:
    """Compute what is not there yet, and remove what is not wanted any more.

    Args:
        name: of the cache within the folder, e.g. ``latents``.
        groups: items whose tensors have one shape; a shard holds items of one group.
        contents: item -> hash of what the encoder is shown of it.
        encoder: see ``fingerprint``.
        batch: items computed at once.
        progress: is told how many items are done.

    Raises:
        CapacityError, CheckpointError: a shard could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, wanted, done = Rows(), set(), 0
    for group in groups:
        for start in range(0, len(group), SHARD):
            items = list(group[start : start + SHARD])
            told = "\n".join([encoder, *(contents[i] for i in items)])
            path = folder / f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:32]}.safetensors"
            wanted.add(path)
            if not _whole(path):
                parts = []
                for first in range(0, len(items), batch):
                    parts.append(compute(items[first : first + batch]))
                    progress(done + first)
                joined = {key: torch.cat([part[key].cpu() for part in parts]) for key in parts[0]}
                save_file(path, lazy_all(joined))
            rows.add(items, {key: tensor.read() for key, tensor in open_safetensors(path).tensors.items()})
            done += len(items)
            progress(done)
    for stale in set(folder.glob(f"{name}-*.safetensors")) - wanted:
        stale.unlink(missing_ok=True)
    return rows


def _whole(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        return verify(open_safetensors(path))
    except CheckpointError:
        return False  # it is computed again: nothing is lost but time
