"""Whole models in one file, as the original latent-diffusion (LDM) and SGM repositories save them.

The names follow the structure of the networks, so the key maps are generated from their configs: every block of the
U-Net is a place in ``input_blocks``, ``middle_block`` or ``output_blocks``, and within it the rows are literal tables.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from sfumato.checkpoints import openclip
from sfumato.checkpoints.keymap import KeyMap, Names, Row, expand, names, prefixed
from sfumato.checkpoints.kinds import describe
from sfumato.checkpoints.lazy import Lazy, under
from sfumato.checkpoints.load import shapes_of
from sfumato.checkpoints.parts import Part
from sfumato.checkpoints.store import File, open_file
from sfumato.checkpoints.write import save_file
from sfumato.core.errors import CheckpointError
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.unet import EncoderConfig, UNetConfig

WP = ("weight", "bias")

# --- U-Net -----------------------------------------------------------------------------------------------------------

RESNET: tuple[Row, ...] = (
    Row("in_layers.0.{p}", "norm1.{p}"),
    Row("in_layers.2.{p}", "conv1.{p}"),
    Row("emb_layers.1.{p}", "time_emb_proj.{p}"),
    Row("out_layers.0.{p}", "norm2.{p}"),
    Row("out_layers.3.{p}", "conv2.{p}"),
    Row("skip_connection.{p}", "conv_shortcut.{p}"),
)
TRANSFORMER: tuple[Row, ...] = tuple(
    Row(name, name)
    for name in (
        "norm.{p}",
        "proj_in.{p}",
        "proj_out.{p}",
        "transformer_blocks.{n}.attn{a}.to_q.weight",
        "transformer_blocks.{n}.attn{a}.to_k.weight",
        "transformer_blocks.{n}.attn{a}.to_v.weight",
        "transformer_blocks.{n}.attn{a}.to_out.0.{p}",
        "transformer_blocks.{n}.ff.net.0.proj.{p}",
        "transformer_blocks.{n}.ff.net.2.{p}",
        "transformer_blocks.{n}.norm1.{p}",
        "transformer_blocks.{n}.norm2.{p}",
        "transformer_blocks.{n}.norm3.{p}",
    )
)
UNET_START: tuple[Row, ...] = (
    Row("time_embed.0.{p}", "time_embedding.linear_1.{p}"),
    Row("time_embed.2.{p}", "time_embedding.linear_2.{p}"),
    Row("input_blocks.0.0.{p}", "conv_in.{p}"),
)
UNET_END: tuple[Row, ...] = (
    Row("out.0.{p}", "conv_norm_out.{p}"),
    Row("out.2.{p}", "conv_out.{p}"),
)
LABELS = Row("label_emb.weight", "class_embedding.weight")
"""An embedding of integer classes (the noise level of the upscaler)."""
POOLED: tuple[Row, ...] = (
    Row("label_emb.0.0.{p}", "{e}.linear_1.{p}"),
    Row("label_emb.0.2.{p}", "{e}.linear_2.{p}"),
)
"""An embedding of vectors: ``add_embedding`` of XL, ``class_embedding`` of unCLIP."""
DOWNSAMPLE = Row("op.{p}", "conv.{p}")
UPSAMPLE = Row("conv.{p}", "conv.{p}")


def unet_rows(config: UNetConfig) -> list[Row]:
    """The map of ``model.diffusion_model``, with a row for a shortcut in every residual block: see ``KeyMap.only``."""
    return encoder_rows(config) + expand(UNET_END, p=WP) + _placed(_places_up(config))


def encoder_rows(config: EncoderConfig) -> list[Row]:
    """The same of the way down and the middle, which side networks have too."""
    rows = expand(UNET_START, p=WP)
    if config.num_class_embeds is not None:
        rows.append(LABELS)
    elif config.addition_embed_type is not None or config.class_embed_type is not None:
        embedding = "class_embedding" if config.addition_embed_type is None else "add_embedding"
        rows += expand(POOLED, p=WP, e=(embedding,))
    return rows + _placed(_places_down(config))


Place = tuple[str, str, tuple[Row, ...], int]
"""Their place, our place, its table, transformer blocks there."""


def _placed(places: Iterator[Place]) -> list[Row]:
    return [
        row for theirs, ours, table, depth in places
        for row in prefixed(expand(table, p=WP, a=(1, 2), n=range(depth)), f"{theirs}.", f"{ours}.")
    ]


def _places_down(config: EncoderConfig) -> Iterator[Place]:
    depths, counts = config.each(config.transformer_layers_per_block), config.each(config.layers_per_block)
    levels = len(config.block_out_channels)
    n = 1
    for level, kind in enumerate(config.down_block_types):
        for i in range(counts[level]):
            yield f"input_blocks.{n}.0", f"down_blocks.{level}.resnets.{i}", RESNET, 0
            if kind.startswith("CrossAttn"):
                yield f"input_blocks.{n}.1", f"down_blocks.{level}.attentions.{i}", TRANSFORMER, depths[level]
            n += 1
        if level < levels - 1:
            yield f"input_blocks.{n}.0", f"down_blocks.{level}.downsamplers.0", (DOWNSAMPLE,), 0
            n += 1
    yield "middle_block.0", "mid_block.resnets.0", RESNET, 0
    yield "middle_block.1", "mid_block.attentions.0", TRANSFORMER, depths[-1]
    yield "middle_block.2", "mid_block.resnets.1", RESNET, 0


def _places_up(config: UNetConfig) -> Iterator[Place]:
    depths, counts = config.each(config.transformer_layers_per_block), config.each(config.layers_per_block)
    levels = len(config.block_out_channels)
    n = 0
    for place, up_kind in enumerate(config.up_block_types):
        level = levels - 1 - place
        for i in range(counts[level] + 1):
            yield f"output_blocks.{n}.0", f"up_blocks.{place}.resnets.{i}", RESNET, 0
            last = 1
            if up_kind.startswith("CrossAttn"):
                yield f"output_blocks.{n}.1", f"up_blocks.{place}.attentions.{i}", TRANSFORMER, depths[level]
                last = 2
            if i == counts[level] and level > 0:
                yield f"output_blocks.{n}.{last}", f"up_blocks.{place}.upsamplers.0", (UPSAMPLE,), 0
            n += 1


# --- autoencoder -----------------------------------------------------------------------------------------------------

VAE_RESNET: tuple[Row, ...] = (
    *(Row(f"{name}.{{p}}", f"{name}.{{p}}") for name in ("norm1", "conv1", "norm2", "conv2")),
    Row("nin_shortcut.{p}", "conv_shortcut.{p}"),
)
VAE_ATTENTION: tuple[Row, ...] = (
    Row("norm.{p}", "group_norm.{p}"),
    *(
        Row(f"{theirs}.{end}", f"{ours}.{end}", operation)
        for theirs, ours in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
        for end, operation in (("weight", "squeeze"), ("bias", "same"))
    ),
)
VAE_ENDS: tuple[Row, ...] = (
    *(
        Row(f"{half}.{theirs}.{{p}}", f"{half}.{ours}.{{p}}")
        for half in ("encoder", "decoder")
        for theirs, ours in (("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out"))
    ),
    Row("quant_conv.{p}", "quant_conv.{p}"),
    Row("post_quant_conv.{p}", "post_quant_conv.{p}"),
)


def vae_rows(config: AutoencoderConfig) -> list[Row]:
    """The map of ``first_stage_model``; ``KeyMap.only`` drops the rows of what this autoencoder does not have."""
    rows = expand(VAE_ENDS, p=WP)
    for theirs, ours, table in _vae_places(len(config.block_out_channels), config.layers_per_block):
        rows += prefixed(expand(table, p=WP), f"{theirs}.", f"{ours}.")
    return rows


def _vae_places(levels: int, layers: int) -> Iterator[tuple[str, str, tuple[Row, ...]]]:
    for half in ("encoder", "decoder"):
        for i in (0, 1):
            yield f"{half}.mid.block_{i + 1}", f"{half}.mid_block.resnets.{i}", VAE_RESNET
        yield f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", VAE_ATTENTION
    for level in range(levels):
        theirs, ours = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        for i in range(layers):
            yield f"{theirs}.block.{i}", f"{ours}.resnets.{i}", VAE_RESNET
        yield f"{theirs}.downsample", f"{ours}.downsamplers.0", (UPSAMPLE,)
        # The decoder's levels are numbered as the encoder's in the one naming, in the order they run in the other.
        theirs, ours = f"decoder.up.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        for i in range(layers + 1):
            yield f"{theirs}.block.{i}", f"{ours}.resnets.{i}", VAE_RESNET
        yield f"{theirs}.upsample", f"{ours}.upsamplers.0", (UPSAMPLE,)


# --- text encoder ----------------------------------------------------------------------------------------------------

CLIP_LAYER = tuple(
    f"text_model.encoder.layers.{{n}}.{name}.{{p}}"
    for name in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "layer_norm1", "layer_norm2",
        "mlp.fc1", "mlp.fc2",
    )
)
CLIP_ENDS = (
    "text_model.embeddings.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight",
    "text_model.final_layer_norm.{p}",
)


def clip_rows(config: ClipTextConfig) -> list[Row]:
    """OpenAI's CLIP is saved under transformers' names: the map is the identity, and complete."""
    return expand((Row(n, n) for n in CLIP_ENDS + CLIP_LAYER), n=range(config.num_hidden_layers), p=WP)


# --- the whole file --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tower:
    """A text encoder in the file: where it is, and in whose names."""

    prefix: str
    naming: Literal["transformers", "openclip"]
    config: ClipTextConfig


@dataclass(frozen=True)
class Layout:
    """What a family's single file holds. Families declare it; nothing here guesses.

    Attributes:
        text: part name (``text_encoder``, ``text_encoder_2``) -> tower.
    """

    unet: UNetConfig
    vae: AutoencoderConfig
    text: Mapping[str, Tower]

    def fits(self, parts: Mapping[str, Part]) -> bool:
        """Whether a model of this family is this one and can be written so."""
        return "unet" in parts and bool(parts["unet"].config.block_out_channels == self.unet.block_out_channels)

    def take_apart(self, file: File) -> "SingleFile":
        """The parts of an open file; see the function of this name."""
        return take_apart(file, self)

    def put_together(self, parts: Mapping[str, Part]) -> dict[str, Lazy]:
        """The tensors of a file; see the function of this name."""
        return put_together(parts, self)


UNET_PREFIX, VAE_PREFIX, EMA_PREFIX = "model.diffusion_model.", "first_stage_model.", "model_ema."
_SCHEDULE = (
    r"(low_scale_model\.)?(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod|"
    r"log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_variance|"
    r"posterior_log_variance_clipped|posterior_mean_coef1|posterior_mean_coef2|lvlb_weights|logvar|scale_factor)"
)
IGNORABLE: tuple[str, ...] = (
    _SCHEDULE,  # tables that are functions of the noise schedule
    r"denoiser\.sigmas",  # SGM's
    r"first_stage_model\.loss\..*",  # the discriminator that trained the autoencoder
    r"(first_stage_model|model_ema)\.(decay|num_updates)",
    r"depth_model\..*",  # MiDaS, which makes the depth picture that the depth variant is told
    r"(cond_stage_model|conditioner\.embedders\.\d+)\..*position_ids",
)
"""Patterns of what a file may hold beside its networks; what is there is listed in ``SingleFile.left_behind``."""

MARKERS = ("v_pred", "ztsnr")
"""Empty tensors by which some makers say that a model predicts v, or was trained to zero terminal SNR."""

CLASS_OF = {UNetConfig: "UNet2DConditionModel", AutoencoderConfig: "AutoencoderKL"}


def class_of(config: UNetConfig | AutoencoderConfig | ClipTextConfig) -> str:
    """The ecosystem's class of a part with this config."""
    if isinstance(config, ClipTextConfig):
        return "CLIPTextModelWithProjection" if config.with_projection else "CLIPTextModel"
    return CLASS_OF[type(config)]


@dataclass(frozen=True)
class SingleFile:
    """A whole model out of one file.

    Attributes:
        parts: ``unet``, ``vae``, ``text_encoder`` and/or ``text_encoder_2``.
        left_behind: names in the file that no network here needs.
        markers: which of ``MARKERS`` are there.
        has_ema: whether the file holds averaged weights beside the plain ones.
        metadata: of the header.
    """

    parts: Mapping[str, Part]
    left_behind: tuple[str, ...]
    markers: tuple[str, ...]
    has_ema: bool
    metadata: Mapping[str, str] = field(default_factory=dict)


def ema_name(name: str) -> str:
    """Under which LDM keeps the average of ``model.diffusion_model.…``: the same without dots."""
    return EMA_PREFIX + name.removeprefix("model.").replace(".", "")


def part_maps(layout: Layout, ema: bool = False) -> dict[str, KeyMap]:
    """Part name -> the map of its whole names in the file; rows only for what its network has."""
    unet = prefixed(unet_rows(layout.unet), UNET_PREFIX, "")
    if ema:
        unet = [Row(_each(row.theirs), row.ours, row.operation) for row in unet]
    maps = {"unet": KeyMap(unet, () if ema else (r"model_ema\..*",))}
    maps["vae"] = KeyMap(prefixed(vae_rows(layout.vae), VAE_PREFIX, ""))
    for name, tower in layout.text.items():
        foreign = tower.naming == "openclip"
        rows = openclip.text_rows(tower.config) if foreign else clip_rows(tower.config)
        ignorable = openclip.ignorable(tower.config) if foreign else ()
        prefix = tower.prefix.replace(".", r"\.")
        maps[name] = KeyMap(prefixed(rows, tower.prefix, ""), tuple(f"{prefix}({p})" for p in ignorable))
    configs = _configs(layout)
    return {name: found.only(names_of(configs[name])) for name, found in maps.items()}


def _each(field: Names) -> Names:
    return ema_name(field) if isinstance(field, str) else tuple(map(ema_name, field))


def _configs(layout: Layout) -> dict[str, UNetConfig | AutoencoderConfig | ClipTextConfig]:
    return {"unet": layout.unet, "vae": layout.vae, **{name: tower.config for name, tower in layout.text.items()}}


@lru_cache(maxsize=16)
def names_of(config: UNetConfig | AutoencoderConfig | ClipTextConfig) -> frozenset[str]:
    """The parameters of a part with this config, as a checkpoint of it has to hold them."""
    return frozenset(shapes_of(Part(class_of(config), config, {}, "").build))


def read_single_file(path: Path, layout: Layout, ema: bool = False, without: tuple[str, ...] = ()) -> SingleFile:
    """Open a single-file model; nothing is read but its header.

    Args:
        layout: what the family says the file holds.
        ema: take the U-Net's averaged weights; by default the plain ones are taken, as every other program does, and
            averaged ones are listed in ``left_behind``.
        without: parts that the caller has from elsewhere and that the file need not hold.

    Raises:
        CheckpointError: names missing or unknown, parts that are absent, no averaged weights where they were asked for.
    """
    file = open_file(path)
    return take_apart(file, layout, ema, without)


def take_apart(file: File, layout: Layout, ema: bool = False, without: tuple[str, ...] = ()) -> SingleFile:
    """``read_single_file`` of an open file."""
    tensors, where, seems = _usual_names(file), str(file.path), describe(file.tensors)
    has_ema = any(name.startswith(EMA_PREFIX + "diffusion_model") for name in tensors)
    if ema and not has_ema:
        raise CheckpointError(f"{where} holds no averaged weights ({EMA_PREFIX}…): leave ema out.")
    maps = part_maps(layout, ema)
    absent = [n for n, m in maps.items() if not any(t in tensors for row in m.rows for t in names(row.theirs))]
    if lacking := [name for name in absent if name not in without]:
        hint = f" It seems to be {seems}." if seems else ""
        raise CheckpointError(f"{where} holds no {' and no '.join(lacking)}.{hint} Name a model that has it.")
    rows = [
        Row(row.theirs, _add_prefix(name, row.ours), row.operation)
        for name, found in maps.items()
        for row in found.rows
        if name not in absent
    ]
    ignorable = tuple(p for found in maps.values() for p in found.ignorable) + IGNORABLE + MARKERS
    if ema:
        ignorable += (r"model\.diffusion_model\..*",)
    taken, ignored = KeyMap(rows, ignorable).to_ours(tensors, where)
    parts = {
        name: Part(class_of(config), config, under(taken, f"{name}/"), f"{where} ({name})", (), seems, None, file.paths)
        for name, config in _configs(layout).items()
        if name not in absent
    }
    markers = tuple(name for name in MARKERS if name in tensors)
    left = tuple(name for name in ignored if name not in markers)
    return SingleFile(parts, left, markers, has_ema, file.metadata)


def _add_prefix(part: str, field: Names) -> Names:
    return f"{part}/{field}" if isinstance(field, str) else tuple(f"{part}/{name}" for name in field)


def _usual_names(file: File) -> dict[str, Lazy]:
    """Some merges lack ``text_model.`` inside CLIP's names, as the transformers of their maker did."""
    fixed: dict[str, Lazy] = {}
    for name, tensor in file.tensors.items():
        for prefix in ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer."):
            rest = name.removeprefix(prefix)
            if rest != name and rest.split(".")[0] in ("embeddings", "encoder", "final_layer_norm"):
                name = f"{prefix}text_model.{rest}"
        fixed[name] = tensor
    return fixed


def put_together(parts: Mapping[str, Part], layout: Layout) -> dict[str, Lazy]:
    """The tensors of a single file, of its parts.

    Raises:
        CheckpointError: a part that the layout needs is missing or does not fit it.
    """
    maps = part_maps(layout)
    if lacking := [name for name in maps if name not in parts]:
        raise CheckpointError(f"A single file of this family needs {', '.join(lacking)} too.")
    result: dict[str, Lazy] = {}
    for name, found in maps.items():
        result |= found.to_theirs(parts[name].tensors, parts[name].where)
    return result


def write_single_file(
    path: Path,
    parts: Mapping[str, Part],
    layout: Layout,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write a whole model as one safetensors file; see ``write.save_file``."""
    return save_file(path, put_together(parts, layout), metadata, dtype)
