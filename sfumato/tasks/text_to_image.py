"""Text to image: a Request becomes Pictures. What is common to all tasks is here."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from sfumato.core.errors import RequestError
from sfumato.core.request import Request
from sfumato.engine import lossy
from sfumato.engine.decode import decode
from sfumato.engine.denoiser import Denoiser
from sfumato.engine.driver import Job, OnStep, Spell, run
from sfumato.engine.recorded import Recorded, recorded
from sfumato.engine.residence import USUAL, Holding, Keeper
from sfumato.engine.streams import Streams
from sfumato.engine.timetable import Timetable
from sfumato.families.types import CONTROL, Model, Prompts
from sfumato.models.controlnet import ControlNet
from sfumato.nn.conditioning import Conditioning
from sfumato.sampling.types import Sampler
from sfumato.tasks.picture import Picture
from sfumato.tasks.recipe import recipe
from sfumato.tasks.settle import Settled, channels_beside, plan_for, settle

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Result:
    """What a task made.

    Attributes:
        pictures: with their recipes.
        latents: [n, C, h, w] as the diffusion model ended, in its own scale.
        tokens: how many tokens each prompt used, by "positive" and "negative".
        notes: what the caller ought to know.
        seconds: wall time.
    """

    pictures: list[Picture]
    latents: Tensor
    tokens: dict[str, int]
    notes: list[str]
    seconds: float

    @property
    def images(self) -> "list[Image]":
        """The pictures as ``PIL.Image.Image``."""
        return [picture.image for picture in self.pictures]


def text_to_image(
    model: Model, request: Request, on_step: OnStep | None = None, refiner: Model | None = None,
    holding: Holding = USUAL,
) -> Result:
    """Draw what a request describes; see ``draw``."""
    return draw(Drawing, model, request, on_step, refiner, holding)


@torch.inference_mode()
def draw(
    task: "type[Drawing]", model: Model, request: Request, on_step: OnStep | None = None,
    refiner: Model | None = None, holding: Holding = USUAL,
) -> Result:
    """Draw what a request describes.

    Args:
        task: one of ``tasks.TASKS``.
        on_step: told after each answer of the network; may raise ``Cancelled``.
        refiner: takes over from ``request.refiner_start`` of the schedule on.
        holding: where the parts rest, how many rows share a forward, in what tiles the decoder works.

    Raises:
        RequestError: the request is not for this model.
        NumericError: the network or the autoencoder gave NaN or infinity.
    """
    drawing = task(model, request, refiner, holding)
    drawing.prepare()
    seeds = drawing.settled.seeds
    together = pictures_together(drawing.settled, holding.rows)
    latents = torch.cat([
        drawing.draw(seeds[i : i + together], on_step) for i in range(0, len(seeds), together)
    ])  # [n, C, h, w]
    return drawing.result(*drawing.decode(latents, seeds), latents)


class Beginning(NamedTuple):
    """Where some pictures begin.

    Attributes:
        x: [n, C, h, w] in the variance-exploding frame, at the first sigma.
        streams: of what is drawn later.
        keep: makes of a sampler, and the sigma where it ends, one that leaves part of the pictures as it is; used with
            networks that are given nothing beside x.
        beside: [n, C', h, w], channels beside x, for those that are.
    """

    x: Tensor
    streams: Streams
    keep: Callable[[Sampler, float], Sampler] | None = None
    beside: Tensor | None = None


class Drawing:
    """A request on its way: what is decided and computed once for all its pictures.

    Args:
        asked: the request, or all that is decided of it where that was done for this model before.

    Raises:
        RequestError: the request is not for this model. Nothing was computed.
    """

    def __init__(
        self, model: Model, asked: Request | Settled, refiner: Model | None = None, holding: Holding = USUAL
    ) -> None:
        self.started = time.perf_counter()
        self.settled = settled = asked if isinstance(asked, Settled) else settle(asked, model)
        request = settled.request
        if (request.refiner_start is None) != (refiner is None):
            raise RequestError("refiner_start and a refiner go together: one was given without the other.")
        self.stages = [(model, settled.sigmas)]
        if refiner is not None and request.refiner_start is not None:
            at = handover(settled, request.refiner_start)
            self.stages = [(model, settled.sigmas[: at + 1]), (refiner, settled.sigmas[at:])]
        self.model, self.refiner, self.holding = model, refiner, holding
        self.keeper = Keeper(holding.where, *(stage for stage, _ in self.stages))
        self.records = holding.recorded and holding.where == "resident"
        self.runs: list[Run] = []

    def prepare(self) -> None:
        """Encode what the request holds."""
        self.runs = [Run(stage, self.settled, sigmas, self.keeper, self.records) for stage, sigmas in self.stages]

    def begin(self, seeds: Sequence[int]) -> Beginning:
        """Where the pictures with these seeds begin: at noise."""
        streams = self.streams(seeds)
        return Beginning(streams() * self.noise_scale(), streams)

    def streams(self, seeds: Sequence[int]) -> Streams:
        """The noise of these pictures."""
        return Streams(seeds, self.settled.latent_shape, self.model.device, self.settled.request.noise)

    def noise_scale(self) -> float:
        """What noise is multiplied with where nothing but noise is at the first sigma."""
        return self.runs[0].plan.initial_scale(self.settled.sigmas[0])

    def end(self, x: Tensor) -> Tensor:
        """What the last sampler gave, in the diffusion model's own scale."""
        return x * self.runs[-1].plan.final_scale(self.settled.sigmas[-1])

    def draw(self, seeds: Sequence[int], on_step: OnStep | None = None) -> Tensor:
        """From noise to latents [n, C, h, w] of the pictures with these seeds."""
        begun = self.begin(seeds)
        x = begun.x
        for stage in self.runs:
            if len(stage.sigmas) > 1:
                [x] = run([stage.job(x, begun, on_step)])
        return self.end(x)

    def decode(self, latents: Tensor, seeds: Sequence[int]) -> tuple[list[Picture], list[str]]:
        """Pictures of latents [n, C, h, w] with their recipes, and notes on what had to be done."""
        decoding, part = self.runs[-1].model, self.settled.decoder
        self.keeper.use(decoding, part)
        pixels, warnings = decode(decoding, latents, self.holding.tile, part, self.records)
        return [
            Picture.of(pixels[i], recipe(self.model, self.settled, seed, self.refiner)) for i, seed in enumerate(seeds)
        ], warnings

    def result(self, pictures: list[Picture], warnings: Iterable[str], latents: Tensor) -> Result:
        """All that the task made."""
        prompts = [run.prompts for run in self.runs]
        tokens = prompts[0].tokens
        counted = [f"Tokens: {', '.join(f'{name} prompt {count}' for name, count in tokens.items())}."]
        merged = [applied.note() for applied in self.model.adapters]
        slow = [run.recording.note for run in self.runs if run.recording is not None and run.recording.note]
        told = (*(p.notes for p in prompts), warnings, slow)
        brought = self.settled.given.notes if self.settled.given else ()
        if CONTROL in self.model.parts and self.settled.control is None:
            brought = (*brought, "There is a control model, and no control picture for it.")
        said = (self.model.notes, merged, brought, counted, lossy.notes(self.settled.modes), *told)
        notes = dict.fromkeys(note for part in said for note in part)
        return Result(pictures, latents, tokens, list(notes), time.perf_counter() - self.started)


def pictures_together(settled: Settled, rows: int) -> int:
    """How many pictures share a forward of at most so many rows; one at least."""
    return 1 if settled.plan.sampler == "dpm_adaptive" else max(1, rows // len(settled.names))


def handover(settled: Settled, share: float) -> int:
    """Index of the first sigma past that share of the schedule's time, where the refiner takes over."""
    total = settled.plan.time(settled.plan.schedule.sigma_max) + 1
    times = [settled.plan.time(sigma) for sigma in settled.sigmas[:-1]]
    return sum(t >= round((1 - share) * total) for t in times)


class Run:
    """One model's part of the way from noise to latents: what does not depend on the seed is made here, once."""

    def __init__(
        self, model: Model, settled: Settled, sigmas: Sequence[float], keeper: Keeper | None = None,
        recorded: bool = True,
    ) -> None:
        self.model, self.settled, self.sigmas = model, settled, sigmas
        self.keeper = keeper or Keeper(USUAL.where, model)
        self.recorded = recorded
        self.plan = plan_for(settled.request, model)
        self.keeper.use_texts(model)
        self.prompts: Prompts = model.family.condition(model, settled.request, settled.names)
        self.told: dict[bool, Told] = {}  # by whether the control picture has a say, where there are such steps
        self.recording: Recorded | None = None  # as the network was asked last; a bare one has to rest when it can

    def denoiser(self) -> Denoiser:
        """The network, brought to its device, and its conditionings ready."""
        model, spoken = self.model, says(self.model, self.settled, self.sigmas)
        self.keeper.use(model, *(model.stepping if True in spoken else [model.family.denoiser]))
        network = model.answering()
        if not self.told:
            own = {name: c.to(model.device, model.dtype) for name, c in self.prompts.conditionings.items()}
            self.told = {say: self._told(network, controlled(model, self.settled, own) if say else own)
                         for say in spoken}  # fmt: skip
        asked = recorded(network, model.device, model.network) if self.recorded else network
        self.recording = asked if isinstance(asked, Recorded) else None
        return Denoiser(asked, model.device, model.dtype)

    def _told(self, network: nn.Module, conditionings: Mapping[str, Conditioning]) -> "Told":
        ready = {name: prepare(network, conditioning) for name, conditioning in conditionings.items()}
        if not hasattr(network, "prepare_times"):
            return Told(ready)
        return Told(ready, Timetable(network, self.plan, self.sigmas, ready, self.model.device))

    def job(
        self, x: Tensor, begun: Beginning, on_step: OnStep | None, shared: Denoiser | None = None
    ) -> Job:
        """From x, at the first of the sigmas, to the last.

        Args:
            begun: what there is beside x.
            shared: the denoiser of another run of this model; jobs of one denoiser share its forwards.
        """
        own = self.denoiser()
        denoiser = shared or own
        given = channels_beside(self.settled.request, self.model) > 0
        beside = begun.beside.to(self.model.dtype) if given and begun.beside is not None else None
        rows = {say: told._replace(conditionings=for_pictures(told.conditionings, len(x), beside))
                for say, told in self.told.items()}  # fmt: skip
        told, control, spell = rows.get(False) or rows[True], self.settled.control, None
        if control is not None and len(rows) > 1:
            spell = Spell(control.high, control.low, *rows[True])
        sampler = self.plan.start(x, self.sigmas, begun.streams, **self.settled.options)
        if begun.keep is not None and not given:
            last = self.sigmas[-1] == self.settled.sigmas[-1]
            sampler = begun.keep(sampler, 0.0 if last else self.sigmas[-1])
        return Job(
            sampler, self.sigmas, denoiser, self.plan, self.settled.guidance, told.conditionings, on_step,
            told.timetable, self.settled.shortcuts(), spell,
        )


class Told(NamedTuple):
    """What a network is told in a run."""

    conditionings: dict[str, Conditioning]
    timetable: Timetable | None = None


def says(model: Model, settled: Settled, sigmas: Sequence[float]) -> set[bool]:
    """Whether the control picture has a say at these sigmas of this model, and whether at some it has none."""
    control = settled.control if CONTROL in model.parts else None
    return {control is not None and control.acts(sigma) for sigma in sigmas[:-1]} or {False}


def controlled(model: Model, settled: Settled, conditionings: Mapping[str, Conditioning]) -> dict[str, Conditioning]:
    """The conditionings, one row each, with what the control network makes of the control picture."""
    assert settled.given is not None  # a picture is
    assert settled.control is not None
    picture = settled.given.control_pixels.to(model.device, model.dtype)
    seen = cast(ControlNet, model.parts[CONTROL]).see(picture)  # [1, C, h, w]
    scale = torch.full((1,), settled.control.scale, device=model.device, dtype=model.dtype)
    return {name: replace(c, control=seen, control_scale=scale) for name, c in conditionings.items()}


def for_pictures(
    conditionings: Mapping[str, Conditioning], count: int, beside: Tensor | None = None
) -> dict[str, Conditioning]:
    """Conditionings of one row for so many pictures.

    Args:
        beside: [count, C', h, w], channels beside x.
    """
    found: dict[str, Conditioning] = {}
    for name, conditioning in conditionings.items():
        rows = conditioning.map(lambda row: row.expand(count, *row.shape[1:]))
        control = next((other.control for other in found.values()), rows.control)  # one, by which halves are known
        found[name] = replace(rows, concat=beside, control=control)
    return found


def prepare(network: nn.Module, conditioning: Conditioning) -> Conditioning:
    """What the network can compute of a conditioning before it sees a picture."""
    ready = getattr(network, "prepare", None)
    return ready(conditioning) if ready is not None else conditioning
