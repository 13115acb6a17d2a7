"""Damaged, hostile and wrong checkpoints, overflowing numbers, a full disk: one paragraph, and nothing left behind."""

import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.cli import main
from tests.conftest import ROOT
from tests.parity import tiny

SMALL = ["--steps", "2", "--width", "64", "--height", "64"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sd1")
    tiny.pipeline("sd1", place).save_pretrained(place / "model")
    return place / "model"


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that may be damaged, and an empty place to draw into."""
    shutil.copytree(whole, tmp_path / "model")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    return tmp_path / "model"


def truncated(folder: Path) -> Path:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return folder


def lora(folder: Path) -> Path:
    file = folder.parent / "style.safetensors"
    save_file({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 8)}, file)
    return file


def foreign_autoencoder(folder: Path) -> Path:
    tiny.autoencoder(0.13025, force_upcast=True).save_pretrained(folder / "vae")
    return folder


class Hostile:
    """Unpickled carelessly, it runs a command."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        import os

        return os.system, ("touch owned",)


def pickled(folder: Path) -> Path:
    file = folder.parent / "model.ckpt"
    torch.save({"state_dict": {"x": torch.zeros(1)}, "more": Hostile()}, file)
    return file


def bare_pickle(folder: Path) -> Path:
    file = folder.parent / "model.pt"
    file.write_bytes(pickle.dumps(Hostile()))
    return file


def not_a_number(folder: Path) -> Path:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.bias"] = tensors["conv_in.bias"] * float("nan")
    save_file(tensors, file)
    return folder


def without_a_part(folder: Path) -> Path:
    shutil.rmtree(folder / "text_encoder")
    return folder


def of_other_shapes(folder: Path) -> Path:
    tiny.unet(cross_attention_dim=768, block_out_channels=(32, 96)).save_pretrained(folder.parent / "other")
    name = "diffusion_pytorch_model.safetensors"
    shutil.copy(folder.parent / "other" / name, folder / "unet" / name)
    return folder


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncated, "truncated"), (lora, "LoRA"), (foreign_autoencoder, "scaling_factor"), (pickled, "unsafe"),
        (bare_pickle, "unsafe"), (not_a_number, "NaN"), (without_a_part, "text_encoder"), (of_other_shapes, "shape"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_a_model_that_cannot_be_used_is_refused(
    folder: Path, damage: Callable[[Path], Path], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["a cat", "--model", str(damage(folder)), "-o", "never.png", "--quiet", *SMALL]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err
    assert not list(Path().iterdir())  # neither a picture nor what the pickle would have made


def test_a_full_disk_leaves_no_half_picture(folder: Path) -> None:
    """A real limit on the size of files, in a process of its own."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    words = ["a cat", "--model", str(folder), "-o", "never.png", "--quiet", *SMALL]
    done = subprocess.run(
        [sys.executable, "-m", "sfumato", *words], preexec_fn=limit, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "never.png" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(Path().iterdir())
