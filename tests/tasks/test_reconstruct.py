"""Photographs through autoencoders, in every kind of file that people have them in."""

from pathlib import Path

import pytest
import skimage
import torch
from PIL import Image
from safetensors.torch import save_file

import sfumato
from sfumato.checkpoints.keymap import KeyMap, prefixed
from sfumato.checkpoints.ldm import VAE_PREFIX, vae_rows
from sfumato.cli import main
from sfumato.core.errors import CheckpointError
from sfumato.families.autoencoders import read_autoencoder
from sfumato.models.tiny_autoencoder import TAESD, TinyAutoencoder
from tests.conftest import shared
from tests.parity import tiny


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_photographs_come_back_from_a_real_tiny_autoencoder(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = shared("weights/taef2_encoder.pth")
    Image.fromarray(getattr(skimage.data, name)()).save(tmp_path / "photo.png")
    words = ["reconstruct", str(tmp_path / "photo.png"), str(weights), "--side", "256"]
    assert main([*words, "-o", str(tmp_path / "back.png"), "--both"]) == 0
    out = capsys.readouterr().out
    assert "32 x 32 latents of 32 channels" in out
    assert float(out.split(": ")[-1].split(" dB")[0]) > 23
    assert Image.open(tmp_path / "back.png").size == (512, 256)


def taesd_files(folder: Path) -> dict[str, torch.Tensor]:
    """The two files of a TAESD with random weights, as its author publishes them."""
    torch.manual_seed(0)
    state = TinyAutoencoder(TAESD).state_dict()
    for half, offset in (("encoder", 0), ("decoder", 1)):
        theirs = {}
        for name, tensor in state.items():
            if name.startswith(half):
                _, _, position, rest = name.split(".", 3)
                theirs[f"{int(position) + offset}.{rest}"] = tensor
        torch.save(theirs, folder / f"taesd_{half}.pth")
    return state


def test_either_half_of_a_taesd_names_both(tmp_path: Path) -> None:
    state = taesd_files(tmp_path)
    for half in ("encoder", "decoder"):
        part = read_autoencoder(tmp_path / f"taesd_{half}.pth")
        assert {name: t.shape for name, t in part.tensors.items()} == {n: tuple(t.shape) for n, t in state.items()}
    (tmp_path / "taesd_decoder.pth").unlink()
    with pytest.raises(CheckpointError, match=r"taesd_decoder\.pth is not there"):
        read_autoencoder(tmp_path / "taesd_encoder.pth")


def test_a_tiny_autoencoder_draws_in_place_of_the_large_one(tmp_path: Path) -> None:
    taesd_files(tmp_path)
    tiny.pipeline("sd1", tmp_path).save_pretrained(tmp_path / "model")
    pipe = sfumato.load(str(tmp_path / "model"), vae=str(tmp_path / "taesd_decoder.pth"))
    assert pipe("a cat", steps=2, width=64, height=64).images[0].size == (64, 64)
    assert pipe.model.latent.scale == 1.0


@pytest.mark.parametrize("prefix", ["", VAE_PREFIX])
def test_a_single_file_in_older_names(tmp_path: Path, prefix: str) -> None:
    peer = tiny.autoencoder()
    tiny.randomise(peer, seed=1)
    peer.save_pretrained(tmp_path / "vae")
    part = read_autoencoder(tmp_path / "vae")
    rows = KeyMap(prefixed(vae_rows(part.config), prefix, "")).only(part.tensors.keys())
    theirs = rows.to_theirs(part.tensors, "vae")
    save_file({name: lazy.read().contiguous() for name, lazy in theirs.items()}, tmp_path / "vae.safetensors")
    again = read_autoencoder(tmp_path / "vae.safetensors", like=part.config)
    for name, tensor in part.tensors.items():
        torch.testing.assert_close(again.tensors[name].read(), tensor.read(), rtol=0, atol=0)


def test_what_is_no_autoencoder_is_named(tmp_path: Path) -> None:
    save_file({"lora_te_x.lora_down.weight": torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="LoRA"):
        read_autoencoder(tmp_path / "x.safetensors")
