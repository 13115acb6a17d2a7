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
from sfumato.engine.decode import tiles_of
from sfumato.engine.denoiser import Ask, Denoiser, Place
from sfumato.engine.meta import META
from sfumato.engine.pack import FAST, SMALL, Eight
from sfumato.engine.rates import Rates, free, resident
from sfumato.engine.ready import Shapes, is_exact, pack_parts, packable, what_is_packed
from sfumato.engine.residence import USUAL, Holding, Where
from sfumato.engine.trace import Work, size, trace, weights
from sfumato.families.types import Model
from sfumato.models.latents import Codec
from sfumato.models.tiling import spans
from sfumato.nn import native
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.layers import Conv2d
from sfumato.sampling.types import Estimate, Query
from sfumato.tasks.settle import Settled, plan_for, settle
from sfumato.tasks.text_to_image import controlled, for_pictures, handover, pictures_together, prepare, says

LARGEST = 1.7
"""Packed weights may make a process so many times as large as plain ones would, and no larger."""

SHARE = 0.8
"""Of the memory that is free, what packed weights may take unasked."""

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
        """From the prompt to the pixels; reading a model into the system's cache, and packing it, are not in it."""
        return sum(phase.seconds for phase in self.phases)

    @property
    def peak(self) -> int:
        """Bytes, of the phase that needs the most."""
        return max(phase.peak for phase in self.phases)

    def notes(self) -> list[str]:
        """What had to be chosen to save memory, in words; nothing where all is as usual."""
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


@dataclass(frozen=True)
class Growth:
    """How large packed weights may become.

    Attributes:
        most: of the denoiser's weights, as a fraction more, as ``pack`` takes it; None: there is no room for any.
        shapes: of the pictures that its convolutions are given, where they had to be known.
        why: so much and no more.
    """

    most: float | None
    shapes: Shapes
    why: str

    @property
    def notes(self) -> list[str]:
        """Where there is no room for packed weights, that this is so."""
        return [f"Plain kernels, so slower: {self.why}."] if self.most is None else []


class Forecaster:
    """Counts what one request takes, for any way of holding its model.

    Args:
        rates: of the models' device in their precision.
        packs: the models' layers may still be packed, where the machine has native kernels or 8 bits are asked for.
        eight: how the denoiser, packed, multiplies in 8 bits, if it does.

    Raises:
        RequestError: the request cannot be drawn.
    """

    def __init__(
        self, model: Model, request: Request, rates: Rates, refiner: Model | None = None, packs: bool = False,
        eight: Eight | None = None,
    ) -> None:
        self.rates = rates
        self.settled = settle(request, model)
        self.cpu = model.device.type == "cpu"
        self.exact = is_exact(model)
        self.packs = packs and not model.packed and (eight is not None or (self.exact and native.available()))
        self.eight = eight
        self.ways = [(model, self.settled.sigmas)]
        if refiner is not None and request.refiner_start is not None:
            at, sigmas = handover(self.settled, request.refiner_start), self.settled.sigmas
            self.ways = [(model, sigmas[: at + 1]), (refiner, sigmas[at:])]
        self._stages = cache(self._staged)
        self.decoded, self.encoded = cache(self._decoded), cache(self._encoded)

    def _staged(self, plain: bool, growth: float | None) -> "list[_Stage]":
        """With layers that are plain or as they are; then packed."""
        stages = [_Stage(model, self.settled, sigmas, plain) for model, sigmas in self.ways]
        if growth is not None:
            shapes = self.shapes(Holding(growth=growth))
            for stage in stages:
                stage.pack(growth, self.eight, shapes if stage is stages[0] else {})
        return stages

    def stages(self, holding: Holding) -> "list[_Stage]":
        """Each model's part of the way, when they are held so."""
        packed = holding.where == "resident" and any(model.packed for model, _ in self.ways)
        return self._stages(not packed, holding.growth)

    def shapes(self, holding: Holding) -> Shapes:
        """Of the pictures that the first denoiser's convolutions are given, where packing it so asks for them."""
        asks = holding.growth is not None and SMALL < holding.growth < FAST
        return self._stages(True, None)[0].shapes() if asks else {}

    def forecast(self, holding: Holding) -> Forecast:
        """With the model held so."""
        return Forecast(holding, tuple(self._phases(holding)))

    def growth(self, limit: int | None = None) -> Growth:
        """How large packed weights may become: as much as helps, within bounds.

        The process may become ``LARGEST`` times what it would be with plain weights, and stays within the limit.

        Args:
            limit: bytes of the process; None: what it has, and ``SHARE`` of what is free now.
        """
        if not self.cpu:
            return Growth(SMALL, {}, "all that helps")  # which is none: convolutions stay as they are
        bound, said = limit, "the limit allows"
        if bound is None:
            left = free()
            bound = resident() + round(SHARE * left) if left else 1 << 62
            said = f"fits into {show_bytes(left)} of free memory"
        stages = self._stages(True, None)
        denoisers = sum(size(stage.model.parts[name]) for stage in stages for name in stage.model.stepping)
        decoders = sum(stage.packs(self.eight) for stage in stages) - denoisers
        held = self.rates.process + sum(size(part) for stage in stages for part in stage.outlines.values())
        if 3 * (denoisers + decoders) <= (LARGEST - 1) * held:  # there is no need to count any closer
            all_of_it = held + 3 * (denoisers + decoders) if limit is None else self.forecast(Holding(growth=FAST)).peak
            if all_of_it <= bound:
                return Growth(FAST, {}, "all that helps")
        plain = self.forecast(USUAL).peak + decoders  # which are there from the beginning once they are packed
        if plain > bound:
            return Growth(None, {}, f"packed ones are no more {said}")
        if LARGEST * plain < bound:
            bound, said = round(LARGEST * plain), f"{LARGEST} times the memory of plain ones allows"
        room = bound - plain - 3 * decoders
        return Growth(max(room / denoisers, SMALL), stages[0].shapes(), f"as much as {said}")

    def unasked(self) -> tuple[Forecast, list[str]]:
        """Where no limit is named: what is done then, and why."""
        if not self.packs:
            return self.forecast(USUAL), []
        found = self.growth()
        if found.most is None:
            return self.forecast(USUAL), found.notes
        forecast = self.forecast(replace(USUAL, growth=found.most))
        plain, packed = (sum(stage.packs(self.eight) for stage in self.stages(h)) for h in (USUAL, forecast.holding))
        told = f"{show_bytes(packed)} where they took {show_bytes(plain)}"
        if not self.exact:
            return forecast, [f"Layers that multiply in 8 bits, whose weights take {told}."]
        why = "" if self.eight == "int8" else f": {found.why}"
        return forecast, [f"Native kernels, whose weights take {told}{why}."]

    def fit(self, limit: int) -> Forecast:
        """The fastest way that stays within so many bytes; exact ways are preferred to tiles, tiles to layers.

        Raises:
            CapacityError: there is none; the message names the least that would do.
        """
        least: Forecast | None = None
        ways: list[tuple[Where, bool, float | None]] = [
            ("resident", False, None), ("parts", False, None), ("resident", True, None), ("parts", True, None),
            ("layers", False, None), ("layers", True, None),
        ]  # fmt: skip
        if self.packs:
            most = self.growth(limit).most or SMALL
            whole: list[tuple[Where, bool, float | None]] = [("resident", False, most), ("resident", False, SMALL)]
            ways = [*whole, *ways[:2], ("resident", True, SMALL), *ways[2:]]
        if self.eight:
            ways = [way for way in ways if way[0] == "resident" and (way[2] is not None) == self.packs]
        for where, tiled, growth in ways:
            for holding in self._holdings(where, tiled, growth, limit):
                found = self.forecast(holding)
                if found.peak <= limit:
                    return found
                least = found if least is None or found.peak < least.peak else least
        assert least is not None  # there are ways
        worst = max(least.phases, key=lambda phase: phase.peak)
        held = "in 8 bits" if self.eight else "even with each layer in memory only while it computes"
        raise CapacityError(
            f"This request needs at least {show_bytes(least.peak)} of memory ({worst.name}), {held}; the limit is "
            f"{show_bytes(limit)}. Allow more, or draw smaller pictures."
        )

    def _holdings(self, where: Where, tiled: bool, growth: float | None, limit: int) -> Iterator[Holding]:
        """Without tiles, or with the largest first; each with the most rows with which it fits, or the fewest.

        Fewer rows leave the picture as it is, so they are tried before smaller tiles.
        """
        names = len(self.settled.names)
        for tile in TILES if tiled else (None,):
            if tile is not None and tiles_of(self.ways[-1][0], self.settled.latent_shape, tile) is None:
                continue
            together = min(len(self.settled.seeds), pictures_together(self.settled, USUAL.rows))
            found = Holding(where, USUAL.rows, tile, growth)
            while together > 1 and self.forecast(found).peak > limit:
                together = -(-together // 2)
                found = replace(found, rows=together * names)
            yield found

    def _phases(self, holding: Holding) -> Iterator[Phase]:
        stages = self.stages(holding)
        texts = [stage.texts() for stage in stages]
        before = 0  # bytes of weights that earlier phases left in memory
        kept = 0  # bytes of what they found
        heap = 0  # bytes of what they used and freed, most of which the heap keeps
        encoded = 0  # the same of the encoder, into which what the decoder uses fits
        for stage, work in zip(stages, texts, strict=True):
            held = self._weights(holding, stages, stage, stage.text_names, work.read, before)
            before += work.read
            loads = self._loading(holding, work.read, 1)
            yield self._phase("text encoding", 1, [work], held + kept + self._heap(work.peak, heap), loads)
            kept += work.kept
            heap = max(heap, work.peak)
        if self.settled.encodings:
            work, tiles, canvas = self.encoded(stages[0], holding.tile)
            read = 0 if "vae" in stages[0].packed else work.read
            held = self._weights(holding, stages, stages[0], ["vae"], read, before)
            before += read
            times = self.settled.encodings
            loads = self._loading(holding, work.read, times * tiles if holding.where == "layers" else 1)
            peak = held + kept + self._heap(work.peak + canvas, heap)
            yield self._phase("encoding", times * tiles, [work] * (times * tiles), peak, loads)
            encoded = work.peak
        pictures = len(self.settled.seeds)
        together = min(pictures, pictures_together(self.settled, holding.rows))
        runs = -(-pictures // together)
        for stage in stages:
            step = stage.steps(together)
            most = max(step.values(), key=lambda found: found[1].peak)[1]
            calls = sum(count for count, _ in step.values())
            ready = stage.prepared()
            read = 0 if stage.asked[0] in stage.packed else most.read + ready.read
            held = self._weights(holding, stages, stage, stage.asked, read, before)
            before += read
            works = [work for count, work in step.values() for _ in range(count)]
            share = pictures / (together * runs)
            loads = self._loading(holding, most.read, calls * runs if holding.where == "layers" else 1)
            kept += ready.kept
            peak = held + kept + self._heap(max(most.peak, ready.peak), max(heap, encoded))
            yield self._phase("denoising", calls * runs, works * runs, peak, loads, share)
            heap = max(heap, most.peak)
        work, tiles, canvas = self.decoded(stages[-1], holding.tile)
        read = 0 if self.settled.decoder in stages[-1].packed else work.read
        held = self._weights(holding, stages, stages[-1], [self.settled.decoder], read, before)
        height, width = (side * stages[-1].model.latent.factor for side in self.settled.latent_shape[1:])
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
        """Bytes that it takes to hold so many that live, after so many had come and gone.

        A CPU's heap keeps what was freed, and what comes next seldom fits into it.
        """
        return live + freed if self.cpu else live

    def _weights(
        self, holding: Holding, stages: "list[_Stage]", stage: "_Stage", names: list[str], read: int, before: int
    ) -> int:
        """Bytes of weights in memory while these parts of a stage are used, of which ``read`` are read."""
        stuck = sum(  # what cannot be read again stays, wherever the rest is
            size(part) for other in stages for name, part in other.outlines.items() if name not in other.model.files
        )
        if holding.where == "layers":
            return stuck + max((stage.largest_layer(name) for name in names if name in stage.model.files), default=0)
        if holding.where == "parts":
            return stuck + sum(stage.occupied(name, read) for name in names if name in stage.model.files)
        if self.cpu and all(other.mapped for other in stages):
            return sum(sum(other.packed.values()) for other in stages) + before + read
        return sum(size(part) for other in stages for part in other.outlines.values())

    def _loading(self, holding: Holding, read: int, times: int) -> float:
        return 0.0 if holding.where == "resident" else times * read / self.rates.load

    def _decoded(self, stage: "_Stage", tile: int | None) -> tuple[Work, int, int]:
        """What one tile costs, how many there are to a picture, and bytes of what they are gathered in."""
        model, autoencoder = stage.model, stage.outlines[self.settled.decoder]
        height, width, count = self._tiles(model, tile)
        z = torch.empty(1, self.settled.latent_shape[0], height, width, dtype=model.dtype, device=META)
        decode = cast(Codec, autoencoder).decode
        _, work = trace(lambda: decode(z), [*weights(autoencoder), z], model.device.type)
        return work, count, self._canvas(3, model.latent.factor) if count > 1 else 0

    def _encoded(self, stage: "_Stage", tile: int | None) -> tuple[Work, int, int]:
        """The same of what the image is encoded in."""
        model, autoencoder = stage.model, stage.outlines["vae"]
        height, width, count = self._tiles(model, tile)
        factor = model.latent.factor
        x = torch.empty(1, 3, height * factor, width * factor, dtype=model.dtype, device=META)
        encode = cast(Codec, autoencoder).encode
        _, work = trace(lambda: encode(x).mean, [*weights(autoencoder), x], model.device.type)
        return work, count, self._canvas(2 * self.settled.latent_shape[0], 1) if count > 1 else 0

    def _tiles(self, model: Model, tile: int | None) -> tuple[int, int, int]:
        """Height and width of the autoencoder's tiles in latent positions, and how many there are to a picture."""
        height, width = self.settled.latent_shape[1:]
        tiles = tiles_of(model, self.settled.latent_shape, tile)
        if tiles is None:
            return height, width, 1
        count = len([*spans(height, *tiles)]) * len([*spans(width, *tiles)])
        return min(height, tiles.tile), min(width, tiles.tile), count

    def _canvas(self, channels: int, factor: int) -> int:
        """Bytes of what tiles are gathered in: their sum, its quotient, the weights."""
        height, width = self.settled.latent_shape[1:]
        return 4 * (2 * channels + 1) * height * width * factor**2


class _Stage:
    """One model's part of the way, on the meta device.

    Attributes:
        packed: bytes of the packed layers' weights, by their parts' names.
        asked: names of the parts that compute at the steps, the denoiser first.
    """

    def __init__(self, model: Model, settled: Settled, sigmas: list[float], plain: bool) -> None:
        self.model, self.settled, self.sigmas = model, settled, sigmas
        self.plan = plan_for(settled.request, model)
        self.outlines = {name: outline(model, name, plain) for name in model.parts}
        self.packed: dict[str, int] = {}
        if not plain:
            self._weigh(model.packed)
        self.text_names = model.text_parts
        self.spoken = says(model, settled, sigmas)
        self.asked = model.stepping if True in self.spoken else [model.family.denoiser]
        self.ghost = replace(model, parts=self.outlines, device=META)
        self.mapped = model.device.type == "cpu" and all(
            name in model.files and all(t.dtype == model.dtype for t in model.files[name].tensors.values())
            for name in model.parts
        )
        self._shapes: dict[str, torch.Size] = {}
        self._told = cache(self._conditioned)
        self._ready = cache(self._prepared)
        self.steps = cache(self._steps)

    def pack(self, growth: float, eight: Eight | None, shapes: Shapes) -> None:
        """Replace the outlines' layers by packed ones."""
        names = packable(self.model, eight)
        pack_parts(self.model, self.outlines, eight, growth, shapes, names)
        self._weigh(names)

    def _weigh(self, names: Iterable[str]) -> None:
        self.packed = {name: size(what_is_packed(self.model, self.outlines, name)) for name in names}

    def packs(self, eight: Eight | None) -> int:
        """Bytes of what would be packed, as it is now."""
        return sum(size(what_is_packed(self.model, self.outlines, name)) for name in packable(self.model, eight))

    def shapes(self) -> Shapes:
        """Of the pictures that the denoiser's convolutions are given, by their names."""
        self.steps(min(len(self.settled.seeds), pictures_together(self.settled, USUAL.rows)))
        return self._shapes

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

    def _prepared(self) -> tuple[dict[bool, dict[str, Conditioning]], Work]:
        """With the control picture's say, and without, as far as there are such steps."""
        network, (conditionings, _) = self.ghost.answering(), self._told()
        given = [*weights(network), *_tensors(conditionings.values())]
        times = torch.empty(sum(sigma > 0 for sigma in self.sigmas), device=META)

        def before() -> tuple[dict[bool, dict[str, Conditioning]], list[Tensor]]:
            rows: dict[bool, dict[str, Conditioning]] = {}
            for say in self.spoken:
                own = controlled(self.ghost, self.settled, conditionings) if say else conditionings
                rows[say] = {name: prepare(network, row) for name, row in own.items()}
            told = getattr(network, "prepare_times", None)
            all_rows = [row for own in rows.values() for row in own.values()]
            return rows, [told(times, row).shifts for row in all_rows] if told is not None else []

        (rows, _), work = trace(before, given, self.model.device.type)
        return rows, work

    def _steps(self, together: int) -> dict[Hashable, tuple[int, Work]]:
        """By what guidance wants and shortcuts do: how many answers the sampler asks for, and what one costs."""
        shape = (together, *self.settled.latent_shape)
        beside = None
        if self.settled.beside:
            beside = torch.empty(together, self.settled.beside, *shape[2:], dtype=self.model.dtype, device=META)
        rows = {say: for_pictures(own, together, beside) for say, own in self._ready()[0].items()}
        control, network = self.settled.control, self.ghost.answering()
        denoiser = Denoiser(network, META, self.model.dtype)
        shortcuts = self.settled.shortcuts()
        counts: Counter[Hashable] = Counter()
        works: dict[Hashable, Work] = {}
        x = torch.empty(shape, device=META)
        convolutions = [(name, m) for name, m in self.ghost.network.named_modules() if isinstance(m, Conv2d)]
        hooks = [m.register_forward_pre_hook(partial(self._seen, name)) for name, m in convolutions]
        for sigma in self._questions():
            say = True in rows and (False not in rows or (control is not None and control.acts(sigma)))
            ask = Ask(Query(x, sigma), self.plan, self.settled.guidance, rows[say], shortcuts=shortcuts)
            names = ask.wants()
            kind = say, names, tuple(shortcut.kind(names) for shortcut in shortcuts)
            counts[kind] += 1
            if kind not in works:
                given = [*weights(network), x, *_tensors(rows[say].values())]
                _, works[kind] = trace(partial(denoiser.answer, [ask]), given, self.model.device.type)
            else:
                for shortcut in shortcuts:
                    shortcut.around(network, [shortcut], [Place(0, name, together) for name in names])
        for hook in hooks:
            hook.remove()
        return {kind: (count, works[kind]) for kind, count in counts.items()}

    def _seen(self, name: str, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._shapes[name] = given[0].shape

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


def outline(model: Model, name: str, plain: bool) -> nn.Module:
    """A part on the meta device, laid out as it is on the model's; ``plain``: not packed, where that can be had."""
    if name in model.files and (plain or name not in model.packed):
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
