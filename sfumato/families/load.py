"""A name becomes a Model: what it is, which family, on which device, in which precision."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch

from sfumato.adapters.trained import refuse_trained
from sfumato.checkpoints.diffusers import Folder, read_folder
from sfumato.checkpoints.hashes import content_hash, file_hashes, remembered
from sfumato.checkpoints.hub import locate
from sfumato.checkpoints.lazy import Lazy
from sfumato.checkpoints.parts import Part
from sfumato.checkpoints.sniff import sniff
from sfumato.checkpoints.store import open_file
from sfumato.core.errors import CheckpointError, RequestError
from sfumato.families import FAMILIES
from sfumato.families.autoencoders import read_autoencoder, read_tiny
from sfumato.families.control import check_control, read_control
from sfumato.families.single_file import OPENCLIP_PAD, recognise, scheduler_of
from sfumato.families.stable_diffusion import UPSCALER_BETAS
from sfumato.families.types import CONTROL, TINY, Family, LatentFormat, Model
from sfumato.models.autoencoder import SD_VAE, X4_UPSCALER_VAE, AutoencoderConfig
from sfumato.models.pixels import Pixels
from sfumato.text import tokenizer
from sfumato.text.tokenizer import ClipTokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Precision = Literal["float32", "bfloat16", "float16"]


def open_model(
    source: str | Path, *, device: str | None = None, dtype: Precision | None = None, vae: str | Path | None = None,
    variant: str | None = None, family: str | None = None, prediction: str | None = None, asleep: bool = False,
    vae_tiny: str | Path | None = None, control: str | Path | None = None,
) -> Model:
    """Open a model: a folder, a single file, or a hub name, in this order.

    Args:
        device: ``cuda``, ``cuda:1``, ``mps``, ``cpu``; the best there is unless given.
        dtype: the device's best precision unless given.
        vae: another autoencoder; see ``families.autoencoders.read_autoencoder``.
        variant: of a folder with several, such as ``fp16``.
        family: decides where a checkpoint could be of several families.
        prediction: what the network predicts, where a single file does not tell or the files tell wrong.
        asleep: leave the weights in their files; the parts are on the meta device until ``engine.residence`` wakes
            them.
        vae_tiny: a tiny autoencoder of the same latents, for requests that ask for it.
        control: a control network, for requests that bring a control picture; see ``families.control.read_control``.

    Raises:
        CheckpointError: it is not a model, is damaged, or is of several families.
        RequestError: a device that is not there.
    """
    place = pick_device(device)
    precision = DTYPES[dtype] if dtype is not None else pick_dtype(place)
    found = find(source, variant=variant, family=family, prediction=prediction)
    chosen, parts = found.family, dict(found.parts)
    if vae is not None:
        own = parts["vae"].config if "vae" in parts else None
        parts["vae"] = read_autoencoder(vae, variant, own if isinstance(own, AutoencoderConfig) else SD_VAE)
    check_latents(chosen, parts)
    guide = parts.pop(CONTROL, None) if control is None else read_control(control, variant)
    own_parts = dict(parts)  # `files` below loses those that can no longer be read again
    if vae_tiny is not None:
        parts[TINY] = small = read_tiny(vae_tiny, variant, parts["vae"])
    if guide is not None:
        check_control(guide, parts[chosen.denoiser], parts.get("vae"))
        parts[CONTROL] = guide
    modules: dict[str, Any] = {
        name: part.outline(precision) if asleep else part.load(precision, place, channels_last=place.type != "cpu")
        for name, part in parts.items()
    }
    if "vae" not in parts:
        modules["vae"] = pixels(parts[chosen.denoiser])
    latent = latent_format(chosen, parts, modules["vae"].factor)
    sample = parts[chosen.denoiser].config.sample_size
    choices = {"vae": vae, "variant": variant, "family": family, "prediction": prediction}
    return Model(
        family=chosen,
        parts=modules,
        tokenizers=dict(found.tokenizers),
        scheduler=found.scheduler if prediction is None else {**found.scheduler, "prediction_type": prediction},
        latent=latent,
        source=str(source),
        digest=cache(lambda: digest(own_parts)),
        tiny=None if vae_tiny is None else (str(vae_tiny), cache(lambda: digest({TINY: small}))),
        control=None if guide is None else (str(control or source), cache(lambda: digest({CONTROL: guide}))),
        size=sample * latent.factor if sample else chosen.size,
        options=found.options,
        low_resolution=found.low_resolution or {"_class_name": "DDPMScheduler", **UPSCALER_BETAS},
        device=place,
        dtype=precision,
        notes=[f"{chosen.title}, {str(precision).removeprefix('torch.')} on {describe(place)}."],
        file_digest=None if found.file is None else cache(partial(file_digest, found.file)),
        opened={name: str(choice) for name, choice in choices.items() if choice is not None},
        files=parts,
        whole=dict(parts),
    )


def pixels(denoiser: Part) -> Pixels:
    """What stands for the autoencoder of a denoiser of pixels.

    Raises:
        CheckpointError: what it denoises is no picture.
    """
    channels = denoiser.config.in_channels
    if channels not in (1, 3):
        raise CheckpointError(
            f"{denoiser.where}: it denoises {channels} channels, and there is no autoencoder that makes a picture of "
            "them; name one with --vae."
        )
    return Pixels(channels)


def latent_format(family: Family, parts: Mapping[str, Part], factor: int) -> LatentFormat:
    """How the autoencoder's latents become the denoiser's; pixels are their own."""
    if "vae" not in parts:
        return LatentFormat(parts[family.denoiser].config.in_channels, factor)
    config = parts["vae"].config
    return LatentFormat(
        channels=latent_channels(config), factor=factor, scale=config.scaling_factor,
        shift=getattr(config, "shift_factor", None) or 0.0, rgb=family.rgb,
    )


def latent_channels(config: Any) -> int:
    """Of an autoencoder's latents; those of a codebook have as many as its entries."""
    found: int = getattr(config, "dim", config.latent_channels)
    return found


@dataclass(frozen=True)
class Found:
    """A model before its weights are read.

    Attributes:
        scheduler: as scheduler_config.json has it.
        options: plain values of model_index.json.
        low_resolution: an upscaler's other scheduler_config.json.
        file: that holds it all; None: it is a folder.
    """

    family: Family
    parts: Mapping[str, Part]
    tokenizers: Mapping[str, ClipTokenizer]
    scheduler: Mapping[str, Any]
    options: Mapping[str, Any]
    file: Path | None = None
    low_resolution: Mapping[str, Any] = field(default_factory=dict)


def find(
    source: str | Path, *, variant: str | None = None, family: str | None = None, prediction: str | None = None
) -> Found:
    """The model's parts, wherever they lie; nothing is read but headers and configs.

    Raises:
        CheckpointError: see ``open_model``.
    """
    path = locate(source, variant)
    return in_folder(path, variant, family) if sniff(path) == "folder" else in_file(path, family, prediction)


def in_folder(path: Path, variant: str | None, family: str | None) -> Found:
    """The model in a folder as diffusers lays it out."""
    refuse_trained(path)
    folder = read_folder(path, variant)
    chosen: Family = FAMILIES.get(family or family_of(folder))
    return Found(
        chosen,
        parts_of(folder),
        {name: tokenizer.load(place) for name, place in folder.tokenizers.items()},
        folder.schedulers.get("scheduler", chosen.scheduler),
        folder.options,
        low_resolution=folder.schedulers.get("low_res_scheduler", {}),
    )


def in_file(path: Path, family: str | None, prediction: str | None) -> Found:
    """The model in a single file, with CLIP's own tokenizer, since such files have none."""
    file = open_file(path)
    variant, predicted = recognise(file.tensors, str(path), family, prediction)
    chosen: Family = FAMILIES.get(variant.family)
    towers = {
        name.replace("text_encoder", "tokenizer"): tokenizer.builtin(OPENCLIP_PAD)
        if tower.naming == "openclip" else tokenizer.builtin()
        for name, tower in variant.layout.text.items()
    }
    scheduler = scheduler_of(chosen, predicted, file.tensors)
    return Found(chosen, variant.layout.take_apart(file).parts, towers, scheduler, {}, path)


def parts_of(folder: Folder) -> dict[str, Part]:
    """By the names that they have here: an autoencoder is ``vae``, of whatever kind."""
    return {"vae" if name == "vqvae" else name: part for name, part in folder.parts.items()}


PIPELINES: Mapping[str, Callable[[Mapping[str, Part]], str]] = {
    "StableDiffusionPipeline": lambda parts: {768: "sd1", 1024: "sd2"}.get(width(parts), "latent"),
    "LatentConsistencyModelPipeline": lambda parts: {768: "sd1", 1024: "sd2"}.get(width(parts), "latent"),
    "StableDiffusionImg2ImgPipeline": lambda parts: {768: "sd1", 1024: "sd2"}.get(width(parts), "latent"),
    "StableDiffusionInpaintPipeline": lambda parts: {768: "sd1-inpaint", 1024: "sd2-inpaint"}.get(width(parts), ""),
    "StableDiffusionControlNetPipeline": lambda parts: {768: "sd1", 1024: "sd2"}.get(width(parts), "latent"),
    "StableDiffusionControlNetImg2ImgPipeline": lambda parts: {768: "sd1", 1024: "sd2"}.get(width(parts), "latent"),
    "StableDiffusionDepth2ImgPipeline": lambda parts: "sd2-depth",
    "StableDiffusionUpscalePipeline": lambda parts: "sd2-upscale",
    "StableDiffusionXLPipeline": lambda parts: "sdxl",
    "StableDiffusionXLImg2ImgPipeline": lambda parts: "sdxl" if "text_encoder" in parts else "sdxl-refiner",
    "StableDiffusionXLControlNetPipeline": lambda parts: "sdxl",
    "StableDiffusionXLControlNetImg2ImgPipeline": lambda parts: "sdxl",
    "StableDiffusionXLInpaintPipeline": lambda parts: "sdxl-inpaint",
    "DiTPipeline": lambda parts: "dit",
    "DDPMPipeline": lambda parts: "unconditional",
    "DDIMPipeline": lambda parts: "unconditional",
    "LDMPipeline": lambda parts: "unconditional",
}
"""The family that a folder's pipeline class stands for; where a class serves several, the context's width decides."""


def width(parts: Mapping[str, Part]) -> int:
    """Of the text states that the U-Net attends to."""
    found: int = parts["unet"].config.cross_attention_dim
    return found


def family_of(folder: Folder) -> str:
    """The name of a folder's family.

    Raises:
        CheckpointError: none is known; the message names the flag that decides.
    """
    name = PIPELINES[folder.pipeline](folder.parts) if folder.pipeline in PIPELINES else ""
    if not name:
        raise CheckpointError(
            f"{folder.path} is a {folder.pipeline or 'folder without a pipeline class'}, of no family known here. "
            f"If it is one after all, say which with --family: {', '.join(FAMILIES)}."
        )
    return name


def judge(folder: Folder) -> tuple[str, tuple[str, ...]]:
    """A folder's family, or nothing where none is known, and what is wrong with it; for ``sfumato inspect``."""
    name = ""
    try:
        name = family_of(folder)
        check_latents(FAMILIES.get(name), parts_of(folder))
    except CheckpointError as problem:
        return name, (str(problem),)
    return name, ()


def check_latents(family: Family, parts: Mapping[str, Part]) -> None:
    """Refuse an autoencoder whose latents the denoiser was not trained on, as far as shapes and configs can tell."""
    if "vae" not in parts:
        if family.pixels:
            return
        raise CheckpointError("The model has no autoencoder (vae); name one with --vae.")
    config, denoiser = parts["vae"].config, parts[family.denoiser].config
    latents = latent_channels(config)
    channels = getattr(denoiser, "predicted_channels", getattr(denoiser, "out_channels", latents))
    if channels == 2 * getattr(denoiser, "in_channels", 0):  # the second half is the learned variance
        channels = denoiser.in_channels
    if latents != channels:
        raise CheckpointError(
            f"{parts['vae'].where}: its latents have {latents} channels, the denoiser's {channels}. "
            "It is the autoencoder of another model."
        )
    scales = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025, "sd2-upscale": X4_UPSCALER_VAE.scaling_factor}
    expected = scales.get(family.name, scales.get(family.name.split("-")[0]))
    full = isinstance(config, AutoencoderConfig)  # tiny ones speak the denoiser's own scale
    if full and expected is not None and abs(config.scaling_factor - expected) > 1e-6:
        known = {0.18215: "Stable Diffusion 1 and 2", 0.13025: "Stable Diffusion XL"}.get(config.scaling_factor)
        raise CheckpointError(
            f"{parts['vae'].where}: its scaling_factor is {config.scaling_factor}, that of {family.title} is {expected}"
            f"{f'; it seems to be the autoencoder of {known}' if known else ''}. The shapes fit, but pictures would "
            "come out wrong: give the right one with --vae."
        )


def digest(parts: Mapping[str, Part]) -> str:
    """SHA-256 over the content of all tensors of all parts, remembered while their files do not change."""
    tensors: dict[str, Lazy] = {f"{part}.{name}": t for part, p in parts.items() for name, t in p.tensors.items()}
    paths = [path for part in parts.values() for path in part.paths]
    return remembered(paths, f"tensors of {', '.join(sorted(parts))}", lambda: content_hash(tensors))


def file_digest(path: Path) -> str:
    """SHA-256 of a file, remembered while it does not change."""
    return remembered((path,), "the file", lambda: file_hashes(path).sha256)


def pick_device(name: str | None) -> torch.device:
    """The named device, or the best there is.

    Raises:
        RequestError: it is not there.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name is None:
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    there = {"cpu": True, "cuda": cuda, "mps": mps}
    kind = name.split(":")[0]
    if not there.get(kind, False):
        can = ", ".join(k for k, v in there.items() if v)
        raise RequestError(f"There is no device {name!r} on this machine; there is {can}.")
    return torch.device(name)


def pick_dtype(device: torch.device) -> torch.dtype:
    """The precision in which a device is best: bfloat16 on new GPUs, float16 on old ones, float32 on a CPU."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def describe(device: torch.device) -> str:
    """A device as people call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
