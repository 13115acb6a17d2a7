"""A network seen in the one frame: queries in, estimates out, however many jobs ask at once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sfumato.engine.timetable import Timetable
from sfumato.guidance.types import Guidance
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.embeddings import Times
from sfumato.noise.prediction import Prediction
from sfumato.sampling.types import Estimate, Query


class Network(Protocol):
    """What denoises: a U-Net, a transformer, or twenty lines in a test."""

    def __call__(self, x: Tensor, t: Any, conditioning: Conditioning) -> Tensor:
        """[B, C, H, W], [B] (or ``Times``), conditioning of B or k * B rows -> [its rows or B, C', H, W]."""


class Frame(Protocol):
    """How a network is seen in the variance-exploding frame; a ``sampling.plan.Plan`` is one."""

    def time(self, sigma: float) -> float:
        """What the network is told at ``sigma``."""

    def alpha(self, sigma: float) -> float:
        """The factor into the network's own frame at ``sigma``."""

    def meaning(self) -> Prediction:
        """What its output means."""


@dataclass(frozen=True)
class Ask:
    """One job's query with what is needed to answer it.

    Attributes:
        frame: what the network's times and outputs mean.
        conditionings: what the guidance may want, by name; each has as many rows as ``query.x``.
        timetable: what the network makes of the times, where that was computed beforehand.
    """

    query: Query
    frame: Frame
    guidance: Guidance
    conditionings: Mapping[str, Conditioning]
    timetable: Timetable | None = None


@dataclass
class Denoiser:
    """A network that answers queries.

    Attributes:
        rows: the most rows of one forward; more queries are answered in several.
    """

    network: Network
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    rows: int = 64
    _joined: dict[tuple[int, ...], tuple[Any, Conditioning]] = field(default_factory=dict)

    @torch.inference_mode()
    def answer(self, asks: Sequence[Ask]) -> list[Estimate]:
        """Answer every query, those that fit together with one forward.

        Rows fit together where pictures have one shape and conditionings one signature; time, guidance and prompt may
        differ from row to row.
        """
        found: dict[int, Estimate] = {}
        for group in self._groups(asks):
            outputs = self._forward([asks[i] for i in group])
            for i, output in zip(group, outputs, strict=True):
                found[i] = self._estimate(asks[i], output)
        return [found[i] for i in range(len(asks))]

    def _groups(self, asks: Sequence[Ask]) -> Iterable[list[int]]:
        """Indices of asks that can share a forward, split where there are too many rows."""
        alike: dict[Any, list[int]] = {}
        for i, ask in enumerate(asks):
            wanted = ask.guidance.wants(ask.query.sigma)
            signature = ask.conditionings[wanted[0]].signature()
            alike.setdefault((ask.query.x.shape[1:], signature), []).append(i)
        for members in alike.values():
            group: list[int] = []
            filled = 0
            for i in members:
                rows = len(asks[i].query.x) * len(asks[i].guidance.wants(asks[i].query.sigma))
                if group and filled + rows > self.rows:
                    yield group
                    group, filled = [], 0
                group.append(i)
                filled += rows
            yield group

    def _forward(self, asks: Sequence[Ask]) -> list[dict[str, Tensor]]:
        """One forward for all asks; each one's network outputs by the names its guidance wants.

        Where every ask wants the same number k of answers, the pictures are given once and the conditioning has k
        times their rows, so that the network shares what does not depend on the conditioning.
        """
        wanted = [ask.guidance.wants(ask.query.sigma) for ask in asks]
        k = len(wanted[0])
        parts = [[ask.conditionings[name] for name in names] for ask, names in zip(asks, wanted, strict=True)]
        one_picture = all(c.concat is cs[0].concat for cs in parts for c in cs)
        share = one_picture and all(len(names) == k for names in wanted)

        pictures = []
        for ask, conditionings in zip(asks, parts, strict=True):
            own = (ask.query.x * ask.frame.alpha(ask.query.sigma)).to(self.dtype)
            for conditioning in conditionings[:1] if share else conditionings:
                extra = [] if conditioning.concat is None else [conditioning.concat]
                pictures.append(torch.cat([own, *extra], dim=1) if extra else own)
        # Shared: the first conditionings of all asks, then the second ones, …; else one ask after the other.
        places = [(i, j) for j in range(k) for i in range(len(asks))] if share else [
            (i, j) for i, names in enumerate(wanted) for j in range(len(names))
        ]
        x = torch.cat(pictures) if len(pictures) > 1 else pictures[0]
        t = self._times([asks[i] for i, _ in places], [wanted[i][j] for i, j in places], len(asks) if share else None)
        output = self.network(x, t, self._join([parts[i][j] for i, j in places])).float()

        answers: list[dict[str, Tensor]] = [{} for _ in asks]
        pieces = torch.split(output, [len(asks[i].query.x) for i, _ in places])
        for (i, j), piece in zip(places, pieces, strict=True):
            answers[i][wanted[i][j]] = piece
        return answers

    def _times(self, asks: list[Ask], names: list[str], pictures: int | None) -> Tensor | Times:
        """The times of all rows, from the timetables if they have them all.

        Args:
            asks, names: whose answer stands at each place of the batch.
            pictures: only so many first places have pictures of their own, whose rows the others share.
        """
        rows = [len(ask.query.x) for ask in asks]
        if all(ask.timetable is not None for ask in asks):
            # Where the conditioning makes no difference, rows stay shared; else each place has its own.
            count = pictures if all(ask.timetable.same for ask in asks if ask.timetable) else None
            ready = [
                ask.timetable.at(name, ask.query.sigma, n) if ask.timetable else None
                for ask, name, n in zip(asks[:count], names, rows, strict=False)
            ]
            found = [times for times in ready if times is not None]
            if len(found) == len(ready):
                return Times.cat(found)
        told = [ask.frame.time(ask.query.sigma) for ask in asks[:pictures] for _ in range(len(ask.query.x))]
        return torch.tensor(told, dtype=torch.float32).to(self.device, non_blocking=True)

    def _join(self, order: list[Conditioning]) -> Conditioning:
        """``Conditioning.cat``, remembered while the same conditionings come again at the next step."""
        key = tuple(map(id, order))
        if key not in self._joined:
            self._joined.clear()  # a batch that changed does not come back; keep one, and its parts alive with it
            self._joined[key] = (order, Conditioning.cat(order))
        return self._joined[key][1]

    @staticmethod
    def _estimate(ask: Ask, outputs: dict[str, Tensor]) -> Estimate:
        x, sigma = ask.query
        alpha = ask.frame.alpha(sigma)
        channels = x.shape[1]
        log_variance = None
        first = next(iter(outputs.values()))
        if first.shape[1] == 2 * channels:  # the second half is the learned variance
            log_variance = first[:, channels:]
            outputs = {name: output[:, :channels] for name, output in outputs.items()}
        output = ask.guidance.combine(outputs, sigma)
        x0 = ask.frame.meaning().to_x0(x * alpha, output, alpha, sigma * alpha)
        return Estimate(ask.guidance.constrain(x0, sigma), log_variance)
