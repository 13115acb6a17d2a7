"""A control network, in whichever of its files people have it, and whether it is one for the model at hand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.adapters.file import CONTEXTS
from sfumato.checkpoints.controlnet import CLASS, PART, PREFIX, ControlLayout, Naming
from sfumato.checkpoints.diffusers import read_folder, read_part
from sfumato.checkpoints.fingerprint import Fingerprint, candidates
from sfumato.checkpoints.hub import locate
from sfumato.checkpoints.kinds import describe
from sfumato.checkpoints.parts import Part
from sfumato.checkpoints.store import open_file
from sfumato.core.errors import CheckpointError
from sfumato.models.controlnet import CONTROLNETS
from sfumato.models.unet import UNetConfig

_LDM = "input_hint_block.0.weight", "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
_DIFFUSERS = (
    "controlnet_cond_embedding.conv_in.weight", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
)
NAMINGS: Mapping[str, tuple[tuple[str, str], Naming]] = {
    "control": ((PREFIX + _LDM[0], PREFIX + _LDM[1]), "prefixed"),
    "control, without prefix": (_LDM, "bare"),
    "control, in diffusers' names": (_DIFFUSERS, "diffusers"),
}
"""Of the convolution that first sees the picture, and of the second level's look at the text; see ``ControlLayout``."""

FINGERPRINTS = [
    Fingerprint(family, variant, {picture: (None, 3, 3, 3), text: (None, config.cross_attention_dim)})
    for variant, ((picture, text), _) in NAMINGS.items() for family, config in CONTROLNETS.items()
]
LAYOUTS = {
    (family, variant): ControlLayout(config, naming)
    for variant, (_, naming) in NAMINGS.items() for family, config in CONTROLNETS.items()
}
"""Every such network that is read from, and written as, one file."""

MUST_AGREE = (
    "cross_attention_dim", "block_out_channels", "addition_embed_type", "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)
"""Settings by which a network fits the U-Net that it adds to."""


def read_control(source: str | Path, variant: str | None = None) -> Part:
    """Open a control network; nothing is read but headers and configs.

    Args:
        source: a folder with config.json and weights, or a pipeline's folder that has one; or a single file in LDM's
            names or in diffusers'.

    Raises:
        CheckpointError: it holds none that is known here.
    """
    path = locate(source, variant)
    if path.is_dir():
        if (path / "model_index.json").exists():
            part = read_folder(path, variant).parts.get(PART)
            if part is None:
                raise CheckpointError(f"{path} is a model without a control network.")
            return part
        part = read_part(path, variant=variant)
        if part.kind != CLASS:
            raise CheckpointError(f"{part.where} is no control network: its class is {part.kind}.")
        return part
    file = open_file(path)
    rows = candidates(file.tensors, FINGERPRINTS)
    if len(rows) != 1:
        seems = describe(file.tensors)
        raise CheckpointError(
            f"{path} holds no control network for Stable Diffusion 1, 2 or XL"
            f"{f'; it seems to be {seems}' if seems else ''}."
        )
    return LAYOUTS[rows[0].family, rows[0].variant].take_apart(file).parts[PART]


def check_control(control: Part, denoiser: Part, autoencoder: Part | None) -> None:
    """Refuse a control network that was made for another denoiser, as far as configs can tell.

    Raises:
        CheckpointError: it was.
    """
    ours, theirs = denoiser.config, control.config
    if not isinstance(ours, UNetConfig):
        raise CheckpointError(f"{control.where} is for U-Nets that read a text, and the model's denoiser is none.")
    compared: dict[str, tuple[Any, Any]] = {name: (getattr(theirs, name), getattr(ours, name)) for name in MUST_AGREE}
    compared["layers_per_block"] = theirs.each(theirs.layers_per_block), ours.each(ours.layers_per_block)
    compared["in_channels"] = theirs.in_channels, ours.out_channels
    compared["what it divides sides by"] = theirs.factor, 1 if autoencoder is None else autoencoder.config.factor
    off = [f"{name} is {its}, not {own}" for name, (its, own) in compared.items() if its != own]
    if off:
        made, model = (CONTEXTS.get(config.cross_attention_dim, "another model") for config in (theirs, ours))
        said = f"for {made}, and this is {model}" if made != model else f"for another model than this {model}"
        raise CheckpointError(f"{control.where} is a control network {said}: {'; '.join(off)}.")
