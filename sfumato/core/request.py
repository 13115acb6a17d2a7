"""The one request that every face of sfumato speaks: Python, command line, HTTP, page, and a picture's own metadata."""

from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal

from sfumato.core.errors import RequestError


@dataclass(frozen=True)
class Request:
    """What is to be drawn. None means: what the model's family declares as its default.

    Raises:
        RequestError: a value out of its range; names are checked where they are looked up.
    """

    prompt: Annotated[str, "what to draw; (x:1.3) weights, BREAK starts a new chunk; DiT: a class"] = ""
    negative_prompt: Annotated[str, "what to stay away from"] = ""
    task: Annotated[str, "what the pictures that are given tell, unless it is upscale; without any"] = "text_to_image"
    image: Annotated[str | None, "picture to begin from: a file or a data: URL"] = None
    mask: Annotated[str | None, "inpaint: picture, white where the image is painted anew, black where it stays"] = None
    depth: Annotated[str | None, "depth_to_image: picture, the whiter the nearer"] = None
    control: Annotated[str | None, "picture of edges, depths, poses, … as the control model was made to read"] = None
    control_scale: Annotated[float | None, "how much say the control picture has; 1 is what it was trained with"] = None
    control_start: Annotated[float | None, "share of the steps after which the control picture has a say"] = None
    control_end: Annotated[float | None, "share of the steps after which it has none any more"] = None
    strength: Annotated[float | None, "0 to 1: share of the steps, and so how far from the image it may go"] = None
    mask_blur: Annotated[int | None, "pixels over which what is painted melts into what stays"] = None
    mask_padding: Annotated[int | None, "draw only what lies so many pixels around the mask, and put it back"] = None
    noise_level: Annotated[int | None, "upscale: how noisy the image is made first; more invents more"] = None
    width: Annotated[int | None, "pixels"] = None
    height: Annotated[int | None, "pixels"] = None
    count: Annotated[int, "pictures, with seeds seed, seed + 1, …"] = 1
    seed: Annotated[int | None, "of the first picture; random unless given, and written into the picture"] = None
    steps: Annotated[int | None, "steps of the sampler"] = None
    cfg_scale: Annotated[float | None, "classifier-free guidance scale; 1 turns it off"] = None
    sampler: Annotated[str | None, "the solver; see `sfumato samplers`"] = None
    spacing: Annotated[str | None, "how the sigmas are chosen: leading, karras, …; automatic: the sampler's own"] = None
    sigmas: Annotated[tuple[float, ...] | None, "the sigmas themselves, in place of steps and spacing"] = None
    eta: Annotated[float | None, "share of fresh noise in samplers that have it (DDIM: 0 to 1)"] = None
    guidance_rescale: Annotated[float, "0 to 1: pull the guided output back to the unguided contrast"] = 0.0
    guidance_interval: Annotated[tuple[float, float] | None, "guide only while sigma is in [low, high]"] = None
    guidance_channels: Annotated[int | None, "guide the first so many latent channels alone (DiT's authors: 3)"] = None
    dynamic_threshold: Annotated[float | None, "percentile in (0, 1] for Imagen's dynamic thresholding"] = None
    lossy: Annotated[tuple[str, ...], "faster, and not the same: deepcache:3, interval, fast, …"] = ()
    loras: Annotated[tuple[str, ...], "LoRAs beside those of <lora:name:0.8> in the prompt: PATH or PATH:0.8"] = ()
    clip_skip: Annotated[int | None, "layers left out at the end of CLIP, as A1111 counts: 1 none, 2 the last"] = None
    prompt_weighting: Annotated[Literal["a1111", "comfy", "compel"], "what a weight does to the text states"] = "a1111"
    long_prompts: Annotated[Literal["chunk", "truncate"], "past 75 tokens: chunks, or cut (reported)"] = "chunk"
    noise: Annotated[Literal["philox", "torch"], "philox, or torch: what diffusers' CPU seeds give"] = "philox"
    original_size: Annotated[tuple[int, int] | None, "SDXL: height, width the model is to think it saw"] = None
    crop: Annotated[tuple[int, int] | None, "SDXL: top, left of the crop it is to think it saw"] = None
    refiner_start: Annotated[float | None, "SDXL: share of the schedule after which the refiner takes over"] = None

    def __post_init__(self) -> None:
        def refuse(name: str, rule: str) -> None:
            shown = repr(getattr(self, name))
            raise RequestError(f"{name} = {shown if len(shown) <= 100 else shown[:100] + '…'}: {rule}.")

        if len(self.prompt) > MAX_PROMPT or len(self.negative_prompt) > MAX_PROMPT:
            name = "prompt" if len(self.prompt) > MAX_PROMPT else "negative_prompt"
            raise RequestError(
                f"The {name} has {len(getattr(self, name)):,} characters; the limit is {MAX_PROMPT:,}. Shorten it."
            )
        if self.task == "text_to_image" and self.image is not None:
            kind = "inpaint" if self.mask is not None else "image_to_image"
            object.__setattr__(self, "task", kind if self.depth is None else "depth_to_image")
        needed, also = GIVEN.get(self.task, ((), ()))
        for name in needed:
            if getattr(self, name) is None:
                refuse("task", f"needs {name}")
        for name in TOLD:
            if getattr(self, name) is not None and name not in (*needed, *also):
                refuse(name, f"means nothing to {self.task}")
        for name, (told, never) in BESIDE.items():
            if getattr(self, name) is not None and self.task in never:
                refuse(name, f"means nothing to {self.task}")
            for more in told:
                if getattr(self, name) is None and getattr(self, more) is not None:
                    refuse(more, f"means nothing without {name}")
        if self.control_scale is not None and not 0 <= self.control_scale <= 10:
            refuse("control_scale", "must be from 0 to 10")
        start, end = self.control_start or 0.0, 1.0 if self.control_end is None else self.control_end
        if not 0 <= start < end <= 1:
            name = "control_start" if self.control_end is None else "control_end"
            refuse(name, "control_start and control_end must be from 0 to 1, the lower first")
        if self.strength is not None and not 0 < self.strength <= 1:
            refuse("strength", "must be above 0, and 1 at most")
        if self.strength is not None and self.sigmas is not None:
            refuse("strength", "the sigmas say by themselves where the run begins; leave one of them out")
        for name in ("mask_blur", "mask_padding"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1000:
                refuse(name, "must be from 0 to 1000")
        if self.noise_level is not None and not 0 <= self.noise_level <= 350:
            refuse("noise_level", "must be from 0 to 350, which is what upscalers were trained on")
        for name in ("width", "height", "steps", "guidance_channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                refuse(name, "must be at least 1")
        if not 1 <= self.count <= 1000:
            refuse("count", "must be from 1 to 1000")
        if self.seed is not None and not 0 <= self.seed < 2**64:
            refuse("seed", "must be from 0 to 2^64 - 1")
        if self.cfg_scale is not None and not 0 <= self.cfg_scale <= 1000:
            refuse("cfg_scale", "must be from 0 to 1000")
        if not 0 <= self.guidance_rescale <= 1:
            refuse("guidance_rescale", "must be from 0 to 1")
        if self.guidance_interval is not None and not 0 <= self.guidance_interval[0] < self.guidance_interval[1]:
            refuse("guidance_interval", "must be two sigmas, the lower first")
        if self.dynamic_threshold is not None and not 0 < self.dynamic_threshold <= 1:
            refuse("dynamic_threshold", "must be in (0, 1]")
        if self.eta is not None and not 0 <= self.eta <= 10:
            refuse("eta", "must be from 0 to 10")
        if self.clip_skip is not None and not 1 <= self.clip_skip <= 12:
            refuse("clip_skip", "must be from 1 to 12")
        if self.refiner_start is not None and not 0 < self.refiner_start < 1:
            refuse("refiner_start", "must be between 0 and 1")
        if self.sigmas is not None:
            falling = all(a > b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False))
            if len(self.sigmas) < 2 or not falling or not 0 <= self.sigmas[-1] <= self.sigmas[0] < inf:
                refuse("sigmas", "must be at least two finite numbers, decreasing, the last 0 or more")


GIVEN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "image_to_image": (("image",), ("strength",)),
    "inpaint": (("image", "mask"), ("strength", "mask_blur", "mask_padding")),
    "depth_to_image": (("image", "depth"), ("strength",)),
    "upscale": (("image",), ("noise_level",)),
}
"""Fields without which a task cannot be, and those that mean something to it; to any other they mean nothing."""

TOLD = tuple(dict.fromkeys(name for both in GIVEN.values() for names in both for name in names))
"""All of these fields."""

BESIDE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "control": (("control_scale", "control_start", "control_end"), ("upscale",)),
}
"""Pictures that may be brought along whatever the task: what is told of each, and tasks to which it means nothing."""

MAX_PROMPT = 20_000
"""Characters. A limit against requests that would run for hours, far above any prompt a person writes."""
