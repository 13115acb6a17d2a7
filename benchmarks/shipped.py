"""What is drawn with models that were trained here, which are small enough for many pictures."""

from sfumato.core.shipped import SHIPPED

MODEL = SHIPPED
"""Its name; a benchmark takes another folder of the model by ``--model``."""

PROMPTS = (
    "a slice of pizza", "red apple", "grinning face", "smiling cat with heart-eyes", "blue heart", "rocket",
    "woman firefighter", "snowman", "mushroom", "penguin", "wrapped gift", "strawberry", "basketball", "zebra",
    "slightly smiling face", "running shoe",
)  # fmt: skip
"""Those of its recipe, and others that it knows."""

SHAPES = (
    "a large red circle", "two small blue stars", "a small green cross left of a large purple square",
    "three small orange triangles above a large yellow star", "two large red squares below two small blue circles",
    "a large blue circle right of a large blue triangle", "a small yellow square above a small yellow cross",
    "two small purple crosses left of three small green circles", "a small red star", "three large green squares",
    "two small orange circles below a large blue cross", "a large purple triangle left of a small red circle",
    "three small yellow stars", "a large green star above two small purple squares", "two large orange crosses",
    "a small blue triangle right of a large yellow circle",
)  # fmt: skip
"""Those of ``recipes/shapes.toml``, and others of their kind."""


def prompts_of(model: str) -> tuple[str, ...]:
    """As many as ``PROMPTS``, in the words that the model was taught."""
    return SHAPES if shown(model) == "shapes" else PROMPTS


def shown(model: str) -> str:
    """A model's name as a result tells it: no machine's path."""
    return model if model == MODEL else model.rstrip("/").split("/")[-1]
