"""What a control network promises beyond its reference: rows shared, parts computed once, silence in the beginning."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sfumato.core.errors import ConfigError
from sfumato.engine.heatmaps import Heatmaps
from sfumato.models.controlnet import Controlled, ControlNet, ControlNetConfig
from sfumato.models.unet import UNet
from sfumato.nn.attention import tapped
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.deep import Deep
from tests.models.test_unet import EXACT, POOLED, TEXT, B, conditions, inputs
from tests.parity.peers import randomise, relative_error

SMALL = ControlNetConfig(
    block_out_channels=TEXT.block_out_channels, down_block_types=TEXT.down_block_types,
    layers_per_block=TEXT.layers_per_block, attention_head_dim=TEXT.attention_head_dim,
    cross_attention_dim=TEXT.cross_attention_dim, norm_num_groups=TEXT.norm_num_groups,
    conditioning_embedding_out_channels=(4, 4),
)
XL = replace(
    SMALL, addition_embed_type="text_time", addition_time_embed_dim=POOLED.addition_time_embed_dim,
    projection_class_embeddings_input_dim=POOLED.projection_class_embeddings_input_dim,
)
PAIRS = {"text": (TEXT, SMALL), "pooled": (POOLED, XL), "of one only": (TEXT, XL)}


@pytest.fixture(params=PAIRS)
def network(request: pytest.FixtureRequest) -> Controlled:
    unet, control = PAIRS[request.param]
    found = Controlled(UNet(unet), ControlNet(control))
    randomise(found)
    return found.double()


def told(network: Controlled, x: Tensor) -> Conditioning:
    """Conditions of k times the rows of x, with a picture each of x."""
    unet, control = network.unet.config, network.control.config
    found = conditions(POOLED if control.addition_embed_type else unet)
    shown = torch.rand(len(x), 3, 2 * x.shape[2], 2 * x.shape[3], generator=torch.Generator().manual_seed(2))
    times, seen = len(found) // len(x), network.control.see(shown.double())
    scale = torch.tensor([0.5, 1.5], dtype=torch.float64)
    return replace(found, control=seen.repeat(times, 1, 1, 1), control_scale=scale.repeat(times))


@torch.no_grad()
def test_rows_are_shared_and_parts_prepared(network: Controlled) -> None:
    x, t, _ = inputs(network.unet.config)
    conditioning = told(network, x)
    k = len(conditioning) // B
    plain = network(x.repeat(k, 1, 1, 1), t.repeat(k), conditioning)
    one_by_one = torch.cat([
        network(x[r % B : r % B + 1], t[r % B : r % B + 1], conditioning.rows([r])) for r in range(len(conditioning))
    ])
    ready = network.prepare(conditioning)
    assert ready.context is None
    assert network.prepare(ready) is ready
    for found in (one_by_one, network(x, t, conditioning), network(x, t, ready)):
        assert relative_error(found, plain) <= EXACT
    rows = k * B if network.control.add_embedding is not None else 1
    same = torch.full((rows,), float(t[0]))
    at_once = network.prepare_times(torch.tensor([900.0, float(t[0])]), ready)[1]
    assert relative_error(network(x, at_once, ready), network(x, same[:1], ready)) <= EXACT


@torch.no_grad()
def test_without_a_picture_it_is_the_unet(network: Controlled) -> None:
    x, t, _ = inputs(network.unet.config)
    conditioning = told(network, x)
    plain = replace(conditioning, control=None, control_scale=None)
    assert torch.equal(network(x, t, plain), network.unet(x, t, plain))
    assert torch.equal(network(x, t, network.prepare(plain)), network.unet(x, t, network.unet.prepare(plain)))
    assert torch.equal(network.prepare_times(t, plain).shifts, network.unet.prepare_times(t, plain).shifts)
    silent = replace(conditioning, control_scale=torch.zeros(len(conditioning), dtype=torch.float64))
    assert relative_error(network(x, t, silent), network.unet(x, t, plain)) <= EXACT
    assert relative_error(network(x, t, conditioning), network.unet(x, t, plain)) > 0.01
    with pytest.raises(ConfigError, match="told a picture"):
        network.control(x, t, plain)


@torch.no_grad()
def test_it_begins_with_nothing_to_say() -> None:
    network = ControlNet(SMALL)
    down, mid = network(torch.randn(1, 4, 8, 8), 5.0, Conditioning(
        context=torch.randn(1, 3, SMALL.cross_attention_dim), control=network.see(torch.rand(1, 3, 16, 16)),
    ))  # fmt: skip
    assert mid is not None
    assert not any(residual.any() for residual in (*down, mid))


@torch.no_grad()
def test_of_inner_layers_that_are_left_out_nothing_is_asked(network: Controlled) -> None:
    x, t, _ = inputs(network.unet.config)
    conditioning = told(network, x)
    deep = Deep(1)
    plain = network(x, t, conditioning, deep=deep)
    assert relative_error(plain, network(x, t, conditioning)) <= EXACT
    ran: list[int] = []
    network.control.mid_block.register_forward_hook(lambda *_: ran.append(1))  # type: ignore[union-attr]
    network.control.controlnet_mid_block.register_forward_hook(lambda *_: ran.append(1))
    assert relative_error(network(x, t, conditioning, deep=deep), plain) <= EXACT
    assert not ran


@torch.no_grad()
def test_explaining_hears_the_unet_alone(network: Controlled) -> None:
    x, t, _ = inputs(network.unet.config)
    conditioning = told(network, x)
    both, alone = Heatmaps((x.shape[2], x.shape[3])), Heatmaps((x.shape[2], x.shape[3]))
    with tapped(both):
        network(x, t, conditioning)
    with tapped(alone):
        network(x, t, replace(conditioning, control=None))
    assert both.heard == alone.heard > 0
