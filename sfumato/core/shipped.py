"""The model that comes with the package."""

from pathlib import Path

SHIPPED = "sfumato/emoji"
"""Its name, wherever a model may be named; what is drawn with where none is."""

FOLDERS = {SHIPPED: Path(__file__).parents[1] / "shipped" / "emoji"}
"""Where shipped models lie, by their names."""
