"""What the U-Net promises beyond its reference: parts computed once, rows shared, parts run by the caller."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sfumato.core.errors import ConfigError
from sfumato.models.unet import UNet, UNetConfig
from sfumato.nn.attention import tapped
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.deep import Deep
from sfumato.nn.embeddings import Times
from sfumato.nn.layers import Conv2d
from sfumato.nn.stage import call
from tests.parity.peers import randomise, relative_error

TEXT = UNetConfig(
    block_out_channels=(8, 16),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1, attention_head_dim=2, cross_attention_dim=12, norm_num_groups=4,
)
CROSS_ONLY = replace(TEXT, only_cross_attention=True, num_class_embeds=10, use_linear_projection=True)
POOLED = replace(
    TEXT, addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=5 + 6 * 4
)
GUIDED = replace(TEXT, time_cond_proj_dim=6)
CONFIGS = {"text": TEXT, "cross-only": CROSS_ONLY, "pooled": POOLED, "guided": GUIDED}
B, K = 2, 2
EXACT = 1e-12
"""Of float64, in which these tests compute: the order of a sum is all that may differ."""


def built(config: UNetConfig) -> UNet:
    network = UNet(config)
    randomise(network)
    return network.double()


@pytest.fixture(params=CONFIGS)
def network(request: pytest.FixtureRequest) -> UNet:
    return built(CONFIGS[request.param])


def conditions(config: UNetConfig, rows: int = B * K) -> Conditioning:
    generator = torch.Generator().manual_seed(1)
    pooled = config.addition_embed_type is not None
    return Conditioning(
        context=torch.randn(rows, 5, config.cross_attention_dim, generator=generator, dtype=torch.float64),
        pooled=torch.randn(rows, 5, generator=generator, dtype=torch.float64) if pooled else None,
        sizes=torch.randn(rows, 6, generator=generator) if pooled else None,
        labels=torch.arange(rows) % 10 if config.num_class_embeds is not None else None,
        guidance=torch.linspace(1, 9, rows) if config.time_cond_proj_dim is not None else None,
    )


def inputs(config: UNetConfig) -> tuple[Tensor, Tensor, Conditioning]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(B, config.in_channels, 8, 12, generator=generator, dtype=torch.float64)
    return x, torch.tensor([700.0, 30.0]), conditions(config)


class Watch:
    """Counts the rows that every part is given."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, module: nn.Module, x: Tensor, *more: Any) -> Tensor:
        self.rows.append(len(x))
        return call(module, x, *more)


@torch.no_grad()
def test_shared_rows_give_what_repeated_ones_give(network: UNet) -> None:
    x, t, conditioning = inputs(network.config)
    expected = network(x.repeat(K, 1, 1, 1), t.repeat(K), conditioning)
    assert expected.shape == (B * K, 4, 8, 12)
    watch = Watch()
    assert relative_error(network(x, t, conditioning, run=watch), expected) <= EXACT
    alone = network.config.addition_embed_type is None and network.config.num_class_embeds is None
    shares = alone and network.config.time_cond_proj_dim is None
    assert watch.rows[:2] == ([B, B] if shares else [B * K] * 2)  # a residual block and the transformer that expands
    assert set(watch.rows[2:]) == {B * K}


@torch.no_grad()
def test_rows_are_independent(network: UNet) -> None:
    x, t, conditioning = inputs(network.config)
    together = network(x, t, conditioning)
    for r in range(B * K):
        alone = network(x[[r % B]], t[[r % B]], conditioning.rows([r]))
        assert relative_error(together[[r]], alone) <= EXACT


@torch.no_grad()
def test_prepared_keys_and_values_and_times(network: UNet) -> None:
    x, _, conditioning = inputs(network.config)
    expected = network(x, torch.tensor([30.0, 30.0]), conditioning)
    ready = network.prepare(conditioning)
    assert ready.context is None
    assert len(ready.keys_values or ()) == len(network.cross_attentions())
    table = network.prepare_times(torch.tensor([700.0, 30.0, 2.5]), conditioning)
    assert relative_error(network(x, table[1], ready), expected) <= EXACT
    assert torch.equal(network(x, 30, ready), network(x, torch.tensor(30), ready))
    assert network.prepare(ready) is ready


@torch.no_grad()
def test_times_of_several_jobs_stand_side_by_side() -> None:
    network = built(TEXT)
    x, t, conditioning = inputs(TEXT)
    table = network.prepare_times(torch.tensor([30.0, 700.0]))
    both = Times.cat([table[1], table[0]])
    watch = Watch()
    assert relative_error(network(x, both, conditioning, run=watch), network(x, t, conditioning)) <= EXACT
    assert watch.rows[0] == B  # the time has a row a picture, which is no reason to expand


@torch.no_grad()
def test_prepared_times_leave_only_the_context_to_differ() -> None:
    """An upscaler's two halves have one noise level: with its times prepared they are shared too."""
    network = built(CROSS_ONLY)
    x, _, conditioning = inputs(CROSS_ONLY)
    conditioning = replace(conditioning, labels=torch.full((B * K,), 7))
    step = network.prepare_times(torch.tensor([30.0]), Conditioning(labels=torch.tensor([7])))[0]
    watch = Watch()
    assert relative_error(network(x, step, conditioning, run=watch), network(x, 30, conditioning)) <= EXACT
    assert watch.rows[0] == B


@torch.no_grad()
def test_residuals_may_differ_where_pictures_are_still_shared() -> None:
    network = built(TEXT)
    x, t, conditioning = inputs(TEXT)
    generator = torch.Generator().manual_seed(3)
    shapes = [(8, 8, 12), (8, 8, 12), (8, 4, 6), (16, 4, 6)]
    residuals = [torch.randn(B * K, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    middle = torch.randn(B * K, 16, 4, 6, generator=generator, dtype=torch.float64)
    expected = network(x.repeat(K, 1, 1, 1), t.repeat(K), conditioning, residuals, middle)
    assert relative_error(network(x, t, conditioning, residuals, middle), expected) <= EXACT
    with pytest.raises(ValueError, match="shorter"):
        network(x, t, conditioning, residuals[:-1], middle)


@torch.no_grad()
def test_every_convolution_is_fed_channels_last_memory() -> None:
    network = built(TEXT)
    x, t, conditioning = inputs(TEXT)

    def check(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert arguments[0].is_contiguous(memory_format=torch.channels_last)

    for module in network.modules():
        if isinstance(module, Conv2d):
            module.register_forward_pre_hook(check)
    network(x, t, conditioning)
    network(x.repeat(K, 1, 1, 1), t.repeat(K), conditioning)


@torch.no_grad()
def test_the_tap_hears_every_attention_by_its_place() -> None:
    network = built(TEXT)
    heard: list[tuple[str, int]] = []
    with tapped(lambda q, k, name: heard.append((name, k.shape[2]))):
        network(*inputs(TEXT))
    places = ["down.0.attentions.0", "mid.attentions.0", "up.1.attentions.0", "up.1.attentions.1"]
    assert [name for name, _ in heard] == [f"{p}.blocks.0.{kind}" for p in places for kind in ("self", "cross")]
    assert all((length == 5) == name.endswith("cross") for name, length in heard)


def test_recomputing_gives_the_same_gradients() -> None:
    network = built(TEXT).train()
    x, t, conditioning = inputs(TEXT)

    def gradients(**more: Any) -> list[Tensor]:
        network.zero_grad()
        network(x, t, conditioning, **more).square().mean().backward()
        return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]

    plain, again = gradients(), gradients(run=partial(checkpoint, use_reentrant=False))
    assert len(plain) == len(list(network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize(("name", "field"), [
    ("text", "context"), ("pooled", "pooled"), ("pooled", "sizes"), ("cross-only", "labels"), ("guided", "guidance"),
])
def test_a_missing_condition_is_named(name: str, field: str) -> None:
    x, t, conditioning = inputs(CONFIGS[name])
    with pytest.raises(ConfigError, match=field):
        built(CONFIGS[name])(x, t, replace(conditioning, **{field: None}))


def test_rows_that_do_not_fit_are_refused() -> None:
    x, t, _ = inputs(TEXT)
    with pytest.raises(ValueError, match="3 rows"):
        built(TEXT)(x, t, conditions(TEXT, 3))


@pytest.mark.parametrize("changes", [
    {"down_block_types": ("DownBlock2D",)}, {"attention_head_dim": 3}, {"norm_num_groups": 3},
    {"addition_embed_type": "text_time"}, {"class_embed_type": "projection"},
    {"class_embed_type": "timestep", "num_class_embeds": 10},
])
def test_configs_that_contradict_themselves(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(TEXT, **changes)


@torch.no_grad()
def test_deep_layers_that_ran_need_not_run_again(network: UNet) -> None:
    x, t, conditioning = inputs(network.config)
    expected = network(x, t, conditioning)
    watch = Watch()
    network(x, t, conditioning, run=watch)
    before = len(watch.rows)
    for outer in range(1, network.blocks_up):
        deep = Deep(outer)
        assert relative_error(network(x, t, conditioning, deep=deep), expected) == 0
        watch = Watch()
        assert relative_error(network(x, t, conditioning, run=watch, deep=deep), expected) <= EXACT
        assert len(watch.rows) < before
        other = network(x + 0.1, t, conditioning, deep=deep)
        assert relative_error(other, expected) > 1e-3  # the layers at the ends see the picture that is there now
    with pytest.raises(ConfigError, match="blocks on its way up"):
        network(x, t, conditioning, deep=Deep(network.blocks_up))


@torch.no_grad()
def test_deep_layers_and_residuals_of_a_side_network() -> None:
    network = built(TEXT)
    x, t, conditioning = inputs(TEXT)
    sizes = [(8, (8, 12)), (8, (8, 12)), (8, (4, 6)), (16, (4, 6))]
    downs = [torch.randn(B, channels, *size, dtype=torch.float64) for channels, size in sizes]
    mid = torch.randn(B, 16, 4, 6, dtype=torch.float64)
    deep = Deep(1)
    expected = network(x, t, conditioning, downs, mid, deep=deep)
    assert relative_error(network(x, t, conditioning, downs, mid, deep=deep), expected) <= EXACT
    assert relative_error(network(x, t, conditioning, deep=deep), expected) > 1e-3
