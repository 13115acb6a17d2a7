"""Recipes are read strictly, and written so that they are read back."""

from pathlib import Path

import pytest

from sfumato.cli import main
from sfumato.core.config import from_dict, to_dict
from sfumato.core.errors import ConfigError
from sfumato.noise.schedule import Discrete, RectifiedFlow
from sfumato.training.recipe import Recipe, ScheduleConfig, load, to_toml

TEXT = """
name = "a \\"model\\""
[data]
where = "pictures"
accept = ["tiny"]
[data.framing]
flip = 0.5
[autoencoder.model]
block_out_channels = [32, 32]
[autoencoder.train]
steps = 7
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "recipe.toml"
    file.write_text(TEXT)
    return file


def test_a_recipe_is_read_and_written_back(path: Path, tmp_path: Path) -> None:
    recipe = load(path)
    assert recipe.stages == ("autoencoder",)
    assert recipe.data.framing.flip == 0.5
    again = tmp_path / "again.toml"
    again.write_text(to_toml(to_dict(recipe)))
    assert load(again) == recipe


def test_values_are_changed_from_outside(path: Path) -> None:
    recipe = load(path, ["autoencoder.train.steps=9", "name=other", "data.accept=[]", "autoencoder.loss.kl = 1e-5"])
    assert recipe.autoencoder is not None
    assert (recipe.autoencoder.train.steps, recipe.name, recipe.data.accept) == (9, "other", ())
    assert recipe.autoencoder.loss.kl == 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("autoencoder.train.step=9", "did you mean 'steps'"), ("autoencoder.train.steps=many", "expected int"),
        ("nonsense", "table.key=value"), ("name.x=1", "no table"), ("autoencoder.train.batch=0", "at least 1"),
        ("data.held_out=1", "held_out"), ("clip.vocab=3", "unknown key 'vocab'"), ("diffusion.drop=0.1", "table unet"),
    ],
)  # fmt: skip
def test_mistakes_are_refused(path: Path, change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(path, [change])


def test_a_recipe_without_stages_trains_nothing(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text('[data]\nwhere = "x"\n')
    with pytest.raises(ConfigError, match="nothing to train"):
        load(file)


def test_flow_needs_its_prediction(path: Path) -> None:
    with pytest.raises(ConfigError, match="go together"):
        load(path, ["diffusion.unet.cross_attention_dim=32", "diffusion.prediction=flow"])


def test_schedules_are_built() -> None:
    assert isinstance(ScheduleConfig("flow").build(), RectifiedFlow)
    cosine = ScheduleConfig("squaredcos_cap_v2", steps=100).build()
    assert isinstance(cosine, Discrete)
    assert cosine.steps == 100


def test_plain_data_is_the_recipe(path: Path) -> None:
    recipe = load(path)
    assert from_dict(Recipe, to_dict(recipe)) == recipe


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for name in ("data.held_out", "autoencoder.loss.perceptual", "diffusion.loss.snr_gamma", "clip.train.rate.warmup"):
        assert name in text
