"""The model that comes with the package: whole, small, licensed, and drawing without a network."""

from pathlib import Path

import pytest

import sfumato
from sfumato.checkpoints.hub import locate
from sfumato.core.shipped import FOLDERS, SHIPPED
from sfumato.tasks.picture import Picture

LIMIT = 60_000_000


def test_it_is_small_and_says_whose_pictures_it_was_trained_on() -> None:
    folder = FOLDERS[SHIPPED]
    assert locate(SHIPPED) == folder
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= LIMIT
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Noto Emoji" in card
    assert "Unicode" in card
    there = {path.name for path in folder.iterdir()}
    assert {"LICENSE-noto-emoji", "LICENSE-cldr", "recipe.toml", "recipe_more.toml", "recipe_finish.toml"} <= there


def test_it_draws_where_no_model_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    pipe = sfumato.load(device="cpu")
    [picture] = pipe("a slice of pizza", seed=0, steps=4).pictures
    assert picture.image.size == (64, 64)
    picture.save(tmp_path / "pizza.png")
    assert Picture.open(tmp_path / "pizza.png").recipe["model"]["name"] == SHIPPED  # and no path of this machine
