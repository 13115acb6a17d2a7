"""An autoencoder alone, in whichever of its files people have it."""

from pathlib import Path

from sfumato.checkpoints.diffusers import read_folder, read_part
from sfumato.checkpoints.hub import locate
from sfumato.checkpoints.keymap import KeyMap
from sfumato.checkpoints.kinds import describe
from sfumato.checkpoints.lazy import Lazy, Tensors, under
from sfumato.checkpoints.ldm import VAE_PREFIX, vae_rows
from sfumato.checkpoints.parts import Part
from sfumato.checkpoints.store import open_file
from sfumato.core.errors import CheckpointError
from sfumato.models.autoencoder import SD_VAE, AutoencoderConfig
from sfumato.models.tiny_autoencoder import TinyConfig, from_taesd

HALVES = ("encoder", "decoder")


def read_autoencoder(source: str | Path, variant: str | None = None, like: AutoencoderConfig = SD_VAE) -> Part:
    """Open an autoencoder; nothing is read but headers and configs.

    Args:
        source: a folder with config.json and weights; a whole model's folder; a single file in LDM's names, or a whole
            model's single file; or either of TAESD's two files, whose names end in ``encoder`` and ``decoder`` (the
            other is looked for beside it).
        like: the config of a single file in LDM's names, which holds none.

    Raises:
        CheckpointError: it holds no autoencoder that is known here.
    """
    path = locate(source, variant)
    if path.is_dir():
        if (path / "model_index.json").exists():
            parts = read_folder(path, variant).parts
            if "vae" not in parts:
                raise CheckpointError(f"{path} is a model without an autoencoder.")
            return parts["vae"]
        return read_part(path, variant=variant)
    file = open_file(path)
    tensors = file.tensors
    if is_taesd(tensors):
        return taesd(path)
    if any(name.startswith(VAE_PREFIX) for name in tensors):
        tensors = under(tensors, VAE_PREFIX)
    if "encoder.down.0.block.0.conv1.weight" not in tensors:
        seems = describe(tensors)
        raise CheckpointError(f"{path} holds no autoencoder{f'; it seems to be {seems}' if seems else ''}.")
    empty = Part("AutoencoderKL", like, {}, str(path))
    rows = KeyMap(vae_rows(like), (r"loss\..*", r"model_ema\..*")).only(empty.build().state_dict().keys())
    ours, _ = rows.to_ours(tensors, str(path))
    return Part("AutoencoderKL", like, ours, str(path), paths=file.paths)


def read_tiny(source: str | Path, variant: str | None, own: Part) -> Part:
    """A tiny autoencoder that was distilled from a model's own.

    Raises:
        CheckpointError: it is not a tiny one, or its latents are not shaped as the other's.
    """
    part = read_autoencoder(source, variant)
    if not isinstance(part.config, TinyConfig):
        raise CheckpointError(f"{part.where} is an autoencoder of full size, not a tiny one: give it with --vae.")
    theirs, ours = ((p.config.latent_channels, p.config.factor) for p in (part, own))
    if theirs != ours:
        raise CheckpointError(
            f"{part.where}: its latents have {theirs[0]} channels at 1/{theirs[1]} of a picture's side, the model's "
            f"{ours[0]} at 1/{ours[1]}. It is the tiny autoencoder of another model."
        )
    return part


def is_taesd(tensors: Tensors) -> bool:
    """Whether names are positions in a sequence, as in TAESD's own files."""
    return bool(tensors) and all(name.split(".")[0].isdigit() for name in tensors)


def taesd(path: Path) -> Part:
    """The two halves of a TAESD, given the file of one."""
    half = next((half for half in HALVES if path.stem.endswith(half)), None)
    if half is None:
        raise CheckpointError(f"{path} is half of a TAESD; its name has to end in encoder or decoder to say which.")
    found: dict[str, Lazy] = {}
    files = {name: path.with_name(path.name.replace(half, name)) for name in HALVES}
    for name, file in files.items():
        if not file.exists():
            raise CheckpointError(f"{path} is the {half} of a TAESD; its {name} {file} is not there.")
        found |= from_taesd("encoder" if name == "encoder" else "decoder", open_file(file).tensors)
    channels = found["decoder.layers.0.weight"].shape[1]
    config = TinyConfig(latent_channels=channels, use_midblock_gn=any(".pool." in n for n in found))
    return Part("AutoencoderTiny", config, found, str(path), paths=tuple(files.values()))
