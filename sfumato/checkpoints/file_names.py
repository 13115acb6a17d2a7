"""What the files of a model folder are called, in diffusers and transformers."""

from collections.abc import Iterable

STEMS = {"diffusion_pytorch_model": "diffusion_pytorch_model", "model": "pytorch_model"}
"""Stem of a weight file (diffusers', transformers') -> stem of the older, pickled one."""

CONFIG_FILES = ("config.json", "scheduler_config.json")

TOKENIZER_FILES = (
    "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
"""What a tokenizer's folder may hold; the first two are enough."""

SET_ASIDE = ("safety_checker", "feature_extractor", "image_encoder", "image_noising_scheduler", "watermarker")
"""Parts of a folder that drawing does not need. They are not read; ``Folder.set_aside`` tells which were there."""


def weight_names(stem: str, pickle_stem: str, variant: str | None) -> tuple[str, ...]:
    """The files in which a part's weights may lie, the one to be preferred first."""
    infix = f".{variant}" if variant else ""
    return (
        f"{stem}{infix}.safetensors",
        f"{stem}.safetensors.index{infix}.json",
        f"{pickle_stem}{infix}.bin",
        f"{pickle_stem}.bin.index{infix}.json",
    )


def shards_of(index: str, names: Iterable[str]) -> list[str]:
    """The files among ``names`` that an index of this name may list: the same stem, suffix and variant."""
    stem, suffix, *variant = index.removesuffix(".json").replace(".index", "").split(".")
    return [
        name
        for name in names
        if name.startswith(stem) and name.endswith(f".{suffix}") and "-of-" in name and variants([name]) == variant
    ]


def variants(names: Iterable[str]) -> list[str]:
    """The variants that these file names show: ``fp16`` of ``model.fp16.safetensors``, of its index, of its shards."""
    found = set()
    for name in names:
        pieces = name.split(".")
        if pieces[-1] in ("safetensors", "bin", "json") and pieces[0].split("-")[0] in {*STEMS, *STEMS.values()}:
            found |= {p.split("-")[0] for p in pieces[1:-1] if p not in ("safetensors", "bin", "index")}
    return sorted(found)
