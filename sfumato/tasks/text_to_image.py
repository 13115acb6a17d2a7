"""Text to image: a Request becomes Pictures. What is common to all tasks is here."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from sfumato.core.errors import RequestError
from sfumato.core.request import Request
from sfumato.engine import lossy
from sfumato.engine.decode import decode
from sfumato.engine.denoiser import Denoiser
from sfumato.engine.driver import Job, OnStep, run
from sfumato.engine.recorded import Recorded, recorded
from sfumato.engine.residence import USUAL, Holding, Keeper
from sfumato.engine.streams import Streams
from sfumato.engine.timetable import Timetable
from sfumato.families.types import Model, Prompts
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

    Raises:
        RequestError: the request is not for this model. Nothing was computed.
    """

    def __init__(self, model: Model, request: Request, refiner: Model | None = None, holding: Holding = USUAL) -> None:
        self.started = time.perf_counter()
        self.settled = settled = settle(request, model)
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
        self.conditionings: dict[str, Conditioning] = {}
        self.timetable: Timetable | None = None
        self.recording: Recorded | None = None  # as the network was asked last; a bare one has to rest when it can

    def denoiser(self) -> Denoiser:
        """The network, brought to its device, and its conditionings ready."""
        self.keeper.use(self.model, self.model.family.denoiser)
        self.conditionings = self.conditionings or {
            name: prepare(self.model.network, conditioning.to(self.model.device, self.model.dtype))
            for name, conditioning in self.prompts.conditionings.items()
        }
        network = self.model.network
        if self.timetable is None and hasattr(network, "prepare_times"):
            self.timetable = Timetable(network, self.plan, self.sigmas, self.conditionings, self.model.device)
        asked = recorded(network, self.model.device) if self.recorded else network
        self.recording = asked if isinstance(asked, Recorded) else None
        return Denoiser(asked, self.model.device, self.model.dtype)

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
        rows = {
            name: replace(conditioning.map(lambda row: row.expand(len(x), *row.shape[1:])), concat=beside)
            for name, conditioning in self.conditionings.items()
        }
        sampler = self.plan.start(x, self.sigmas, begun.streams, **self.settled.options)
        if begun.keep is not None and not given:
            last = self.sigmas[-1] == self.settled.sigmas[-1]
            sampler = begun.keep(sampler, 0.0 if last else self.sigmas[-1])
        return Job(
            sampler, self.sigmas, denoiser, self.plan, self.settled.guidance, rows, on_step, self.timetable,
            self.settled.shortcuts(),
        )


def prepare(network: nn.Module, conditioning: Conditioning) -> Conditioning:
    """What the network can compute of a conditioning before it sees a picture."""
    ready = getattr(network, "prepare", None)
    return ready(conditioning) if ready is not None else conditioning
