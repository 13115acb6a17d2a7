"""DiT against diffusers' on the same random weights."""

import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.checkpoints.parts import read_config, write_config
from sfumato.models.dit import DITS, DiT, DiTConfig
from sfumato.nn.conditioning import Conditioning
from tests.parity.peers import known_to_peers, parameter_count, randomise, relative_error, shapes

CLASS = "DiTTransformer2DModel"
diffusers = pytest.importorskip("diffusers")

SMALL = DiTConfig(num_attention_heads=4, attention_head_dim=8, num_layers=3, sample_size=8, num_embeds_ada_norm=10)
TINY = {
    "learned variance": replace(SMALL, out_channels=8),
    "patches of 4": replace(SMALL, patch_size=4, in_channels=3),
    "no classes": replace(SMALL, num_embeds_ada_norm=0, norm_eps=1e-3),
}


def pair(config: DiTConfig) -> tuple[DiT, Any]:
    """Ours and diffusers', with the same tensors as weights."""
    ours = DiT(config)
    randomise(ours)
    with torch.device("meta"):
        settings = known_to_peers(config)
        theirs = diffusers.DiTTransformer2DModel(**settings)
    # Positions are no weights; they are made when the network is, and not on the meta device.
    theirs.pos_embed.pos_embed = diffusers.models.embeddings.PatchEmbed(
        config.sample_size, config.sample_size, config.patch_size, config.in_channels, config.width
    ).pos_embed
    theirs.load_state_dict(ours.state_dict(), assign=True)
    return ours, theirs.eval()


def draw(config: DiTConfig, rows: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, times and classes, "none" among them."""
    generator = torch.Generator().manual_seed(3)
    side, classes = config.sample_size, config.num_embeds_ada_norm
    x = torch.randn(rows, config.in_channels, side, side, generator=generator)
    labels = torch.tensor([classes // 3] * (rows - 1) + [classes])
    return x, torch.randint(0, 1000, (rows,), generator=generator), labels


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_names_shapes_and_outputs(name: str) -> None:
    config = TINY[name]
    ours, theirs = pair(config)
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    x, t, labels = draw(config)
    expected = theirs(x, t, class_labels=labels).sample
    assert expected.std() > 0.05
    assert relative_error(ours(x, t, Conditioning(labels=labels)), expected) <= 1e-5


@torch.no_grad()
def test_half_precision_is_as_near_as_the_peer() -> None:
    config = TINY["learned variance"]
    ours, theirs = pair(config)
    x, t, labels = draw(config)
    exact = ours(x, t, Conditioning(labels=labels))
    near = ours.bfloat16()(x.bfloat16(), t, Conditioning(labels=labels))
    peer = theirs.bfloat16()(x.bfloat16(), t, class_labels=labels).sample
    assert near.dtype == torch.bfloat16
    assert relative_error(near.float(), exact) <= 1.2 * relative_error(peer.float(), exact)


MILLIONS = {"dit-s2": 33, "dit-b2": 130, "dit-l2": 458, "dit-xl2": 675}
"""Parameters of the paper's networks (its table 4); a folder holds the embedding once a block and so has more."""


@pytest.mark.parametrize("name", [name for name in DITS if name.endswith("2")])
def test_true_configurations_have_the_peers_tensors(name: str) -> None:
    config = DITS[name]
    with torch.device("meta"):
        ours, theirs = DiT(config), diffusers.DiTTransformer2DModel(**known_to_peers(config))
    assert shapes(ours.state_dict()) == shapes(theirs.state_dict())
    assert read_config(CLASS, dict(theirs.config), "peer") == config


def test_the_shared_embedding_has_the_papers_number_of_parameters() -> None:
    for name, millions in MILLIONS.items():
        with torch.device("meta"):
            network = DiT(DITS[name], shared=True)
        assert round(parameter_count(network) / 1e6) == millions
        if name == "dit-xl2":
            assert parameter_count(network) + 256 * 1152 == 675_129_632  # with the positions, as their log counts them


def test_the_published_config_is_the_preset() -> None:
    """transformer/config.json of facebook/DiT-XL-2-256, which came before the class had a name of its own."""
    said = {
        "_class_name": "Transformer2DModel", "_diffusers_version": "0.12.0.dev0", "activation_fn": "gelu-approximate",
        "attention_bias": True, "attention_head_dim": 72, "cross_attention_dim": None, "dropout": 0.0, "in_channels": 4,
        "norm_elementwise_affine": False, "norm_num_groups": 32, "norm_type": "ada_norm_zero",
        "num_attention_heads": 16, "num_embeds_ada_norm": 1000, "num_layers": 28, "num_vector_embeds": None,
        "only_cross_attention": False, "out_channels": 8, "patch_size": 2, "sample_size": 32,
        "upcast_attention": False, "use_linear_projection": False,
    }  # fmt: skip
    config = read_config("Transformer2DModel", said, "here")
    assert config == DITS["dit-xl2"]
    written = write_config("Transformer2DModel", config, None)
    assert read_config("Transformer2DModel", written, "here") == config
    with torch.device("meta"):
        theirs = diffusers.Transformer2DModel.from_config(written)
    assert isinstance(theirs, diffusers.DiTTransformer2DModel)
    assert theirs.config.norm_type == "ada_norm_zero"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@torch.no_grad()
def test_true_configuration() -> None:
    config = DITS["dit-xl2"]
    ours, theirs = pair(config)  # one set of weights: 3.0 GB
    same = dict(theirs.named_parameters())
    assert all(p.data_ptr() == same[key].data_ptr() for key, p in ours.named_parameters())
    x, t, labels = draw(config)
    measured = relative_error(ours(x, t, Conditioning(labels=labels)), theirs(x, t, class_labels=labels).sample)
    print(f"dit-xl2: relative error {measured:.1e}")
    del ours, theirs, same
    gc.collect()
    assert measured <= 1e-5
