"""A checkpoint in another format, written, read back, and compared tensor by tensor."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from sfumato.checkpoints.diffusers import Folder, write_folder
from sfumato.checkpoints.dit import DiTLayout
from sfumato.checkpoints.lazy import Lazy
from sfumato.checkpoints.ldm import Layout
from sfumato.checkpoints.parts import Part
from sfumato.checkpoints.write import save_file
from sfumato.core.errors import CheckpointError
from sfumato.families.autoencoders import read_autoencoder
from sfumato.families.load import Found, find
from sfumato.families.single_file import VARIANTS
from sfumato.families.types import CONTROL

CLASSES = {
    "sd1": "StableDiffusionPipeline", "sd2": "StableDiffusionPipeline", "latent": "StableDiffusionPipeline",
    "sd1-inpaint": "StableDiffusionInpaintPipeline", "sd2-inpaint": "StableDiffusionInpaintPipeline",
    "sd2-depth": "StableDiffusionDepth2ImgPipeline", "sd2-upscale": "StableDiffusionUpscalePipeline",
    "sdxl": "StableDiffusionXLPipeline", "sdxl-inpaint": "StableDiffusionXLInpaintPipeline",
    "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline", "dit": "DiTPipeline",
}
"""The pipeline class under which diffusers opens a family's folder."""


PICKLES = (".ckpt", ".pt", ".pth", ".bin")
"""Suffixes of files that can run code."""


@dataclass(frozen=True)
class Conversion:
    """What was done.

    Attributes:
        tensors: how many were compared.
        exact: whether precision was kept, so that they were compared bit for bit; else up to its rounding.
        left_out: parts of the source that the target's format has no place for.
    """

    family: str
    tensors: int
    exact: bool
    left_out: tuple[str, ...] = ()


def convert(
    source: str | Path, target: Path, *, dtype: torch.dtype | None = None, variant: str | None = None,
    family: str | None = None, prediction: str | None = None, vae: str | None = None, overwrite: bool = False,
    as_variant: str | None = None, shard_size: int | None = None,
) -> Conversion:
    """Write a model as a single file (a target that ends in .safetensors) or as a folder, and verify it.

    Args:
        dtype: precision of the floating-point weights in the target; None: as they are.
        variant, family, prediction, vae: see ``families.load.open_model``.
        overwrite: replace what is there.
        as_variant: in a folder, becomes part of the weight files' names, e.g. ``fp16``.
        shard_size: bytes of a folder's weight file beyond which it is split.

    Raises:
        CheckpointError: the source is no model, the target exists or would be a pickle, or what was written reads back
            differently.
        CapacityError: the disk is full; nothing is left of the target.
    """
    if target.suffix in PICKLES:
        raise CheckpointError(
            f"{target}: pickled weights are read, and not written. Name it {target.with_suffix('.safetensors').name}, "
            "which every program reads that reads them, or a folder."
        )
    if target.suffix == ".safetensors" and (as_variant or shard_size):
        raise CheckpointError(f"{target} is to be a single file: variants and shards are files of a folder; name one.")
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target} exists already; give another name, or --overwrite.")
    found = find(source, variant=variant, family=family, prediction=prediction)
    if vae is not None:
        found = replace(found, parts={**found.parts, "vae": read_autoencoder(vae, variant)})
    if target.suffix == ".safetensors":
        layout = layout_of(found)
        save_file(target, layout.put_together(found.parts), {"format": "pt"}, dtype)
        predicts = str(found.scheduler.get("prediction_type", "epsilon"))
        again = find(target, family=found.family.name, prediction=predicts)
    else:
        with TemporaryDirectory() as words:
            tokenizers = {}
            for name, tokenizer in found.tokenizers.items():
                tokenizers[name] = Path(words, name)
                tokenizer.save(tokenizers[name])
            folder = Folder(
                class_of(found), found.parts, {"scheduler": found.scheduler}, tokenizers, found.options
            )
            shards = {} if shard_size is None else {"max_bytes": shard_size}
            write_folder(target, folder, variant=as_variant, dtype=dtype, overwrite=overwrite, **shards)
        again = find(target, variant=as_variant, family=found.family.name)
    left_out = tuple(name for name in found.parts if name not in again.parts)
    count = compare(found.parts, again.parts, dtype, str(target))
    return Conversion(found.family.name, count, dtype is None, left_out)


def class_of(found: Found) -> str:
    """The pipeline class of a model's folder."""
    name = CLASSES[found.family.name]
    return name.replace("Pipeline", "ControlNetPipeline") if CONTROL in found.parts else name


def layout_of(found: Found) -> Layout | DiTLayout:
    """The single-file layout that fits a model's parts.

    Raises:
        CheckpointError: no single-file format holds such a model.
    """
    for variant in VARIANTS.values():
        if variant.family == found.family.name and variant.layout.fits(found.parts):
            return variant.layout
    raise CheckpointError(
        f"A model of the family {found.family.name} with these widths has no single-file format. "
        "Convert it to a folder."
    )


def compare(
    before: Mapping[str, Part], after: Mapping[str, Part], dtype: torch.dtype | None, where: str
) -> int:
    """How many tensors are the same in both; raises where one is not."""
    count = 0
    for name, part in after.items():
        if before[name].tensors.keys() != part.tensors.keys():
            raise CheckpointError(f"{where}: {name} reads back with other names. The source is untouched.")
        for key, tensor in part.tensors.items():
            if not same(before[name].tensors[key], tensor, dtype):
                raise CheckpointError(f"{where}: {name}.{key} reads back differently. The source is untouched.")
            count += 1
    return count


def same(before: Lazy, after: Lazy, dtype: torch.dtype | None) -> bool:
    """Bit for bit, after the conversion of precision that was asked for."""
    one, other = before.read(), after.read()
    if dtype is not None and one.is_floating_point():
        one = one.to(dtype)
    equal = one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    before.release()
    after.release()
    return equal
