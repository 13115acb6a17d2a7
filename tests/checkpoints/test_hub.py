"""Models by name, through the hub's own library, from a server on the loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sfumato.checkpoints.hub import Name, choose, locate, parse_name
from sfumato.core.errors import CheckpointError
from tests.checkpoints.hub_server import COMMIT, serving
from tests.conftest import ROOT

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": [None, None],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "force_zeros_for_empty_prompt": True,
}
WANTED = [
    "model_index.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/config.json",
    "text_encoder/pytorch_model.bin",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "scheduler/scheduler_config.json",
]
OTHERS = [
    "v1-5-pruned.safetensors",
    "README.md",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "text_encoder/model.fp16.safetensors",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
]


def test_only_what_is_needed_is_chosen() -> None:
    assert sorted(choose(WANTED + OTHERS, INDEX, None, "o/n")) == sorted(WANTED)
    fp16 = choose(WANTED + OTHERS, INDEX, "fp16", "o/n")
    assert [f for f in fp16 if "model." in f] == [
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
    ]


def test_what_cannot_be_chosen_is_said() -> None:
    with pytest.raises(CheckpointError, match=r"name one, as o/n/a\.safetensors"):
        choose(["a.safetensors", "b.ckpt"], None, None, "o/n")
    with pytest.raises(CheckpointError, match="say which variant: fp16"):
        choose(["config.json", "model.fp16.safetensors"], None, None, "o/n")
    with pytest.raises(CheckpointError, match="leave the variant out"):
        choose(["config.json", "model.safetensors"], None, "fp16", "o/n")
    assert choose(["config.json", "model.safetensors"], None, None, "o/n") == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("org/name", Name("org/name")),
        ("org/name@v1.0", Name("org/name", "", "v1.0")),
        ("org/name/sub/a file (1).safetensors@main", Name("org/name", "sub/a file (1).safetensors", "main")),
        ("org/model.safetensors", None),
        ("./org/name", None),
        ("/org/name", None),
        ("name", None),
        ("org/name/folder", None),
        ("org/../name", None),
        ("http://x/y", None),
    ],
)
def test_names(source: str, name: Name | None) -> None:
    assert parse_name(source) == name


def test_paths_come_first(tmp_path: Path) -> None:
    assert locate(tmp_path) == tmp_path
    with pytest.raises(CheckpointError, match="no file or folder"):
        locate(tmp_path / "absent.safetensors")


def ask(home: Path, endpoint: str, *sources: str, **environment: str) -> list[dict[str, Any]]:
    """What ``locate`` says of each source in a fresh process, where the library reads its environment."""
    code = """
import json, os, sys
from sfumato.checkpoints.hub import locate
from sfumato.core.errors import CheckpointError
for source in sys.argv[1:]:
    try:
        path = locate(source)
        found = (p for p in path.rglob("*.*") if p.is_file())
        files = [path.name] if path.is_file() else sorted(p.relative_to(path).as_posix() for p in found)
        print(json.dumps({"path": str(path), "files": files}))
    except CheckpointError as problem:
        print(json.dumps({"error": str(problem)}))
assert "torch" not in sys.modules
"""
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment}
    settings = {**{k: v for k, v in os.environ.items() if not k.startswith("HF_")}, **settings}
    done = subprocess.run(
        [sys.executable, "-c", code, *sources], cwd=ROOT, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_protocol(tmp_path: Path) -> None:
    root, home = tmp_path / "served", tmp_path / "home"
    for repository in ("org/model", "org/private", "org/other"):
        for name in WANTED + OTHERS:
            path = root / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(INDEX) if name == "model_index.json" else f"{name} of {repository}")
    with serving(root) as (endpoint, requests):
        sources = (
            "org/model", "org/model@nowhere", "org/absent", "org/private", "org/model/v1-5-pruned.safetensors",
            "org/model/no.ckpt",
        )  # fmt: skip
        whole, revision, absent, private, single, missing = ask(home, endpoint, *sources)
        assert whole["files"] == sorted(WANTED)
        assert Path(whole["path"]).is_relative_to(home)
        assert COMMIT in whole["path"]
        assert (Path(whole["path"]) / "vae/config.json").read_text() == "vae/config.json of org/model"
        assert "has no such revision" in revision["error"]
        assert "does not exist there, or is private" in absent["error"]
        assert "HF_TOKEN" in private["error"]
        assert single["files"] == ["v1-5-pruned.safetensors"]
        assert "has no such file" in missing["error"]
        fetched = [path for method, path, _ in requests if method == "GET" and "/resolve/" in path]
        assert not [path for path in fetched if path.endswith((".md", "fp16.safetensors"))]
        (allowed,) = ask(home, endpoint, "org/private", HF_TOKEN="secret")
        assert allowed["files"] == sorted(WANTED)
        count = len(requests)
        again, other = ask(home, endpoint, "org/model", "org/other", HF_HUB_OFFLINE="1")
        assert len(requests) == count
    assert again["files"] == sorted([*WANTED, "v1-5-pruned.safetensors"])
    assert "HF_HUB_OFFLINE is set" in other["error"]
    # and with nobody at the other end
    cached, unknown = ask(home, endpoint, "org/model", "org/other")
    assert cached["path"] == again["path"]
    assert "was not reached: run once with a network" in unknown["error"]
    for answer in (revision, absent, private, missing, other, unknown):
        assert "\n" not in answer["error"]


def test_a_model_is_uploaded_without_what_only_training_needs(tmp_path: Path) -> None:
    folder, served = tmp_path / "run", tmp_path / "served"
    kept = ["README.md", "unet/config.json", "training/unet/curves.jsonl", "training/eval/shapes.json"]
    for name in [*kept, "training/unet/checkpoints/checkpoint-5/x.json", "training/cache/latents.safetensors"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"this is {name}")
    served.mkdir()
    code = """
import sys
from pathlib import Path
from sfumato.checkpoints.hub import push
from sfumato.core.errors import CheckpointError
try:
    print(push(Path(sys.argv[1]), sys.argv[2]))
except CheckpointError as problem:
    print(problem)
"""
    with serving(served) as (endpoint, _):
        settings = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        settings |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

        def told(name: str, **more: str) -> str:
            command = [sys.executable, "-c", code, str(folder), name]
            return subprocess.run(
                command, cwd=ROOT, env=settings | more, capture_output=True, text=True, check=True
            ).stdout

        assert told("org/mine", HF_TOKEN="secret").strip() == f"{endpoint}/org/mine"
        assert "is no name" in told("mine", HF_TOKEN="secret")
        assert "Set HF_TOKEN to a token that may write there" in told("org/other")
    mine = served / "org/mine"
    there = sorted(p.relative_to(mine).as_posix() for p in mine.rglob("*") if p.is_file())
    assert there == sorted(kept)
    assert (served / "org/mine/unet/config.json").read_text() == "this is unet/config.json"
    assert not (served / "org/other").exists()
