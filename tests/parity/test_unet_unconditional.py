"""The unconditional U-Net against diffusers' on the same random weights."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from sfumato.checkpoints.parts import read_config, write_config
from sfumato.models.unet_unconditional import (
    DDPM_256,
    DDPM_CIFAR10,
    UNCONDITIONAL_UNETS,
    UnconditionalUNet,
    UnconditionalUNetConfig,
)
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.embeddings import Times
from tests.parity.peers import randomise, relative_error, shapes

CLASS = "UNet2DModel"
diffusers = pytest.importorskip("diffusers")

SMALL: dict[str, Any] = {"norm_num_groups": 8}
WIDTHS = (16, 24, 32, 40)
TINY = {
    "ddpm-cifar10": replace(DDPM_CIFAR10, block_out_channels=WIDTHS, **SMALL),
    "ddpm-256": replace(DDPM_256, block_out_channels=(16, 16, 24, 24, 32, 32), **SMALL),
    "heads": UnconditionalUNetConfig(block_out_channels=WIDTHS, out_channels=6, **SMALL),
    "classes": UnconditionalUNetConfig(block_out_channels=WIDTHS, num_class_embeds=10, dropout=0.1, **SMALL),
    "scale-shift": UnconditionalUNetConfig(
        block_out_channels=WIDTHS, resnet_time_scale_shift="scale_shift", downsample_type="resnet",
        upsample_type="resnet", class_embed_type="timestep", **SMALL,
    ),
    "attention-norm": UnconditionalUNetConfig(
        block_out_channels=WIDTHS, resnet_time_scale_shift="scale_shift", attn_norm_num_groups=4,
        class_embed_type="identity", time_embedding_dim=48, **SMALL,
    ),
    "no-attention": UnconditionalUNetConfig(block_out_channels=WIDTHS, add_attention=False, **SMALL),
    "no-middle": UnconditionalUNetConfig(block_out_channels=WIDTHS, mid_block_type=None, layers_per_block=1, **SMALL),
}


def pair(config: UnconditionalUNetConfig) -> tuple[UnconditionalUNet, Any]:
    """Ours and diffusers', with the same tensors as weights."""
    ours, theirs = UnconditionalUNet(config), diffusers.UNet2DModel.from_config(write_config(CLASS, config, None))
    randomise(ours)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.eval()


def classes(config: UnconditionalUNetConfig, rows: int) -> Conditioning:
    generator = torch.Generator().manual_seed(2)
    if config.class_embed_type == "identity":
        return Conditioning(pooled=torch.randn(rows, config.time_dim, generator=generator))
    if config.class_embed_type is None and config.num_class_embeds is None:
        return Conditioning()
    return Conditioning(labels=torch.randint(0, 10, (rows,), generator=generator))


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_names_shapes_and_outputs(name: str) -> None:
    config = TINY[name]
    ours, theirs = pair(config)
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    x = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(3))
    t, conditioning = torch.tensor([801, 17]), classes(config, 2)
    labels = conditioning.labels if conditioning.pooled is None else conditioning.pooled
    expected = theirs(x, t, class_labels=labels).sample
    assert expected.std() > 0.05
    assert relative_error(ours(x, t, conditioning), expected) <= 1e-5


@pytest.mark.parametrize("name", ["ddpm-cifar10", "classes"])
@torch.no_grad()
def test_prepared_times_and_shared_rows(name: str) -> None:
    config = TINY[name]
    network, _ = pair(config)
    network = network.double()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    conditioning = classes(config, 4)
    rows = len(conditioning) or 2
    expected = torch.cat([
        network(x[[r % 2]], 40, conditioning.rows([r]) if len(conditioning) else None) for r in range(rows)
    ])
    table = network.prepare_times(torch.tensor([900.0, 40.0]), conditioning)
    assert relative_error(network(x, table[1], conditioning), expected) <= 1e-12
    assert relative_error(network(x, torch.tensor([40, 40]), conditioning), expected) <= 1e-12


@torch.no_grad()
def test_times_that_all_rows_share_serve_more_rows_than_pictures() -> None:
    """As guidance asks where positive and negative are the same class: one row of times, and two answers a picture."""
    network, _ = pair(TINY["classes"])
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    told = Conditioning(labels=torch.tensor([4]))
    for shared in (1, 2):
        times = Times(network.prepare_times(torch.tensor([40.0]), told)[0].shifts.expand(shared, -1))
        found = network(x, times, Conditioning(labels=torch.tensor([4, 4, 4, 4])))
        assert relative_error(found, network(x, 40, told).repeat(2, 1, 1, 1)) <= 1e-6


@pytest.mark.parametrize("name", UNCONDITIONAL_UNETS)
def test_true_configurations_have_the_peers_tensors(name: str) -> None:
    config = UNCONDITIONAL_UNETS[name]
    with torch.device("meta"):
        ours, theirs = UnconditionalUNet(config), diffusers.UNet2DModel.from_config(write_config(CLASS, config, None))
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    assert read_config(CLASS, dict(theirs.config), "peer") == config
