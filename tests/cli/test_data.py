"""``sfumato data check`` and ``sfumato data shapes``."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sfumato.cli import main


@pytest.fixture
def shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["data", "shapes", str(tmp_path / "shapes"), "--count", "5", "--size", "32", "--seed", "3"]) == 0
    assert capsys.readouterr().out == f"5 pictures of 32 x 32 in {tmp_path / 'shapes'}\n"
    return tmp_path / "shapes"


def test_shapes_are_made_and_pass_the_check(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len((shapes / "captions.txt").read_text().splitlines()) == 5
    assert Image.open(shapes / "images" / "5.png").size == (32, 32)
    assert main(["data", "check", str(shapes), "--sheet", str(shapes / "sheet.png")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("5 items")
    assert "No errors" in out
    assert err == ""
    assert Image.open(shapes / "sheet.png").width > 0
    assert main(["data", "shapes", str(shapes)]) == 2
    assert "already holds pictures" in capsys.readouterr().err


def test_errors_are_listed_and_decide_the_exit_code(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shapes / "images" / "2.png").write_text("no picture")
    assert main(["data", "check", str(shapes)]) == 1
    out = capsys.readouterr().out
    assert "error: unreadable (1)" in out
    assert "2.png" in out
    assert "1 errors" in out
    assert main(["data", "check", str(shapes), "--accept", "unreadable"]) == 0
    capsys.readouterr()
    assert main(["data", "check", str(shapes), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["items"], found["errors"], found["problems"][0]["kind"]) == (5, 1, "unreadable")
    assert main(["data", "check", str(shapes), "--accept", "unreadible"]) == 2
    assert "did you mean 'unreadable'" in capsys.readouterr().err


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        assert main(["data", "check", str(folder)]) == 2
        assert str(folder) in capsys.readouterr().err
