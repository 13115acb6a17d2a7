"""Where pictures go."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.cli.naming import destination, grid_place, place, slug
from sfumato.core.errors import RequestError


def test_without_a_name_seed_and_words_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, name = destination(None)
    first = place(folder, name, 7, "A red (apple:1.3)!", 0, 1)
    assert first == Path("out/7-a-red-apple.png")
    first.touch()
    assert place(folder, name, 7, "A red (apple:1.3)!", 0, 1) == Path("out/7-a-red-apple-1.png")
    assert grid_place(folder, name, 7, "A red apple") == Path("out/7-a-red-apple-grid.png")


def test_a_named_file_is_numbered_only_where_there_are_several(tmp_path: Path) -> None:
    folder, name = destination(tmp_path / "new" / "apple.jpg")
    assert folder.is_dir()
    assert place(folder, name, 7, "x", 0, 1) == tmp_path / "new/apple.jpg"
    assert [place(folder, name, 7 + i, "x", i, 2).name for i in range(2)] == ["apple-1.jpg", "apple-2.jpg"]
    assert grid_place(folder, name, 7, "x") == tmp_path / "new/apple-grid.jpg"


def test_a_named_file_is_overwritten_and_a_made_up_name_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "7-x.png").touch()
    (tmp_path / "7-x-1.png").touch()
    assert place(*destination(tmp_path / "a.png"), 7, "x", 0, 1) == tmp_path / "a.png"
    assert place(*destination(tmp_path), 7, "x", 0, 1) == tmp_path / "7-x-2.png"


def test_a_folder_may_be_new_and_may_have_a_dot_where_it_exists(tmp_path: Path) -> None:
    assert destination(tmp_path / "new") == (tmp_path / "new", None)
    (tmp_path / "v1.5").mkdir()
    assert destination(tmp_path / "v1.5") == (tmp_path / "v1.5", None)


def test_a_suffix_of_no_picture_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"apple\.pgn.*did you mean '\.png'"):
        destination(tmp_path / "apple.pgn")
    assert not list(tmp_path.iterdir())


@given(st.text(max_size=300))
def test_any_prompt_makes_a_file_name(prompt: str) -> None:
    name = slug(prompt)
    assert 0 < len(name) <= 48
    assert not set(name) & set("/\\:*?\"<>|. \n\0")


def test_scripts_other_than_latin_keep_their_words() -> None:
    assert slug("Яблоко, красное") == "яблоко-красное"
    assert slug("<lora:style:0.8> !!!") == "picture"
    assert slug("word " * 40) == "-".join(["word"] * 9)
