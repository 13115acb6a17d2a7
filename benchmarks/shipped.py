"""What is drawn with sfumato's own model, which is small enough for many pictures."""

from sfumato.core.shipped import SHIPPED

MODEL = SHIPPED
"""Its name; a benchmark takes another folder of the model by ``--model``."""

PROMPTS = (
    "a slice of pizza", "red apple", "grinning face", "smiling cat with heart-eyes", "blue heart", "rocket",
    "woman firefighter", "snowman", "mushroom", "penguin", "wrapped gift", "strawberry", "basketball", "zebra",
    "slightly smiling face", "running shoe",
)  # fmt: skip
"""Those of its recipe, and others that it knows."""


def shown(model: str) -> str:
    """A model's name as a result tells it: no machine's path."""
    return model if model == MODEL else model.rstrip("/").split("/")[-1]
