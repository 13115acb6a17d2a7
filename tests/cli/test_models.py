"""``sfumato models``."""

import json
from pathlib import Path

import pytest

from sfumato.cli import main
from sfumato.cli.models import cached_models
from sfumato.core.shipped import SHIPPED
from sfumato.families import FAMILIES


def snapshot(cache: Path, name: str, index: str) -> Path:
    folder = cache / f"models--{name.replace('/', '--')}" / "snapshots" / "0123abcd"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text(index)
    (folder / "unet" / "weights.safetensors").write_bytes(b"\0" * 1000)
    return folder


def test_models_in_a_cache_are_found_by_their_hub_names(tmp_path: Path) -> None:
    index = '{"_class_name": "StableDiffusionPipeline"}'
    folder = snapshot(tmp_path, "some-org/some-model", index)
    (tmp_path / "models--other--tokenizer" / "snapshots" / "1" / "x").mkdir(parents=True)
    assert cached_models(tmp_path) == [
        {"name": "some-org/some-model", "pipeline": "StableDiffusionPipeline", "bytes": 1000 + len(index),
         "path": str(folder)}
    ]  # fmt: skip


@pytest.mark.parametrize("index", ["", "[]", "{"])
def test_a_damaged_model_is_listed_as_damaged(index: str, tmp_path: Path) -> None:
    snapshot(tmp_path, "a/b", index)
    (found,) = cached_models(tmp_path)
    assert "cannot be read" in found["pipeline"]


def test_every_family_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out and FAMILIES.get(name).title in out for name in FAMILIES)
    assert "no models" in out
    assert f"  {SHIPPED}\n" in out
    snapshot(tmp_path, "a/b", "{}")
    assert main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["families"]) == list(FAMILIES)
    assert [m["name"] for m in found["cached"]] == ["a/b"]
