"""Control networks in one file, as their author's repository saves them: LDM's names, alone or beside a whole model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sfumato.checkpoints.keymap import KeyMap, Row, expand, prefixed
from sfumato.checkpoints.kinds import describe
from sfumato.checkpoints.lazy import Lazy
from sfumato.checkpoints.ldm import WP, SingleFile, encoder_rows
from sfumato.checkpoints.load import shapes_of
from sfumato.checkpoints.parts import Part
from sfumato.checkpoints.store import File
from sfumato.models.controlnet import ControlNetConfig
from sfumato.models.unet import skip_widths

Naming = Literal["prefixed", "bare", "diffusers"]
"""LDM's with ``PREFIX`` or without, or diffusers' in a file that lost its config.json."""

CLASS, PART = "ControlNetModel", "controlnet"

PREFIX = "control_model."
"""Before the names, unless the file holds nothing else."""

ENDS: tuple[Row, ...] = (
    Row("input_hint_block.0.{p}", "controlnet_cond_embedding.conv_in.{p}"),
    Row("zero_convs.{z}.0.{p}", "controlnet_down_blocks.{z}.{p}"),
    Row("middle_block_out.0.{p}", "controlnet_mid_block.{p}"),
)


def rows(config: ControlNetConfig) -> list[Row]:
    """The map of ``control_model``; see ``ldm.unet_rows``."""
    steps = 2 * (len(config.conditioning_embedding_out_channels) - 1)  # convolutions, an activation after each
    places = [(f"input_hint_block.{2 * n + 2}", f"controlnet_cond_embedding.blocks.{n}") for n in range(steps)]
    places.append((f"input_hint_block.{2 * steps + 2}", "controlnet_cond_embedding.conv_out"))
    picture = [Row(f"{theirs}.{{p}}", f"{ours}.{{p}}") for theirs, ours in places]
    passed = range(len([*skip_widths(config)]))
    return encoder_rows(config) + expand((*ENDS, *picture), p=WP, z=passed)


@dataclass(frozen=True)
class ControlLayout:
    """What such a file holds; see ``ldm.Layout``."""

    config: ControlNetConfig
    naming: Naming = "prefixed"

    def key_map(self) -> KeyMap:
        """Their names to ours; what stands beside a prefixed network is another's."""
        known = shapes_of(Part(CLASS, self.config, {}, "").build)
        if self.naming == "diffusers":
            return KeyMap([Row(name, name) for name in known])
        prefix, beside = (PREFIX, (rf"(?!{PREFIX}).*",)) if self.naming == "prefixed" else ("", ())
        return KeyMap(prefixed(rows(self.config), prefix, ""), beside).only(known)

    def take_apart(self, file: File) -> SingleFile:
        """The network of an open file.

        Raises:
            CheckpointError: keys that do not fit.
        """
        where = str(file.path)
        ours, left = self.key_map().to_ours(file.tensors, where)
        part = Part(CLASS, self.config, ours, where, tuple(left), describe(file.tensors), None, file.paths)
        return SingleFile({PART: part}, tuple(left), (), False, file.metadata)

    def put_together(self, parts: Mapping[str, Part]) -> dict[str, Lazy]:
        """The tensors of a file.

        Raises:
            CheckpointError: a network of another shape.
        """
        return self.key_map().to_theirs(parts[PART].tensors, parts[PART].where)
