"""A network seen in the one frame: queries in, estimates out, however many jobs ask at once."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sfumato.engine.timetable import Timetable
from sfumato.guidance.types import Guidance
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.embeddings import Times
from sfumato.nn.rows import expand_rows
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


class Place(NamedTuple):
    """Rows of a forward that belong together."""

    ask: int  # whose they are, among the asks of the forward
    name: str  # of the conditioning that they answer
    rows: int


Call = Callable[..., Tensor]
"""A network, and what is passed on to it beside picture, times and conditioning."""


class Shortcut(Protocol):
    """A lossy way through the network, of one job: what it remembers from step to step is that job's alone."""

    def kind(self, names: Sequence[str]) -> Hashable:
        """Asks whose shortcuts are of equal kinds may share a forward.

        Args:
            names: of the conditionings that are wanted now.
        """

    def around(self, network: Call, shortcuts: Sequence[Any], places: Sequence[Place]) -> Call:
        """The network as it is called in one forward; asked for once a forward.

        Args:
            shortcuts: of all asks in the forward, by ``Place.ask``: this one's like, of one kind, itself the first.
            places: what the rows of the network's output will be, in order.
        """


@dataclass(frozen=True)
class Ask:
    """One job's query with what is needed to answer it.

    Attributes:
        frame: what the network's times and outputs mean.
        conditionings: what the guidance may want, by name; each has as many rows as ``query.x``.
        timetable: what the network makes of the times, where that was computed beforehand.
        shortcuts: the lossy ways that the job asked for.
    """

    query: Query
    frame: Frame
    guidance: Guidance
    conditionings: Mapping[str, Conditioning]
    timetable: Timetable | None = None
    shortcuts: tuple[Shortcut, ...] = ()

    def wants(self) -> tuple[str, ...]:
        """The names of the conditionings that are to be answered."""
        return self.guidance.wants(self.query.sigma)

    @property
    def rows(self) -> int:
        """Of a forward, that the answer takes."""
        return len(self.query.x) * len(self.wants())


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
    _joined: dict[tuple[int, ...], tuple[Any, Conditioning]] = field(default_factory=dict, repr=False)
    _before: dict[tuple[int, ...], tuple[Any, Conditioning]] = field(default_factory=dict, repr=False)

    @torch.inference_mode()
    def answer(self, asks: Sequence[Ask]) -> list[Estimate]:
        """Answer asks that fit together, as ``groups`` says, with one forward."""
        return [self._estimate(ask, output) for ask, output in zip(asks, self._forward(asks), strict=True)]

    def groups(self, asks: Sequence[Ask]) -> Iterator[list[int]]:
        """Indices of asks that fit together, split where there are too many rows.

        Rows fit together where pictures have one shape, conditionings one signature and shortcuts one kind; time,
        guidance and prompt may differ from row to row.
        """
        self._before, self._joined = self._joined, {}
        alike: dict[Any, list[int]] = {}
        for i, ask in enumerate(asks):
            names = ask.wants()
            kinds = tuple((type(shortcut), shortcut.kind(names)) for shortcut in ask.shortcuts)
            alike.setdefault((ask.query.x.shape[1:], ask.conditionings[names[0]].signature(), kinds), []).append(i)
        for members in alike.values():
            group: list[int] = []
            filled = 0
            for i in members:
                if group and filled + asks[i].rows > self.rows:
                    yield group
                    group, filled = [], 0
                group.append(i)
                filled += asks[i].rows
            yield group

    def _forward(self, asks: Sequence[Ask]) -> list[dict[str, Tensor]]:
        """One forward for all asks; each one's network outputs by the names its guidance wants.

        Where every ask wants the same number k of answers, the pictures are given once and the conditioning has k
        times their rows, so that the network shares what does not depend on the conditioning.
        """
        wanted = [ask.wants() for ask in asks]
        k = len(wanted[0])
        parts = [[ask.conditionings[name] for name in names] for ask, names in zip(asks, wanted, strict=True)]
        one_picture = all(c.concat is cs[0].concat and c.control is cs[0].control for cs in parts for c in cs)
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
        network: Call = self.network
        named = [Place(i, wanted[i][j], len(asks[i].query.x)) for i, j in places]
        for shortcuts in zip(*(ask.shortcuts for ask in asks), strict=True):
            network = shortcuts[0].around(network, shortcuts, named)
        output = network(x, t, self._join([parts[i][j] for i, j in places])).float()
        output = expand_rows(output, sum(place.rows for place in named))  # B rows of a network that is told nothing

        answers: list[dict[str, Tensor]] = [{} for _ in asks]
        pieces = torch.split(output, [place.rows for place in named])
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
        if key not in self._joined:  # the parts live as long as what was made of them, so that an id stays theirs
            self._joined[key] = self._before.get(key) or (order, Conditioning.cat(order))
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
