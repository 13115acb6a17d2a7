"""What a request will take, in time and memory, before anything runs; and how to hold the model so that it fits."""

import copy
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor, nn

from sfumato.core.errors import CapacityError
from sfumato.core.request import Request
from sfumato.core.sizes import show_bytes
from sfumato.engine.decode import OVERLAP, TILE, tile_of
from sfumato.engine.denoiser import Ask, Denoiser, Place
from sfumato.engine.rates import Rates
from sfumato.engine.residence import USUAL, Holding, Where
from sfumato.engine.trace import META, Work, size, trace, weights
from sfumato.families.types import Model
from sfumato.models.latents import Codec
from sfumato.models.tiling import spans
from sfumato.nn.conditioning import Conditioning
from sfumato.sampling.types import Estimate, Query
from sfumato.tasks.settle import Settled, plan_for, settle
from sfumato.tasks.text_to_image import handover, pictures_together, prepare

HOLES = 112_000_000
"""Bytes, at most, that the C library's heap holds beside what lives in it, on a CPU: glibc serves blocks below 32 MB
from one heap, which keeps what was freed until its end is free. Measured between 60 and 120 MB; small computations
leave holes of about twice their own size."""

TILES = (64, 48, 32, 24, 16)
"""Sides of the decoder's tiles that are considered, in latent positions."""


@dataclass(frozen=True)
class Phase:
    """A part of the way from prompt to picture.

    Attributes:
        calls: of the network.
        flops: of all calls together.
        seconds: of all calls, with the loading of weights that rest between.
        peak: bytes that the process (CPU) or PyTorch (GPU) holds when it holds the most.
    """

    name: str
    calls: int
    flops: int
    seconds: float
    peak: int


@dataclass(frozen=True)
class Forecast:
    """What a request will take when its model is held so."""

    holding: Holding
    phases: tuple[Phase, ...]

    @property
    def seconds(self) -> float:
        """From the prompt to the pixels; reading a model that is not in the system's cache is not in it."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def peak(self) -> int:
        """Bytes, of the phase that needs the most."""
        return max(phase.peak for phase in self.phases)

    def notes(self) -> list[str]:
        """What was chosen, in words; nothing where all is as usual."""
        where, rows, tile = self.holding.where, self.holding.rows, self.holding.tile
        said = {
            "resident": "",
            "parts": "each network is in memory only while it is used",
            "layers": "each layer is in memory only while it computes, which is slow",
        }[where]
        found = [said] if said else []
        if rows < USUAL.rows:
            found.append(f"at most {rows} rows share a forward")
        if tile is not None:
            found.append(f"pictures are decoded in tiles of {tile} latent positions, which shifts colours slightly")
        return [f"To fit the memory ({show_bytes(self.peak)} expected): {'; '.join(found)}."] if found else []


class Forecaster:
    """Counts what one request takes, for any way of holding its model.

    Args:
        rates: of the models' device in their precision.

    Raises:
        RequestError: the request cannot be drawn.
    """

    def __init__(self, model: Model, request: Request, rates: Rates, refiner: Model | None = None) -> None:
        self.rates = rates
        self.settled = settle(request, model)
        self.cpu = model.device.type == "cpu"
        self.stages = [_Stage(model, self.settled, self.settled.sigmas)]
        if refiner is not None and request.refiner_start is not None:
            at, sigmas = handover(self.settled, request.refiner_start), self.settled.sigmas
            self.stages = [
                _Stage(model, self.settled, sigmas[: at + 1]), _Stage(refiner, self.settled, sigmas[at:]),
            ]
        self.decoded = cache(self._decoded)

    def forecast(self, holding: Holding) -> Forecast:
        """With the model held so."""
        return Forecast(holding, tuple(self._phases(holding)))

    def fit(self, limit: int) -> Forecast:
        """The fastest way that stays within so many bytes; exact ways are preferred to tiles, tiles to layers.

        Raises:
            CapacityError: there is none; the message names the least that would do.
        """
        least: Forecast | None = None
        ways: list[tuple[Where, bool]] = [
            ("resident", False), ("parts", False), ("resident", True), ("parts", True), ("layers", False),
            ("layers", True),
        ]  # fmt: skip
        for where, tiled in ways:
            for holding in self._holdings(where, tiled, limit):
                found = self.forecast(holding)
                if found.peak <= limit:
                    return found
                least = found if least is None or found.peak < least.peak else least
        assert least is not None  # there are ways
        worst = max(least.phases, key=lambda phase: phase.peak)
        raise CapacityError(
            f"This request needs at least {show_bytes(least.peak)} of memory ({worst.name}), even with each layer in "
            f"memory only while it computes; the limit is {show_bytes(limit)}. Allow more, or draw smaller pictures."
        )

    def _holdings(self, where: Where, tiled: bool, limit: int) -> Iterator[Holding]:
        """With the most rows whose steps fit, or the fewest; then with the largest tiles, or the smallest."""
        names = len(self.settled.names)
        together = min(len(self.settled.seeds), pictures_together(self.settled, USUAL.rows))
        rows = USUAL.rows
        while together > 1 and self._steps_peak(Holding(where, rows)) > limit:
            together = -(-together // 2)
            rows = together * names
        if not tiled:
            yield Holding(where, rows)
            return
        for tile in TILES:
            if tile_of(self.stages[-1].model, self.settled.latent_shape, tile) is not None:
                yield Holding(where, rows, tile)

    def _steps_peak(self, holding: Holding) -> int:
        return max(phase.peak for phase in self._phases(holding, decoding=False))

    def _phases(self, holding: Holding, decoding: bool = True) -> Iterator[Phase]:
        texts = [stage.texts() for stage in self.stages]
        before = 0  # bytes of weights that earlier phases left in memory
        kept = 0  # bytes of what they found
        heap = 0  # bytes of what they used and freed, most of which the heap keeps
        for stage, work in zip(self.stages, texts, strict=True):
            held = self._weights(holding, stage, stage.text_names, work.read, before)
            before += work.read
            loads = self._loading(holding, work.read, 1)
            yield self._phase("text encoding", 1, [work], held + kept + self._heap(work.peak, heap), loads)
            kept += work.kept
            heap = max(heap, work.peak)
        pictures = len(self.settled.seeds)
        together = min(pictures, pictures_together(self.settled, holding.rows))
        runs = -(-pictures // together)
        for stage in self.stages:
            step = stage.steps(together)
            most = max(step.values(), key=lambda found: found[1].peak)[1]
            calls = sum(count for count, _ in step.values())
            ready = stage.prepared()
            held = self._weights(holding, stage, [stage.model.family.denoiser], most.read + ready.read, before)
            before += most.read + ready.read
            works = [work for count, work in step.values() for _ in range(count)]
            share = pictures / (together * runs)
            loads = self._loading(holding, most.read, calls * runs if holding.where == "layers" else 1)
            kept += ready.kept
            peak = held + kept + self._heap(most.peak, heap)
            yield self._phase("denoising", calls * runs, works * runs, peak, loads, share)
            heap = max(heap, most.peak)
        if decoding:
            work, tiles, canvas = self.decoded(holding.tile)
            held = self._weights(holding, self.stages[-1], [self.settled.decoder], work.read, before)
            height, width = (side * self.stages[-1].model.latent.factor for side in self.settled.latent_shape[1:])
            pixels = 2 * pictures * 3 * height * width if self.cpu else 0  # together, and each in its picture
            loads = self._loading(holding, work.read, pictures * tiles if holding.where == "layers" else 1)
            peak = held + kept + self._heap(work.peak + canvas, heap) + pixels
            yield self._phase("decoding", pictures * tiles, [work] * (pictures * tiles), peak, loads)

    def _phase(
        self, name: str, calls: int, works: list[Work], peak: int, loading: float, share: float = 1.0
    ) -> Phase:
        flops = {id(work): work.flops for work in works}
        seconds = {id(work): self.rates.seconds(work.operations) for work in works}
        return Phase(
            name, calls, round(share * sum(flops[id(work)] for work in works)),
            share * sum(seconds[id(work)] for work in works) + loading,
            self.rates.process + peak,
        )  # fmt: skip

    def _heap(self, live: int, freed: int) -> int:
        """Bytes that it takes to hold so many that live, after so many had come and gone."""
        return live + freed + min(HOLES, 2 * live) if self.cpu else live

    def _weights(self, holding: Holding, stage: "_Stage", names: list[str], read: int, before: int) -> int:
        """Bytes of weights in memory while these parts of a stage are used, of which ``read`` are read."""
        stuck = sum(  # what cannot be read again stays, wherever the rest is
            size(part) for other in self.stages for name, part in other.outlines.items()
            if name not in other.model.files
        )
        if holding.where == "layers":
            return stuck + max((stage.largest_layer(name) for name in names if name in stage.model.files), default=0)
        if holding.where == "parts":
            return stuck + sum(stage.occupied(name, read) for name in names if name in stage.model.files)
        if self.cpu and all(other.mapped for other in self.stages):
            return before + read
        return sum(size(part) for other in self.stages for part in other.outlines.values())

    def _loading(self, holding: Holding, read: int, times: int) -> float:
        return 0.0 if holding.where == "resident" else times * read / self.rates.load

    def _decoded(self, tile: int | None) -> tuple[Work, int, int]:
        """What one tile costs, how many there are to a picture, and bytes of what they are gathered in."""
        stage = self.stages[-1]
        model, autoencoder = stage.model, stage.outlines[self.settled.decoder]
        channels, height, width = self.settled.latent_shape
        side = tile_of(model, self.settled.latent_shape, tile)
        count, canvas = 1, 0
        if side is not None:
            overlap = side * OVERLAP // TILE
            count = len([*spans(height, side, overlap)]) * len([*spans(width, side, overlap)])
            canvas = 4 * (2 * 3 + 1) * height * width * model.latent.factor**2  # their sum, its quotient, the weights
            height, width = min(height, side), min(width, side)
        z = torch.empty(1, channels, height, width, dtype=model.dtype, device=META)
        decode = cast(Codec, autoencoder).decode
        _, work = trace(lambda: decode(z), [*weights(autoencoder), z], model.device.type)
        return work, count, canvas


class _Stage:
    """One model's part of the way, on the meta device."""

    def __init__(self, model: Model, settled: Settled, sigmas: list[float]) -> None:
        self.model, self.settled, self.sigmas = model, settled, sigmas
        self.plan = plan_for(settled.request, model)
        self.outlines = {name: outline(model, name) for name in model.parts}
        self.text_names = model.text_parts
        self.ghost = replace(model, parts=self.outlines, device=META)
        self.mapped = model.device.type == "cpu" and all(
            name in model.files and all(t.dtype == model.dtype for t in model.files[name].tensors.values())
            for name in model.parts
        )
        self._told = cache(self._conditioned)
        self._ready = cache(self._prepared)
        self.steps = cache(self._steps)

    def texts(self) -> Work:
        """What encoding the prompts costs."""
        return self._told()[1]

    def prepared(self) -> Work:
        """What is computed of a prompt before the first step."""
        return self._ready()[1]

    def _conditioned(self) -> tuple[dict[str, Conditioning], Work]:
        given = [tensor for name in self.text_names for tensor in weights(self.outlines[name])]
        prompts, work = trace(
            lambda: self.model.family.condition(self.ghost, self.settled.request, self.settled.names), given,
            self.model.device.type,
        )
        return {name: c.to(META, self.model.dtype) for name, c in prompts.conditionings.items()}, work

    def _prepared(self) -> tuple[dict[str, Conditioning], Work]:
        network, (conditionings, _) = self.ghost.network, self._told()
        given = [*weights(network), *_tensors(conditionings.values())]
        return trace(
            lambda: {name: prepare(network, row) for name, row in conditionings.items()}, given,
            self.model.device.type,
        )

    def _steps(self, together: int) -> dict[Hashable, tuple[int, Work]]:
        """By what guidance wants and shortcuts do: how many answers the sampler asks for, and what one costs."""
        shape = (together, *self.settled.latent_shape)
        rows = {
            name: row.map(lambda tensor: tensor.expand(together, *tensor.shape[1:]))
            for name, row in self._ready()[0].items()
        }
        network = self.ghost.network
        denoiser = Denoiser(network, META, self.model.dtype)
        shortcuts = self.settled.shortcuts()
        counts: Counter[Hashable] = Counter()
        works: dict[Hashable, Work] = {}
        x = torch.empty(shape, device=META)
        for sigma in self._questions():
            ask = Ask(Query(x, sigma), self.plan, self.settled.guidance, rows, shortcuts=shortcuts)
            names = ask.wants()
            kind = names, tuple(shortcut.kind(names) for shortcut in shortcuts)
            counts[kind] += 1
            if kind not in works:
                given = [*weights(network), x, *_tensors(rows.values())]
                _, works[kind] = trace(partial(denoiser.answer, [ask]), given, self.model.device.type)
            else:
                for shortcut in shortcuts:
                    shortcut.around(network, [shortcut], [Place(0, name, together) for name in names])
        return {kind: (count, works[kind]) for kind, count in counts.items()}

    def _questions(self) -> Iterator[float]:
        """The sigmas at which the sampler will ask: it is run on a picture of one number, with a made-up network."""
        sampler = self.plan.start(
            torch.ones(1, 1, 1, 1), self.sigmas, lambda: torch.zeros(1, 1, 1, 1), **self.settled.options
        )
        try:
            query = next(sampler)
            while True:
                yield query.sigma
                query = sampler.send(Estimate(query.x / (1 + query.sigma)))
        except StopIteration:
            return

    def largest_layer(self, name: str) -> int:
        """Bytes of the layer that is heaviest, with the tables that it brings along."""
        return max(
            sum(t.nbytes for t in layer.parameters(recurse=False))
            + sum(size(child) for child in layer.children() if isinstance(child, nn.Embedding))
            for layer in self.outlines[name].modules()
        )

    def occupied(self, name: str, read: int) -> int:
        """Bytes of a part that is in memory: of a mapped one only what is read."""
        return min(read, size(self.outlines[name])) if self.mapped else size(self.outlines[name])


def outline(model: Model, name: str) -> nn.Module:
    """A part on the meta device, laid out as it is on the model's."""
    if name in model.files:
        module = model.files[name].outline(model.dtype)
    else:
        memo: dict[int, Tensor] = {}  # what a copy finds there it does not copy
        for t in weights(model.parts[name]):
            memo[id(t)] = nn.Parameter(t.to(META), requires_grad=False) if isinstance(t, nn.Parameter) else t.to(META)
        module = copy.deepcopy(model.parts[name], memo)
    if model.device.type != "cpu":
        for tensor in weights(module):
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return module


def _tensors(conditionings: Iterable[Conditioning]) -> list[Tensor]:
    found: list[Tensor] = []
    for conditioning in conditionings:
        conditioning.map(found.append)
    return found
