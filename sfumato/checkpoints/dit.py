"""DiT in one file, as its authors save it (``DiT-XL-2-256x256.pt``): the transformer alone.

What a folder says in config.json is read off the shapes here. The time's sinusoid and the norms are then computed as
the authors do, in which the ecosystem's class differs slightly (see ``DiTConfig``).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from sfumato.checkpoints.keymap import KeyMap, Row, expand
from sfumato.checkpoints.lazy import Lazy, Tensors
from sfumato.checkpoints.ldm import SingleFile, Tower
from sfumato.checkpoints.parts import Part
from sfumato.checkpoints.store import File
from sfumato.core.errors import CheckpointError
from sfumato.models.dit import NORM_EPS, DiTConfig, positions

SHOWS = {
    "x_embedder.proj.weight": (None, None, None, None), "y_embedder.embedding_table.weight": (None, None),
    "blocks.0.adaLN_modulation.1.weight": (None, None), "final_layer.linear.weight": (None, None),
}
"""By which names and shapes such a file is known."""

POSITIONS = "pos_embed"
"""A table that follows from the sizes. It is computed here, compared when a file is read and written into one."""

ROWS: tuple[Row, ...] = (
    Row("x_embedder.proj.{p}", "pos_embed.proj.{p}"),
    Row(
        "blocks.{n}.attn.qkv.{p}",
        tuple(f"transformer_blocks.{{n}}.attn1.to_{part}.{{p}}" for part in ("q", "k", "v")), "split 3",
    ),
    Row("blocks.{n}.attn.proj.{p}", "transformer_blocks.{n}.attn1.to_out.0.{p}"),
    Row("blocks.{n}.mlp.fc1.{p}", "transformer_blocks.{n}.ff.net.0.proj.{p}"),
    Row("blocks.{n}.mlp.fc2.{p}", "transformer_blocks.{n}.ff.net.2.{p}"),
    Row("blocks.{n}.adaLN_modulation.1.{p}", "transformer_blocks.{n}.norm1.linear.{p}"),
    Row("final_layer.adaLN_modulation.1.{p}", "proj_out_1.{p}"),
    Row("final_layer.linear.{p}", "proj_out_2.{p}"),
)
EMBEDDING: tuple[Row, ...] = (
    Row("t_embedder.mlp.0.{p}", "timestep_embedder.linear_1.{p}"),
    Row("t_embedder.mlp.2.{p}", "timestep_embedder.linear_2.{p}"),
    Row("y_embedder.embedding_table.weight", "class_embedder.embedding_table.weight"),
)
"""The file has one, our module a copy in each block, under ``transformer_blocks.N.norm1.emb``."""

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Width to heads, which no shape shows: the paper's S, B, L and XL."""


def key_map(config: DiTConfig) -> KeyMap:
    """Their names to ours."""
    copies = [
        Row(row.theirs, tuple(f"transformer_blocks.{n}.norm1.emb.{row.ours}" for n in range(config.num_layers)),
            "copies")
        for row in EMBEDDING
    ]  # fmt: skip
    return KeyMap(expand([*ROWS, *copies], n=range(config.num_layers), p=("weight", "bias")))


def config_of(tensors: Tensors, where: str) -> DiTConfig:
    """What the shapes say.

    Raises:
        CheckpointError: a width whose number of heads is not known, or shapes that contradict each other.
    """
    width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    if width not in HEADS:
        raise CheckpointError(
            f"{where}: how many heads a DiT of width {width} has is not to be seen in such a file; known are the "
            f"widths {', '.join(map(str, HEADS))}. Convert it to a folder with the program that made it."
        )
    if POSITIONS not in tensors:
        raise CheckpointError(f"{where}: keys do not fit: missing 1 ({POSITIONS}).")
    side = math.isqrt(tensors[POSITIONS].shape[1])
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    return DiTConfig(
        num_attention_heads=HEADS[width], attention_head_dim=width // HEADS[width], in_channels=channels,
        out_channels=tensors["final_layer.linear.weight"].shape[0] // patch**2, num_layers=len(blocks),
        sample_size=side * patch, patch_size=patch, norm_eps=NORM_EPS, freq_shift=0,
        num_embeds_ada_norm=tensors["y_embedder.embedding_table.weight"].shape[0] - 1,
    )


@dataclass(frozen=True)
class DiTLayout:
    """What such a file holds; see ``ldm.Layout``."""

    text: ClassVar[Mapping[str, Tower]] = {}

    def fits(self, parts: Mapping[str, Part]) -> bool:
        """Whether a DiT can be written so."""
        return "transformer" in parts

    def take_apart(self, file: File) -> SingleFile:
        """The transformer of an open file.

        Raises:
            CheckpointError: keys or shapes that do not fit, or positions that were learned.
        """
        where, tensors = str(file.path), dict(file.tensors)
        config = config_of(tensors, where)
        table = _positions(config)
        found = tensors.pop(POSITIONS).read()
        if found.shape != table.shape or not torch.allclose(found.float(), table, atol=_rounding(found.dtype)):
            raise CheckpointError(f"{where}: {POSITIONS} is not the table of sines and cosines that a DiT has.")
        ours, _ = key_map(config).to_ours(tensors, where)
        part = Part("DiTTransformer2DModel", config, ours, f"{where} (transformer)")
        return SingleFile({"transformer": part}, (), (), False, file.metadata)

    def put_together(self, parts: Mapping[str, Part]) -> dict[str, Lazy]:
        """The tensors of a file.

        Raises:
            CheckpointError: a DiT that the authors' code would compute differently from its folder.
        """
        part = parts["transformer"]
        config: DiTConfig = part.config
        same = config.norm_eps == NORM_EPS and config.freq_shift == 0 and HEADS.get(config.width) is not None
        if not same or HEADS[config.width] != config.num_attention_heads:
            raise CheckpointError(
                f"{part.where}: the authors' format knows only norm_eps = {NORM_EPS}, freq_shift = 0 and the widths "
                f"and heads {HEADS}; here they are {config.norm_eps}, {config.freq_shift}, {config.width} and "
                f"{config.num_attention_heads}. Where the model was once converted from that format, say so in the "
                "transformer's config.json."
            )
        table = _positions(config)
        kind = part.tensors["proj_out_2.weight"].dtype
        first = {POSITIONS: Lazy(tuple(table.shape), kind, lambda: table.to(kind))}
        return first | key_map(config).to_theirs(part.tensors, part.where)


def _positions(config: DiTConfig) -> torch.Tensor:
    side = config.sample_size // config.patch_size
    return positions(config.width, (side, side), side, torch.device("cpu"))


def _rounding(dtype: torch.dtype) -> float:
    """Of numbers up to 1."""
    return max(1e-6, torch.finfo(dtype).eps)
