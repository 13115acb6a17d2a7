"""What a family declares, and what a loaded model is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from sfumato.adapters.types import Applied
from sfumato.checkpoints.parts import Part
from sfumato.core.errors import RequestError
from sfumato.core.request import Request
from sfumato.models.controlnet import Controlled, ControlNet
from sfumato.models.unet import UNet
from sfumato.nn.conditioning import Conditioning
from sfumato.text.tokenizer import ClipTokenizer


@dataclass(frozen=True)
class LatentFormat:
    """How the autoencoder's latents become the diffusion model's: ``(z - shift) * scale``.

    Attributes:
        channels: of a latent.
        factor: pixels a latent pixel stands for, in each direction.
        scale, shift: measured once, so that the diffusion model sees about unit variance.
        rgb: [channels][3] linear map from a latent to colours in [-1, 1], for previews that cost nothing, and a row
            more where it has an offset; or empty.
    """

    channels: int
    factor: int
    scale: float = 1.0
    shift: float = 0.0
    rgb: tuple[tuple[float, float, float], ...] = ()

    def from_autoencoder(self, z: Tensor) -> Tensor:
        """[B, channels, h, w] as the encoder gives it -> as the diffusion model wants it."""
        return (z - self.shift) * self.scale

    def to_autoencoder(self, z: Tensor) -> Tensor:
        """The inverse of ``from_autoencoder``."""
        return z / self.scale + self.shift


class Prompts(NamedTuple):
    """What a family made of a request's prompts."""

    conditionings: dict[str, Conditioning]  # "positive" and "negative", one row each
    tokens: dict[str, int]  # tokens used, by the same names
    notes: Sequence[str]  # what the caller ought to know: text cut off, weights that had no effect


@dataclass(frozen=True)
class Family:
    """What belongs together, declared once; nothing here is guessed from a checkpoint.

    Attributes:
        name: ``sd1``, ``sd2``, ``sdxl``, ….
        title: as people call it.
        size: width and height in pixels where neither the request nor the checkpoint names any.
        condition: makes the named conditionings ("positive", "negative") of a request's prompts, one row each.
        multiple: what width and height must be multiples of.
        defaults: request fields that the family sets where the user did not.
        scheduler: how it is sampled where the checkpoint does not say, in the words of scheduler_config.json.
        tasks: what it draws; a variant that needs a picture beside the prompt has no ``text_to_image``.
        uses: request fields that mean something to this family and not to all; the others of ``OPTIONAL`` are refused.
        rgb: see ``LatentFormat``.
        denoiser: the name of the part that denoises.
        pixels: without an autoencoder it denoises pixels; others have to have one.
    """

    name: str
    title: str
    size: int
    condition: "Callable[[Model, Request, Sequence[str]], Prompts]"
    multiple: int = 8
    defaults: Mapping[str, Any] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ("text_to_image", "image_to_image", "inpaint")
    uses: tuple[str, ...] = ()
    rgb: tuple[tuple[float, float, float], ...] = ()
    denoiser: str = "unet"
    pixels: bool = False

    def check_size(self, width: int, height: int, multiple: int) -> None:
        """Refuse what the network cannot take, and name the nearest that it can."""
        for name, value in (("width", width), ("height", height)):
            if value % multiple:
                low = max(value // multiple, 1) * multiple
                raise RequestError(
                    f"{name} = {value}: {self.title} draws multiples of {multiple} pixels; "
                    f"the nearest are {low} and {low + multiple}."
                )
            if value > MAX_SIDE:
                raise RequestError(f"{name} = {value}: the limit is {MAX_SIDE} pixels a side.")


MAX_SIDE = 16_384
"""Pixels. Beyond it one picture's activations do not fit any machine, and the request is a slip of the keyboard."""


TINY = "vae_tiny"
"""The name of the part that decodes where a request accepts a rougher picture for speed."""

CONTROL = "controlnet"
"""The name of the part that reads a control picture."""

OPTIONAL = ("clip_skip", "original_size", "crop", "refiner_start")
"""Request fields that only some families can use."""


@dataclass
class Model:
    """A family's networks with their weights, ready to draw.

    Attributes:
        parts: by their names in a checkpoint folder: ``unet``, ``vae``, ``text_encoder``, ….
        tokenizers: ``tokenizer``, ``tokenizer_2``.
        scheduler: how it is to be sampled, as diffusers' scheduler_config.json says it.
        options: plain values of the checkpoint's model_index.json.
        size: width and height in pixels where the request names none.
        source: where it came from, as the user named it.
        digest: SHA-256 over all tensors' content, computed when first asked for.
        file_digest: SHA-256 of the single file that it came in, by which other programs know it; None: a folder.
        notes: what was decided in loading that the user ought to know (device, precision).
        opened: what decided how it was opened, beside ``source``: ``vae``, ``variant``, ``family``, ``prediction``,
            ``quantize``.
        tiny: name of the tiny autoencoder that was opened beside the model's own, and the digest of its tensors.
        control: name of the control network that was opened beside the model's parts, and the digest of its tensors.
        files: what parts can be read from again, by their names, so that they need not stay in memory; whoever changes
            a part's weights takes its entry out.
        whole: what all parts were read from in the beginning.
        adapters: what is merged into the parts; see ``families.adapt``.
        low_resolution: how an upscaler's small picture is made noisy, as a scheduler_config.json says it.
        packed: parts whose layers were replaced, with the same result; from their files they come plain.
    """

    family: Family
    parts: dict[str, nn.Module]
    tokenizers: dict[str, ClipTokenizer]
    scheduler: Mapping[str, Any]
    latent: LatentFormat
    source: str
    digest: Callable[[], str]
    size: int
    options: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    notes: list[str] = field(default_factory=list)
    file_digest: Callable[[], str] | None = None
    opened: Mapping[str, str] = field(default_factory=dict)
    tiny: tuple[str, Callable[[], str]] | None = None
    control: tuple[str, Callable[[], str]] | None = None
    files: dict[str, Part] = field(default_factory=dict)
    whole: Mapping[str, Part] = field(default_factory=dict)
    adapters: tuple[Applied, ...] = ()
    low_resolution: Mapping[str, Any] = field(default_factory=dict)
    packed: set[str] = field(default_factory=set)

    @property
    def multiple(self) -> int:
        """What width and height must be multiples of: the family's number, or what the network itself says."""
        patch: int | None = getattr(getattr(self.network, "config", None), "patch_size", None)
        own: int | None = getattr(self.network, "multiple", patch)
        return self.family.multiple if own is None else own * self.latent.factor

    @property
    def guides_itself(self) -> bool:
        """Whether the network is told the guidance scale (LCM) and asked once, where others are asked twice."""
        return getattr(getattr(self.network, "config", None), "time_cond_proj_dim", None) is not None

    @property
    def network(self) -> nn.Module:
        """The part that denoises."""
        return self.parts[self.family.denoiser]

    @property
    def stepping(self) -> list[str]:
        """Names of the parts that compute at every step: the denoiser, and what controls it."""
        return [self.family.denoiser, *([CONTROL] if CONTROL in self.parts else [])]

    def answering(self) -> nn.Module:
        """The parts that compute at every step as one network. For one run: parts that rest are other modules then."""
        if CONTROL not in self.parts:
            return self.network
        return Controlled(cast(UNet, self.network), cast(ControlNet, self.parts[CONTROL]))

    @property
    def text_parts(self) -> list[str]:
        """Names of the parts that read prompts: all but those of the steps and the autoencoders."""
        return [name for name in self.parts if name not in (*self.stepping, "vae", TINY)]
