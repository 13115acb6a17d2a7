"""DiT in its authors' files: read, computed as they compute it, and written back the same."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.checkpoints.dit import DiTLayout, config_of
from sfumato.checkpoints.inspect import inspect
from sfumato.checkpoints.lazy import lazy_all
from sfumato.checkpoints.parts import Part
from sfumato.checkpoints.store import open_file
from sfumato.checkpoints.write import save_file
from sfumato.core.errors import CheckpointError
from sfumato.families.convert import convert
from sfumato.families.load import find
from sfumato.families.single_file import FINGERPRINTS, LAYOUTS
from sfumato.models.dit import DiT
from sfumato.nn.conditioning import Conditioning
from tests.parity import tiny
from tests.parity.peers import relative_error

WIDTH, HEADS, LAYERS, PATCH, SIDE, CLASSES = 384, 6, 2, 4, 16, 5


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A file as the authors' program saves it, with random weights."""
    generator = torch.Generator().manual_seed(0)

    def layer(name: str, rows: int, columns: int) -> dict[str, Tensor]:
        weight = torch.randn(rows, columns, generator=generator) * columns**-0.5
        return {f"{name}.weight": weight, f"{name}.bias": 0.1 * torch.randn(rows, generator=generator)}

    angles = torch.outer(torch.arange(4).double(), 10_000 ** -(torch.arange(WIDTH // 4) / (WIDTH / 4)).double())
    waves = torch.cat([angles.sin(), angles.cos()], 1)  # [4, WIDTH / 2]
    table = torch.cat([waves.repeat(4, 1), waves.repeat_interleave(4, 0)], 1)[None].float()
    found = {"pos_embed": table, **layer("x_embedder.proj", WIDTH, 4 * PATCH**2)}
    found["x_embedder.proj.weight"] = found["x_embedder.proj.weight"].reshape(WIDTH, 4, PATCH, PATCH)
    found |= {**layer("t_embedder.mlp.0", WIDTH, 256), **layer("t_embedder.mlp.2", WIDTH, WIDTH)}
    found["y_embedder.embedding_table.weight"] = torch.randn(CLASSES + 1, WIDTH, generator=generator)
    for n in range(LAYERS):
        for name, rows, columns in (
            ("attn.qkv", 3 * WIDTH, WIDTH), ("attn.proj", WIDTH, WIDTH), ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH), ("adaLN_modulation.1", 6 * WIDTH, WIDTH),
        ):  # fmt: skip
            found |= layer(f"blocks.{n}.{name}", rows, columns)
    found |= layer("final_layer.linear", 8 * PATCH**2, WIDTH)
    return found | layer("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)


def authors(state: dict[str, Tensor], x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """The network as the paper's section 3.2 and table 1 have it, on the file's own names."""

    def layer(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def normed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    angles = t[:, None] * torch.exp(-torch.arange(128) / 128 * torch.log(torch.tensor(10_000.0)))
    c = layer("t_embedder.mlp.2", F.silu(layer("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))))
    c = F.silu(c + state["y_embedder.embedding_table.weight"][labels])
    weight, bias = state["x_embedder.proj.weight"], state["x_embedder.proj.bias"]
    h = F.conv2d(x, weight, bias, stride=PATCH).flatten(2).transpose(1, 2) + state["pos_embed"]
    for n in range(LAYERS):
        shift, scale, gate, shift_2, scale_2, gate_2 = layer(f"blocks.{n}.adaLN_modulation.1", c).chunk(6, 1)
        qkv = layer(f"blocks.{n}.attn.qkv", normed(h, shift, scale))
        q, k, v = qkv.reshape(len(x), -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = ((q @ k.transpose(-2, -1)) * (WIDTH // HEADS) ** -0.5).softmax(-1) @ v
        h = h + gate[:, None] * layer(f"blocks.{n}.attn.proj", mixed.transpose(1, 2).flatten(2))
        inside = F.gelu(layer(f"blocks.{n}.mlp.fc1", normed(h, shift_2, scale_2)), approximate="tanh")
        h = h + gate_2[:, None] * layer(f"blocks.{n}.mlp.fc2", inside)
    y = layer("final_layer.linear", normed(h, *layer("final_layer.adaLN_modulation.1", c).chunk(2, 1)))
    grid = SIDE // PATCH
    return y.view(len(x), grid, grid, PATCH, PATCH, 8).permute(0, 5, 1, 3, 2, 4).reshape(len(x), 8, SIDE, SIDE)


@torch.no_grad()
def test_a_file_is_computed_as_its_authors_do(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": {}, "ema": state, "opt": {"state": {}}, "args": Namespace(epochs=3)}, tmp_path / "dit.pt")
    found = find(tmp_path / "dit.pt")
    assert (found.family.name, *found.parts) == ("dit", "transformer")
    assert found.scheduler["variance_type"] == "learned_range"
    network: DiT = found.parts["transformer"].load()
    x = torch.randn(2, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    t, labels = torch.tensor([930.0, 11.0]), torch.tensor([3, CLASSES])
    assert relative_error(network(x, t, Conditioning(labels=labels)), authors(state, x, t, labels)) <= 1e-5


def test_file_to_folder_and_back_is_the_same_file(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "dit.pt")
    tiny.autoencoder().save_pretrained(tmp_path / "vae")
    convert(tmp_path / "dit.pt", tmp_path / "folder", vae=str(tmp_path / "vae"))
    assert find(tmp_path / "folder").parts["transformer"].config.freq_shift == 0
    done = convert(tmp_path / "folder", tmp_path / "back.safetensors")
    assert (done.family, done.exact, done.left_out) == ("dit", True, ("vae",))
    back = open_file(tmp_path / "back.safetensors").tensors
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(back[name].read(), tensor, rtol=0, atol=1e-7 if name == "pos_embed" else 0)
    report = inspect(tmp_path / "back.safetensors", FINGERPRINTS, LAYOUTS)
    assert (report.families, report.problems) == ((("dit", "dit"),), ())
    assert "DiT" in report.seems


def test_what_the_format_cannot_say_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "dit.pt")
    part = find(tmp_path / "dit.pt").parts["transformer"]
    with pytest.raises(CheckpointError, match="freq_shift = 0"):
        DiTLayout().put_together({"transformer": replace(part, config=replace(part.config, freq_shift=1))})
    different = {name: tensor.read() for name, tensor in part.tensors.items()}
    different["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"] = torch.zeros(CLASSES + 1, WIDTH)
    odd = Part(part.kind, part.config, lazy_all(different), "odd")
    with pytest.raises(CheckpointError, match="they differ"):
        save_file(tmp_path / "odd.safetensors", DiTLayout().put_together({"transformer": odd}))
    assert not (tmp_path / "odd.safetensors").exists()


def test_what_is_no_dit_of_theirs_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({**state, "pos_embed": torch.zeros(1, 16, WIDTH)}, tmp_path / "learned.pt")
    with pytest.raises(CheckpointError, match="sines and cosines"):
        find(tmp_path / "learned.pt")
    lacking = {name: tensor for name, tensor in state.items() if name != "blocks.1.mlp.fc2.bias"}
    torch.save(lacking, tmp_path / "lacking.pt")
    with pytest.raises(CheckpointError, match=r"missing 1 \(blocks.1.mlp.fc2.bias\)"):
        find(tmp_path / "lacking.pt")
    assert "missing 1" in inspect(tmp_path / "lacking.pt", FINGERPRINTS, LAYOUTS).problems[0]
    narrow = lazy_all({**state, "x_embedder.proj.weight": torch.zeros(100, 4, 2, 2)})
    with pytest.raises(CheckpointError, match="heads"):
        config_of(narrow, "narrow.pt")
