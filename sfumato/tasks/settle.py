"""A request with its blanks filled in: what the user said, else what the checkpoint's files wish, else the family."""

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, NamedTuple

from sfumato import guidance
from sfumato.adapters.types import Wanted
from sfumato.adapters.wanted import asked
from sfumato.core.errors import RequestError
from sfumato.core.registry import fold
from sfumato.core.request import Request
from sfumato.engine import lossy
from sfumato.engine.denoiser import Shortcut
from sfumato.engine.lossy.types import Lossy
from sfumato.families.types import CONTROL, OPTIONAL, Model
from sfumato.guidance.types import Guidance
from sfumato.noise import SPACINGS
from sfumato.sampling import resolve
from sfumato.sampling.diffusers_config import from_diffusers
from sfumato.sampling.plan import Plan
from sfumato.tasks.given import Given, brought, frame, size_for

AUTOMATIC = "automatic"
"""A1111's word for the spacing that comes with the sampler."""


class Control(NamedTuple):
    """When a control picture has a say, and how much: at sigmas up to ``high`` and above ``low``."""

    scale: float
    high: float
    low: float

    def acts(self, sigma: float) -> bool:
        """Whether it has."""
        return self.low < sigma <= self.high


@dataclass(frozen=True)
class Settled:
    """All that is decided before the first number is drawn.

    Attributes:
        request: without blanks.
        seeds: one a picture.
        latent_shape: (C, h, w) of one picture.
        plan: how the model is sampled.
        sigmas: of the whole run.
        options: of the sampler, beside the plan's own.
        guidance: what is asked at each sigma.
        names: the conditionings that are wanted at any of them.
        modes: the lossy modes.
        given: the pictures that the request brings along.
        beside: channels that the network is given beside the latents.
        encodings: how many pictures are encoded.
        control: of the control picture among those given.
    """

    request: Request
    seeds: list[int]
    latent_shape: tuple[int, int, int]
    plan: Plan
    sigmas: list[float]
    options: dict[str, Any]
    guidance: Guidance
    names: tuple[str, ...]
    modes: tuple[Lossy, ...] = ()
    given: Given | None = None
    beside: int = 0
    encodings: int = 0
    control: Control | None = None

    def shortcuts(self) -> tuple[Shortcut, ...]:
        """Those of the lossy modes, new ones for one job."""
        return tuple(shortcut for mode in self.modes if (shortcut := mode.shortcut()) is not None)

    @property
    def decoder(self) -> str:
        """The part that decodes."""
        return next((part for mode in self.modes if (part := mode.decoder()) is not None), "vae")


def settle(request: Request, model: Model) -> Settled:
    """Decide everything.

    Raises:
        RequestError: an unknown name, a size the model cannot take, a field that this family has no use for.
    """
    family = model.family
    if request.task not in family.tasks:
        can = ", ".join(family.tasks) or "nothing from a prompt alone"
        raise RequestError(f"{family.title} cannot do {request.task}; it does {can}.")
    for name in OPTIONAL:
        if getattr(request, name) is not None and name not in family.uses:
            raise RequestError(f"{name} means nothing to {family.title}; leave it out.")
    if request.sigmas is not None and request.steps not in (None, len(request.sigmas) - 1):
        raise RequestError(
            f"steps = {request.steps}, and there are {len(request.sigmas)} sigmas, which are {len(request.sigmas) - 1} "
            "steps: leave steps out."
        )
    if request.control is not None and CONTROL not in model.parts:
        raise RequestError(
            "A control picture is given, and no network that reads it: open the model with control = … "
            "(--control-model on the command line)."
        )
    files, kind = brought(request), KINDS[request.task]
    sides: dict[str, Any] = {"width": model.size, "height": model.size}
    if files and request.mask_padding is None:
        times = model.latent.factor if kind.enlarges else None
        sides = size_for(request, next(iter(files.values())).picture, model.size, model.multiple, times)
    blanks = {**family.defaults, **defaults(request), **sides, "seed": secrets.randbits(32)}
    request = replace(request, **{name: value for name, value in blanks.items() if getattr(request, name) is None})
    assert request.width is not None  # these were blanks, and are filled
    assert request.height is not None
    assert request.seed is not None
    assert request.steps is not None
    assert request.cfg_scale is not None
    adapters = asked(request)
    if adapters != tuple(applied.wanted for applied in model.adapters):
        raise RequestError(
            f"The request asks for {_listed(adapters)}, and the model was given "
            f"{_listed([applied.wanted for applied in model.adapters])}: all that it draws at a time is drawn with the "
            "same (families.adapt changes them; a pipeline does so by itself)."
        )
    family.check_size(request.width, request.height, model.multiple)
    if request.guidance_channels is not None and request.guidance_channels > model.latent.channels:
        raise RequestError(
            f"guidance_channels = {request.guidance_channels}: the latents have {model.latent.channels} channels."
        )

    plan = plan_for(request, model)
    whole = list(request.sigmas) if request.sigmas is not None else plan.sigmas(request.steps)
    sigmas = whole if request.strength is None else whole[-1 - last_steps(len(whole) - 1, request.strength) :]
    wishes = {
        "guidance_rescale": request.guidance_rescale, "guidance_interval": request.guidance_interval,
        "guidance_channels": request.guidance_channels, "dynamic_threshold": request.dynamic_threshold,
    }
    wished = {name: value for name, value in wishes.items() if value}
    modes = lossy.read(request.lossy, model)
    for mode in modes:
        for name in mode.guidance():
            if name in wished:
                raise RequestError(f"{name} is given, and the lossy mode {mode.name} sets it too; leave one out.")
        wished |= mode.guidance()
    guide = guidance.build(1.0 if model.guides_itself else request.cfg_scale, **{**plan.guidance, **wished})
    wanted = {name for sigma in sigmas[:-1] for name in guide.wants(sigma)}
    factor, latents, beside = model.latent.factor, model.latent.channels, channels_beside(request, model)
    shrink = factor if kind.enlarges else 1  # the image stands beside the latents as it is
    return Settled(
        request=replace(
            request, sampler=plan.sampler, spacing=plan.spacing, steps=len(whole) - 1, lossy=tuple(map(str, modes))
        ),
        seeds=[(request.seed + i) % 2**64 for i in range(request.count)],
        latent_shape=(latents, request.height // factor, request.width // factor),
        plan=plan,
        sigmas=sigmas,
        options={} if request.eta is None else {"eta": request.eta},
        guidance=guide,
        names=tuple(name for name in ("positive", "negative") if name in wanted),
        modes=modes,
        given=frame(request, files, (request.width // shrink, request.height // shrink)) if files else None,
        beside=beside,
        encodings=kind.encodings * (2 if beside > latents else 1),
        control=None if request.control is None else control_of(request, sigmas),
    )


def defaults(request: Request) -> dict[str, Any]:
    """What a task fills blanks with; where sigmas are given, they say how much is done of an image."""
    found = {**KINDS[request.task].defaults, **({} if request.control is None else CONTROL_DEFAULTS)}
    if request.sigmas is not None:
        found.pop("strength", None)
    return found


@dataclass(frozen=True)
class Kind:
    """What is decided for a task beforehand.

    Attributes:
        defaults: what it fills blanks with.
        encodings: how many pictures are encoded; twice as many where latents of what a mask leaves stand beside.
        beside: how many channels may stand beside so many of the latents.
        enlarges: the image is smaller than what is drawn, by the autoencoder's factor.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    encodings: int = 0
    beside: Callable[[int], tuple[int, ...]] = lambda latents: (0,)
    enlarges: bool = False


KINDS = {
    "text_to_image": Kind(),
    "image_to_image": Kind({"strength": 0.75}, encodings=1),
    "inpaint": Kind({"strength": 1.0, "mask_blur": 4}, encodings=1, beside=lambda latents: (0, latents + 1)),
    "depth_to_image": Kind({"strength": 0.75}, encodings=1, beside=lambda latents: (1,)),
    "upscale": Kind({"noise_level": 20}, beside=lambda latents: (3,), enlarges=True),
}
"""By the names of ``tasks.TASKS``."""


CONTROL_DEFAULTS = {"control_scale": 1.0, "control_start": 0.0, "control_end": 1.0}
"""What blanks are filled with beside a control picture, whatever the task."""


def control_of(request: Request, sigmas: Sequence[float]) -> Control:
    """What a settled request says of its control picture; of the steps, those count that lie within its share whole.

    Raises:
        RequestError: none does.
    """
    assert request.control_scale is not None  # these were blanks, and are filled
    assert request.control_start is not None
    assert request.control_end is not None
    count = len(sigmas) - 1
    steps = [i for i in range(count) if i / count >= request.control_start and (i + 1) / count <= request.control_end]
    if not steps:
        raise RequestError(
            f"control_start = {request.control_start:g}, control_end = {request.control_end:g}: none of {count} steps "
            "lies whole between them, so the control picture would have no say; take more of the steps."
        )
    first, end = steps[0], steps[-1] + 1
    return Control(request.control_scale, sigmas[first] if first else inf, sigmas[end] if end < count else -inf)


def last_steps(steps: int, strength: float) -> int:
    """How many of the steps are done, the last ones, where an image is given.

    Raises:
        RequestError: none.
    """
    last = min(int(steps * strength), steps)
    if last < 1:
        raise RequestError(
            f"strength = {strength} of {steps} steps is less than one step, which would leave the image as it is; take "
            f"more steps, or a strength of {math.ceil(1000 / steps) / 1000} at least."
        )
    return last


def channels_beside(request: Request, model: Model) -> int:
    """How many channels the network is given beside the latents.

    Raises:
        RequestError: it is a network for something else.
    """
    latents = model.latent.channels
    channels = getattr(getattr(model.network, "config", None), "in_channels", latents)
    beside: int = channels - latents
    can = KINDS[request.task].beside(latents)
    if beside not in can:
        raise RequestError(
            f"The denoiser takes {channels} channels, {beside} beside those of the latents; {request.task} is for "
            f"{' or '.join(map(str, can))}."
        )
    return beside


def _listed(adapters: Sequence[Wanted]) -> str:
    return f"the LoRAs {', '.join(map(str, adapters))}" if adapters else "no LoRA"


def plan_for(request: Request, model: Model) -> Plan:
    """How this model is sampled when the request may name a sampler, a spacing, or both in one ("DPM++ 2M Karras").

    Raises:
        RequestError: an unknown name, or two spacings.
    """
    sampler, spacing = (None, None) if request.sampler is None else resolve(request.sampler)
    if request.spacing is not None and fold(request.spacing) != AUTOMATIC:
        named, spacing = spacing, SPACINGS.canonical(request.spacing)
        if named not in (None, spacing):
            raise RequestError(
                f"sampler = {request.sampler!r} names the spacing {named}, and spacing = {request.spacing!r} another: "
                "leave one out."
            )
    return from_diffusers(model.scheduler, sampler, spacing)
