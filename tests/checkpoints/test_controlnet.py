"""Control networks in one file: names, there and back, and what a report says of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers.loaders import single_file_utils

from sfumato.checkpoints.controlnet import CLASS, PART, PREFIX, ControlLayout, Naming
from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.load import shapes_of
from sfumato.checkpoints.parts import Part, write_config
from sfumato.checkpoints.store import open_file
from sfumato.checkpoints.write import save_file
from sfumato.core.errors import CheckpointError
from sfumato.models.controlnet import CONTROLNETS, ControlNetConfig
from tests.checkpoints.models import TRUE, random_parts, small
from tests.checkpoints.test_ldm import equal

peer: Any = single_file_utils


def narrow(family: str) -> ControlNetConfig:
    unet = small(TRUE[family]).unet
    return replace(
        CONTROLNETS[family], block_out_channels=unet.block_out_channels, norm_num_groups=4, attention_head_dim=2,
        cross_attention_dim=8, transformer_layers_per_block=unet.transformer_layers_per_block,
        conditioning_embedding_out_channels=(4, 4, 8, 8), addition_time_embed_dim=unet.addition_time_embed_dim,
        projection_class_embeddings_input_dim=unet.projection_class_embeddings_input_dim,
    )


def random_part(config: ControlNetConfig) -> Part:
    generator = torch.Generator().manual_seed(1)
    shapes = shapes_of(Part(CLASS, config, {}, "").build)
    return Part(CLASS, config, lazy_all({n: torch.randn(s, generator=generator) for n, s in shapes.items()}), "here")


@pytest.mark.parametrize("family", CONTROLNETS)
def test_names_are_those_that_the_peer_converts(family: str) -> None:
    config = CONTROLNETS[family]
    ours = {cast(str, row.ours): cast(str, row.theirs) for row in ControlLayout(config).key_map().rows}
    assert ours.keys() == shapes_of(Part(CLASS, config, {}, "").build).keys()
    settings = write_config(CLASS, config, None)
    theirs = peer.convert_controlnet_checkpoint({name: name for name in ours.values()}, settings)
    known = {name: other for name, other in ours.items() if not name.startswith("add_embedding")}  # it leaves XL's out
    assert {name: other for name, other in theirs.items() if name in known} == known


@pytest.mark.parametrize("naming", ["prefixed", "bare", "diffusers"])
@pytest.mark.parametrize("family", CONTROLNETS)
def test_there_and_back(family: str, naming: Naming, tmp_path: Path) -> None:
    part = random_part(narrow(family))
    layout = ControlLayout(part.config, naming)
    save_file(tmp_path / "control.safetensors", layout.put_together({PART: part}))
    found = layout.take_apart(open_file(tmp_path / "control.safetensors"))
    assert equal(found.parts[PART].tensors, part.tensors)
    assert found.left_behind == ()


def test_a_whole_model_beside_it_is_left_behind(tmp_path: Path) -> None:
    part, layout = random_part(narrow("sd1")), ControlLayout(narrow("sd1"))
    model = small(TRUE["sd1"]).put_together(random_parts(small(TRUE["sd1"])))
    save_file(tmp_path / "control.safetensors", {**model, **layout.put_together({PART: part})})
    found = layout.take_apart(open_file(tmp_path / "control.safetensors"))
    assert equal(found.parts[PART].tensors, part.tensors)
    assert {*found.left_behind} == model.keys()
    assert not any(name.startswith(PREFIX) for name in found.left_behind)


def test_what_is_missing_or_unknown_is_told(tmp_path: Path) -> None:
    layout = ControlLayout(narrow("sd1"))
    tensors = layout.put_together({PART: random_part(layout.config)})
    lost = f"{PREFIX}zero_convs.3.0.weight"
    tensors[f"{PREFIX}extra.weight"] = tensors.pop(lost)
    save_file(tmp_path / "control.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"missing 1 \(control_model\.zero_convs\.3.*unknown 1 \(.*extra"):
        layout.take_apart(open_file(tmp_path / "control.safetensors"))
