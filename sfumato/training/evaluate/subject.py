"""What is measured: a model or run folder with its data set; each part is opened when it is first asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Protocol

import torch
from torch import Tensor

from sfumato.adapters.trained import trained
from sfumato.adapters.wanted import asked
from sfumato.checkpoints.diffusers import read_part
from sfumato.checkpoints.hub import locate
from sfumato.core import rng
from sfumato.core.errors import ConfigError, DataError
from sfumato.core.request import Request
from sfumato.engine.decode import to_pixels
from sfumato.engine.ready import make_ready
from sfumato.families.adapt import adapt
from sfumato.families.load import open_model, pick_device
from sfumato.families.types import Model
from sfumato.models.perceptual import Perceptual
from sfumato.text.prompt import escape
from sfumato.training import recipe as recipes
from sfumato.training import shapes
from sfumato.training.evaluate.clip_folder import ClipFolder
from sfumato.training.evaluate.drawing import draw
from sfumato.training.evaluate.features import Given
from sfumato.training.framing import to_network
from sfumato.training.material import Material
from sfumato.training.perceptual import open_perceptual
from sfumato.training.recipe import DataConfig

MOST = 10_000
"""Pictures of the data set that drawn ones are compared with, at most."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How models are measured."""

    pictures: Annotated[int, "captions that are drawn"] = 200
    steps: Annotated[int, "of the sampler"] = 25
    sampler: Annotated[str | None, "see `sfumato samplers`; the model's own unless given"] = None
    cfg_scale: Annotated[float, "classifier-free guidance"] = 4.0
    seed: Annotated[int, "of the first picture; the nearest-neighbour test draws all with this one"] = 0
    clip: Annotated[Path | None, "folder of a CLIP with both towers; the run's own unless given"] = None
    features: Annotated[Path | None, "Inception's file or DINOv2's folder, for FID and the like; else CLIP"] = None
    perceptual_weights: Annotated[Path | None, "VGG-16's and LPIPS's, for LPIPS; or a CLIP's folder"] = None
    captions: Annotated[Path | None, "what the nearest-neighbour test draws, one a line; # begins a comment"] = None
    sweep: Annotated[tuple[str, ...], "sampler:steps of the sweep"] = (
        "ddpm:1000", "ddpm:250", "ddim:20", "ddim:50", "ddim:100", "dpmpp_2m:10", "dpmpp_2m:20", "unipc:10", "unipc:20",
    )
    scales: Annotated[tuple[float, ...], "guidance scales of the sweep; cfg_scale alone unless given"] = ()

    def __post_init__(self) -> None:
        if self.pictures < 1:
            raise ConfigError(f"pictures = {self.pictures}: must be at least 1.")


class Features(Protocol):
    """A network in whose features pictures are compared."""

    @property
    def name(self) -> str:
        """What it is, for whoever reads the figures."""

    def pictures(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] uint8 -> [N, D]."""


class Subject:
    """See above.

    Args:
        data: what to measure on; the run's own data set unless given.
        material: the same, opened already, without buckets.

    Attributes:
        source, loras: the model, and what changes it: a run that trained a LoRA is measured as the two together.
        parts: the model's folder.
        material: the data set, with the same pictures held out as in training.

    Raises:
        ConfigError: a folder that is no run, and no data set named.
    """

    def __init__(
        self, root: Path, config: EvaluateConfig, data: DataConfig | None = None,
        report: Callable[[str], None] = lambda text: None, material: Material | None = None,
    ) -> None:
        self.root, self.config, self.report = root, config, report
        lora = trained(root)
        self.source: str | Path = root if lora is None else lora.base
        self.loras = () if lora is None else (str(lora.file),)
        self.parts = root if lora is None else locate(lora.base)
        if material is not None:
            self.seed, self.material = material.seed, material
            return
        self.seed = 0
        if (root / "recipe.toml").is_file():
            recipe = recipes.load(root / "recipe.toml")
            self.seed, data = recipe.seed, data or recipe.data
        if data is None:
            raise ConfigError(f"{root} has no recipe.toml that would name a data set: name one with --data.")
        self.material = Material(replace(data, buckets=False), self.seed, report)

    def has(self, part: str) -> bool:
        """Whether the model has that part in a folder of its own."""
        return (self.parts / part / "config.json").is_file()

    @cached_property
    def device(self) -> torch.device:
        return pick_device(None)

    @cached_property
    def model(self) -> Model:
        """What draws."""
        model = open_model(self.source)
        adapt(model, asked(Request(loras=self.loras)))
        make_ready(model)
        return model

    @cached_property
    def clip(self) -> ClipFolder:
        """The CLIP that was named, or the run's own."""
        return ClipFolder(self.config.clip or self.parts / "clip", self.device)

    @property
    def has_clip(self) -> bool:
        return self.config.clip is not None or self.has("clip")

    @cached_property
    def coder(self) -> "Coder":
        """The autoencoder."""
        return Coder(self.parts / "vae", self.device)

    @cached_property
    def features(self) -> Features:
        """The network that was named; else CLIP's picture tower where there is one, else the autoencoder's latents."""
        if self.config.features is not None:
            return Given(self.config.features, self.device)
        return self.clip if self.has_clip else self.coder

    @cached_property
    def perceptual(self) -> Perceptual | None:
        """LPIPS, or the distance in a CLIP's states, where weights were named."""
        weights = self.config.perceptual_weights
        return None if weights is None else open_perceptual(weights, self.device)

    def pixels(self, items: Sequence[int]) -> Tensor:
        """[N, 3, H, W] uint8, cropped at the centre and not flipped."""
        return torch.stack([self.material.framed(i).pixels for i in items])

    def real(self) -> Tensor:
        """[N, 3, H, W] uint8 pictures of the data set, all or ``MOST`` of them: those of the least random key."""
        items = [*self.material.training, *self.material.held_out]
        return self.pixels(sorted(items, key=lambda i: rng.key("real", self.material.keys[i]))[:MOST])

    def draw(self, captions: Sequence[str], same_seed: bool = False, **fields: object) -> Tensor:
        """[N, 3, H, W] uint8, picture i of caption i with seed ``config.seed`` + i, or all with that seed.

        Args:
            fields: of the requests, in place of what the config says.
        """
        config = self.config
        told = {"steps": config.steps, "cfg_scale": config.cfg_scale, "sampler": config.sampler, "loras": self.loras,
                **fields}  # fmt: skip
        return draw(self.model, [
            Request(escape(caption), seed=config.seed + (0 if same_seed else i), **told)  # type: ignore[arg-type]
            for i, caption in enumerate(captions)
        ])

    @cached_property
    def scenes(self) -> bool:
        """Whether every caption is one of ``sfumato data shapes``."""
        try:
            for caption in self.material.captions:
                shapes.parse(caption)
        except DataError:
            return False
        return True

    def unseen(self) -> list[str]:
        """Captions of shapes that no picture of the data set has."""
        return shapes.unseen(0, self.config.pictures, set(self.material.captions), start=len(self.material.captions))


class Coder:
    """An autoencoder, on bytes."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.network = read_part(folder).load(torch.float32, device)
        self.device, self.name = device, f"latents of {folder}"

    @torch.inference_mode()
    def pictures(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] uint8 -> [N, D] the most probable latents."""
        found = [self.network.encode(to_network(part.to(self.device))).mode() for part in torch.split(pixels, 64)]
        return torch.cat([part.flatten(1).cpu() for part in found])

    @torch.inference_mode()
    def back(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] uint8 through the most probable latent and back, uint8."""
        z = [self.network.encode(to_network(part.to(self.device))).mode() for part in torch.split(pixels, 32)]
        return torch.cat([to_pixels(self.network.decode(part)) for part in z])
