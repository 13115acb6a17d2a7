"""A recipe: everything that a run depends on, as a TOML file of dataclasses.

Each table of a stage that is there is trained, in the order autoencoder, clip, diffusion, and each later stage uses
what the earlier ones made.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from sfumato.core.config import from_dict, read_toml
from sfumato.core.errors import ConfigError
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.clip import ClipConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.discriminator import DiscriminatorConfig
from sfumato.models.dit import DiTConfig
from sfumato.models.unet import UNetConfig
from sfumato.models.unet_unconditional import UnconditionalUNetConfig
from sfumato.models.vq_autoencoder import VQConfig
from sfumato.noise.prediction import PREDICTIONS
from sfumato.noise.schedule import RectifiedFlow, Schedule, discrete
from sfumato.objectives.autoencoder import AutoencoderLossConfig
from sfumato.objectives.denoise import DenoiseConfig
from sfumato.training.ema import EmaConfig
from sfumato.training.framing import Framing
from sfumato.training.lora import LoraConfig
from sfumato.training.rate import RateConfig


@dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    where: Annotated[str, "a folder, a .parquet or .tar file, or hub:owner/name"]
    layout: Annotated[str | None, "how it is laid out, where that is not plain"] = None
    image_column: Annotated[str, "the column of pictures, in layouts that have columns"] = "image"
    caption_column: Annotated[str, "the column of captions; a list of texts in it is several captions"] = "text"
    first_caption: Annotated[
        float | None, "0 to 1: of several captions how often the first is shown, else one of the others; None: alike",
    ] = None
    resolution: Annotated[int, "pixels of a side; with buckets, the root of the area"] = 64
    buckets: Annotated[bool, "keep each picture's shape as nearly as sizes of one area allow"] = False
    bucket_step: Annotated[int, "sides of buckets are multiples of it"] = 64
    framing: Annotated[Framing, "crop and flip"] = field(default_factory=Framing)
    held_out: Annotated[float, "0 to below 1: the share kept back, chosen by the items' names"] = 0.0
    accept: Annotated[tuple[str, ...], "kinds of problems on which training starts all the same"] = ()
    check: Annotated[bool, "look through the whole data set first, as `sfumato data check` does"] = True

    def __post_init__(self) -> None:
        if self.resolution < 8:
            raise ConfigError(f"resolution = {self.resolution}: at least 8 pixels.")
        if self.first_caption is not None and not 0 <= self.first_caption <= 1:
            raise ConfigError(f"first_caption = {self.first_caption}: must be from 0 to 1.")
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out = {self.held_out}: must be from 0 to below 1.")


@dataclass(frozen=True)
class TrainConfig:
    """How a stage is trained."""

    steps: Annotated[int, "optimiser steps"] = 1000
    batch: Annotated[int, "pictures an optimiser step, over all processes and accumulated parts"] = 32
    accumulate: Annotated[int, "parts in which each process takes its share of the batch"] = 1
    rate: Annotated[RateConfig, "the learning rate"] = field(default_factory=RateConfig)
    optimizer: Annotated[Literal["adamw", "adamw8bit"], "adamw8bit: moments in 8 bits (bitsandbytes)"] = "adamw"
    betas: Annotated[tuple[float, float], "of AdamW"] = (0.9, 0.999)
    weight_decay: Annotated[float, "of AdamW"] = 0.01
    clip_norm: Annotated[float, "the gradient's norm is cut to this; 0: never"] = 1.0
    precision: Annotated[Literal["no", "bf16", "fp16"], "of the arithmetic; weights stay in float32"] = "no"
    gradient_checkpointing: Annotated[bool, "compute activations twice instead of keeping them: less memory"] = False
    channels_last: Annotated[bool, "keep pictures with their channels together: quicker convolutions"] = True
    ema: Annotated[EmaConfig, "the average that draws"] = field(default_factory=EmaConfig)
    workers: Annotated[int, "processes that load data; 0: none beside the one that trains"] = 0
    save_every: Annotated[int, "steps between checkpoints"] = 500
    keep: Annotated[int, "so many of the newest checkpoints are kept, and the best"] = 2
    log_every: Annotated[int, "steps between lines on the terminal"] = 50
    eval_every: Annotated[int, "steps between losses on held-out data; 0: never"] = 0
    sample_every: Annotated[int, "steps between pictures drawn for the eye; 0: only at the end"] = 0
    metrics: Annotated[tuple[str, ...], "what `sfumato eval` measures of it, and its curves show; see there"] = ()
    metrics_every: Annotated[int, "steps between these; 0: only at the end"] = 0
    metrics_pictures: Annotated[int, "captions drawn for them"] = 50
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "trackio"], ...], "who draws the curves"] = (
        "tensorboard",
    )

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "save_every", "keep", "log_every", "metrics_pictures"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be at least 1.")
        if self.metrics_every and not self.metrics:
            raise ConfigError(f"metrics_every = {self.metrics_every}, but metrics names nothing to measure.")


MAY_CHANGE = (
    "workers", "save_every", "keep", "log_every", "sample_every", "metrics", "metrics_every", "metrics_pictures",
    "trackers", "gradient_checkpointing",
)
"""Settings of ``TrainConfig`` on which no weight depends: a run may be resumed with others."""


@dataclass(frozen=True)
class AutoencoderStage:
    """Pictures to latents and back."""

    model: Annotated[AutoencoderConfig | None, "a KL autoencoder"] = None
    vq: Annotated[VQConfig | None, "or one with a code book"] = None
    start: Annotated[
        str | None, "an autoencoder to go on from: its folder, a model's, a single file; model and vq may be left out",
    ] = None
    loss: Annotated[AutoencoderLossConfig, "what it is trained for"] = field(default_factory=AutoencoderLossConfig)
    discriminator: Annotated[DiscriminatorConfig, "its judge, where loss.adversarial is not 0"] = field(
        default_factory=DiscriminatorConfig
    )
    discriminator_rate: Annotated[float, "of the judge, as a share of the autoencoder's"] = 1.0
    first_log_variance: Annotated[
        float | None, "of the latents at the start, which noise of variance 1 would hide; -6 is quicker; None: about 0",
    ] = None
    flip: Annotated[float | None, "0 to 1: in place of data.framing's, which may have to spare left and right"] = None
    perceptual_weights: Annotated[Path | None, "VGG-16's and LPIPS's, a file; or a CLIP's folder"] = None
    train: Annotated[TrainConfig, "how"] = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if (self.model is None) == (self.vq is None) and (self.start is None or self.model is not None):
            raise ConfigError("[autoencoder] needs one of the tables model and vq, or start.")
        if self.start is not None and self.first_log_variance is not None:
            raise ConfigError("first_log_variance is for autoencoders that begin with nothing: not with start.")


@dataclass(frozen=True)
class ClipStage:
    """Texts and pictures to one space; the tokenizer is trained on the captions first."""

    model: Annotated[ClipConfig, "both towers; vocab_size and the token ids follow from the tokenizer"] = field(
        default_factory=ClipConfig
    )
    vocab_size: Annotated[int, "tokens at most, 514 at least"] = 2048
    train: Annotated[TrainConfig, "how"] = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class ScheduleConfig:
    """How noise is mixed in."""

    kind: Annotated[Literal["linear", "scaled_linear", "squaredcos_cap_v2", "flow"], "of betas, or straight paths"] = (
        "scaled_linear"
    )
    start: Annotated[float, "beta of the first step, linear and scaled_linear"] = 0.00085
    end: Annotated[float, "beta of the last step"] = 0.012
    steps: Annotated[int, "of discrete schedules"] = 1000
    zero_terminal_snr: Annotated[bool, "the last step is pure noise (needs v_prediction or sample)"] = False
    shift: Annotated[float, "of flow: moves the times that samplers visit towards noise"] = 1.0

    def build(self) -> Schedule:
        """The schedule itself."""
        if self.kind == "flow":
            return RectifiedFlow(shift=self.shift)
        return discrete(self.kind, self.steps, self.start, self.end, self.zero_terminal_snr)


@dataclass(frozen=True)
class DiffusionStage:
    """The denoiser."""

    conditioning: Annotated[Literal["none", "class", "text"], "what it is told beside the noisy picture"] = "text"
    space: Annotated[Literal["latent", "pixel"], "what it denoises"] = "latent"
    unet: Annotated[UNetConfig | None, "the network, for text"] = None
    unconditional: Annotated[UnconditionalUNetConfig | None, "the network, for none and class"] = None
    dit: Annotated[DiTConfig | None, "or a transformer, for none and class, on latents"] = None
    start: Annotated[
        str | None,
        "a model to go on from: a folder, a run, a single file, a name on the hub, or the folder of the network alone; "
        "the network's table may be left out",
    ] = None
    lora: Annotated[
        LoraConfig | None, "train low-rank factors beside start's layers, which stay; the run leaves lora.safetensors",
    ] = None
    autoencoder: Annotated[Path | None, "folder of a trained one; unless given, the run's own vae, or start's"] = None
    text_encoder: Annotated[Path | None, "model folder that has one; unless given, the run's own, or start's"] = None
    text: Annotated[
        ClipTextConfig | None, "a text encoder trained with the denoiser, from nothing; or start's, as it is there",
    ] = None
    vocab_size: Annotated[int, "tokens at most of the tokenizer that is trained for ``text``"] = 2048
    schedule: Annotated[ScheduleConfig, "of the noise"] = field(default_factory=ScheduleConfig)
    prediction: Annotated[Literal["epsilon", "v_prediction", "sample", "flow"], "what the network says"] = "epsilon"
    loss: Annotated[DenoiseConfig, "times and weights"] = field(default_factory=DenoiseConfig)
    drop: Annotated[float, "0 to 1: the share of captions or classes left out, for guidance"] = 0.1
    cache: Annotated[bool, "encode pictures and captions once, and keep them on disk"] = True
    prompts: Annotated[tuple[str, ...], "texts or classes drawn at intervals, seeds 0, 1, …"] = ()
    sample_steps: Annotated[int, "of the sampler that draws them"] = 25
    cfg_scale: Annotated[float, "the guidance that draws them"] = 4.0
    train: Annotated[TrainConfig, "how"] = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if self.lora is not None:
            if self.start is None:
                raise ConfigError("[diffusion.lora] changes a model that is there: name it with diffusion.start.")
            if given := [name for name in ("autoencoder", "text_encoder", "text") if getattr(self, name) is not None]:
                raise ConfigError(
                    "[diffusion.lora] changes the model of start, which has an autoencoder and a text encoder: leave "
                    f"{' and '.join(given)} out. (lora.text = true trains the text encoder too.)"
                )
        wanted = ("unet",) if self.conditioning == "text" else ("unconditional", "dit")
        given = [name for name in ("unet", "unconditional", "dit") if getattr(self, name) is not None]
        if len(given) > 1 or (not given and self.start is None) or not set(given) <= set(wanted):
            raise ConfigError(
                f"[diffusion] with conditioning = {self.conditioning!r} needs the table {' or '.join(wanted)} alone."
            )
        if self.dit is not None and self.space == "pixel":
            raise ConfigError("[diffusion.dit] denoises latents: set space = 'latent', or use the table unconditional.")
        if (self.schedule.kind == "flow") != (self.prediction == "flow"):
            raise ConfigError("schedule.kind = 'flow' and prediction = 'flow' go together.")
        if not 0 <= self.drop <= 1:
            raise ConfigError(f"drop = {self.drop}: must be from 0 to 1.")
        if self.prediction not in PREDICTIONS:
            raise ConfigError(f"There is no prediction {self.prediction!r}.")


@dataclass(frozen=True)
class Recipe:
    """A whole run."""

    data: Annotated[DataConfig, "what is trained on"]
    name: Annotated[str, "of the model"] = "sfumato"
    seed: Annotated[int, "of every draw"] = 0
    push_to_hub: Annotated[str | None, "org/name on the hub, private unless it exists, to upload the model to"] = None
    autoencoder: Annotated[AutoencoderStage | None, "first stage"] = None
    clip: Annotated[ClipStage | None, "second stage"] = None
    diffusion: Annotated[DiffusionStage | None, "third stage"] = None

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that are there, in order."""
        return tuple(name for name in ("autoencoder", "clip", "diffusion") if getattr(self, name) is not None)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed = {self.seed}: must be from 0 to 2^63 - 1.")
        if self.diffusion is not None and self.diffusion.lora is not None and len(self.stages) > 1:
            raise ConfigError(
                "[diffusion.lora] changes the model of start, whose other parts are not trained: leave the tables "
                f"{' and '.join(self.stages[:-1])} out."
            )


def load(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        changes: ``"diffusion.train.steps=2000"``: a value in TOML's notation, or a bare word.

    Raises:
        ConfigError: unknown keys (the nearest known is offered), values that do not fit, no stage at all.
    """
    data = read_toml(path)
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set {change}: write it as table.key=value.")
        _set(data, name.strip().split("."), _value(value.strip()), change)
    recipe = from_dict(Recipe, data, str(path))
    if not recipe.stages:
        raise ConfigError(f"{path}: there is no table autoencoder, clip or diffusion: nothing to train.")
    return recipe


def _set(data: dict[str, Any], keys: list[str], value: Any, change: str) -> None:
    for key in keys[:-1]:
        inner = data.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {change}: {key} is no table.")
        data = inner
    data[keys[-1]] = value


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def to_toml(data: Mapping[str, Any], table: str = "") -> str:
    """Plain data as TOML, which ``load`` reads back; None is left out, as TOML has no word for it."""
    plain = {k: v for k, v in data.items() if v is not None and not isinstance(v, Mapping)}
    lines = [f"[{table}]"] if table and plain else []
    lines += [f"{key} = {_toml_value(value)}" for key, value in plain.items()]
    text = "\n".join(lines) + "\n" if lines else ""
    for key, value in data.items():
        if isinstance(value, Mapping):
            inner = to_toml(value, f"{table}.{key}" if table else key)
            text += ("\n" if text else "") + inner if inner else ""
    return text


def _toml_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
