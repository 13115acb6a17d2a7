"""What a network makes of the times of a run, computed for all of them at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sfumato.nn.conditioning import Conditioning
from sfumato.nn.embeddings import Times
from sfumato.sampling.plan import Plan


class Timetable:
    """One row of times for each sigma and each conditioning.

    Attributes:
        same: whether the conditionings make no difference to it: then their halves of a batch may share rows.
    """

    def __init__(
        self, network: Any, plan: Plan, sigmas: Sequence[float], conditionings: Mapping[str, Conditioning],
        device: torch.device | None = None,
    ) -> None:
        """Args:
            network: one that has ``prepare_times``.
            conditionings: of one row each.
            device: where it computes; that of its weights unless given (they may rest elsewhere).
        """
        self._index = {sigma: i for i, sigma in enumerate(sigma for sigma in sigmas if sigma > 0)}
        device = device or next(network.parameters()).device
        t = torch.tensor([plan.time(sigma) for sigma in sigmas if sigma > 0], dtype=torch.float32, device=device)
        self._tables: dict[str, Times] = {
            name: network.prepare_times(t, conditioning) for name, conditioning in conditionings.items()
        }
        first = next(iter(self._tables.values())).shifts
        self.same = all(torch.equal(first, table.shifts) for table in self._tables.values())

    def at(self, name: str, sigma: float, rows: int) -> Times | None:
        """``rows`` equal rows; None for a sigma between those of the run, at which some samplers ask too."""
        if sigma not in self._index:
            return None
        return Times(self._tables[name][self._index[sigma]].shifts.expand(rows, -1))
