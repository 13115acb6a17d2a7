"""``sfumato generate`` against a pipeline that draws nothing: what it asks for, where it saves, what it prints."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sfumato.cli import main
from sfumato.cli.progress import bar
from sfumato.core.config import fields
from sfumato.core.errors import CheckpointError
from sfumato.core.request import Request


@dataclass
class FakePicture:
    seed: int
    image: Image.Image = field(default_factory=lambda: Image.new("RGB", (16, 8)))

    def save(self, path: Path) -> None:
        self.image.save(path)


@dataclass
class FakeResult:
    pictures: list[FakePicture]
    notes: list[str]
    tokens: dict[str, int] = field(default_factory=lambda: {"positive": 4})
    seconds: float = 1.23456


@dataclass
class Fake:
    """Stands for ``load`` and for the pipeline it returns, and remembers what both were asked."""

    loaded: dict[str, Any] = field(default_factory=dict)
    request: Request | None = None

    def load(self, source: str, **options: Any) -> "Fake":
        if source == "broken":
            raise CheckpointError("broken is truncated.")
        self.loaded = {"source": source, **options}
        return self

    def __call__(self, request: Request, on_step: Callable[[Any], None] | None = None) -> FakeResult:
        self.request = request
        return FakeResult([FakePicture((request.seed or 0) + i) for i in range(request.count)], ["4 tokens of 75"])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    monkeypatch.chdir(tmp_path)
    module, pipeline = ModuleType("sfumato.tasks.pipeline"), Fake()
    module.load = pipeline.load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sfumato.tasks.pipeline", module)
    return pipeline


def test_flags_become_the_request(fake: Fake) -> None:
    line = ["generate", "a red apple", "--model", "m", "--steps", "30", "--cfg-scale", "7.5", "--seed", "7",
            "--sampler", "DPM++ 2M Karras", "--negative-prompt", "pear", "--schedule", "karras", "--clip-skip", "2",
            "--batch-count", "2", "-o", "apple.png"]  # fmt: skip
    assert main(line) == 0
    assert fake.request == Request(
        prompt="a red apple", steps=30, cfg_scale=7.5, seed=7, sampler="DPM++ 2M Karras", negative_prompt="pear",
        spacing="karras", clip_skip=2, count=2,
    )  # fmt: skip


def test_fast_comes_after_the_lossy_modes_that_are_named(fake: Fake) -> None:
    assert main(["x", "-m", "m", "--fast", "--lossy", "deepcache:4"]) == 0
    assert fake.request == Request(prompt="x", lossy=("deepcache:4", "fast"))


def test_loading_flags_reach_load(fake: Fake) -> None:
    assert main(["x", "-m", "m", "--vae", "v", "--variant", "fp16", "--device", "cpu", "--dtype", "bfloat16"]) == 0
    given = {k: v for k, v in fake.loaded.items() if v is not None}
    assert given == {"source": "m", "vae": "v", "variant": "fp16", "device": "cpu", "dtype": "bfloat16"}


@pytest.mark.usefixtures("fake")
def test_paths_on_stdout_notes_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["an apple", "-m", "m", "--seed", "3", "--count", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == ["out/3-an-apple.png", "out/4-an-apple.png"]
    assert err == "note: 4 tokens of 75\n"
    assert all(Image.open(path).size == (16, 8) for path in out.split())


@pytest.mark.usefixtures("fake")
def test_quiet_prints_paths_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["an apple", "-m", "m", "--quiet", "-o", "a.webp"]) == 0
    assert capsys.readouterr() == ("a.webp\n", "")


@pytest.mark.usefixtures("fake")
def test_json_is_machine_readable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["an apple", "-m", "m", "--seed", "3", "--json", "-o", "a.png"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "pictures": [{"path": "a.png", "seed": 3, "width": 16, "height": 8}],
        "tokens": {"positive": 4}, "notes": ["4 tokens of 75"], "seconds": 1.235,
    }  # fmt: skip


def test_nothing_is_loaded_for_a_request_that_cannot_be_drawn(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (["x", "-m", "m", "--steps", "0"], ["x", "-m", "m", "-o", "x.pgn"], ["x", "-m", "m", "--stpes", "3"]):
        assert main(line) == 2
    assert not fake.loaded
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.usefixtures("fake")
def test_an_error_of_the_pipeline_leaves_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["x", "-m", "broken", "-o", "a.png"]) == 2
    assert capsys.readouterr().err == "sfumato: broken is truncated.\n"
    assert not list(tmp_path.iterdir())


def test_help_lists_every_field_of_the_request_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for f in fields(Request):
        assert f"--{f.name.replace('_', '-')}" in text
        assert f.doc in text


def test_a_terminal_gets_a_bar_on_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    with bar("drawing", shown=True) as advance:
        assert advance is not None
        advance(SimpleNamespace(step=3, steps=20))
    out, err = capsys.readouterr()
    assert out == ""
    assert "drawing" in err
    assert "3/20" in err
    with bar("drawing", shown=False) as nothing:
        assert nothing is None
