"""A contact sheet: what a data set looks like, on one page."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from sfumato.core.errors import DataError
from sfumato.training.data import Dataset
from sfumato.training.pictures import decode


def contact_sheet(dataset: Dataset, count: int = 64, side: int = 96) -> Image.Image:
    """Up to ``count`` pictures, evenly spread over the data set, each in a square of ``side`` pixels with its caption.

    What cannot be read is a crossed square.
    """
    count = min(count, len(dataset))
    columns = max(1, min(8, count))
    cell, strip = side + 8, 26
    sheet = Image.new("RGB", (columns * cell, max(1, -(-count // columns)) * (cell + strip)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(9)
    for place in range(count):
        x, y = place % columns * cell + 4, place // columns * (cell + strip) + 4
        index = place * len(dataset) // count
        try:
            item = dataset.item(index)
            picture = ImageOps.contain(decode(item.picture), (side, side))
            sheet.paste(picture, (x + (side - picture.width) // 2, y + (side - picture.height) // 2))
            text = item.caption or item.key
        except (DataError, OSError):
            pen.line((x, y, x + side, y + side), "red", 2)
            pen.line((x, y + side, x + side, y), "red", 2)
            text = f"item {index}: unreadable"
        pen.multiline_text((x, y + side + 1), _two_lines(text, side, font.getlength), "black", font, spacing=1)
    return sheet


def _two_lines(text: str, width: int, length: Callable[[str], float]) -> str:
    rows = [""]
    for word in text[:200].split():
        longer = f"{rows[-1]} {word}".strip()
        if length(longer) <= width or not rows[-1]:
            rows[-1] = longer
        else:
            rows.append(word)
    return "\n".join(rows[:2])


def save_contact_sheet(dataset: Dataset, path: Path) -> None:
    """As a PNG. DataError: it cannot be written."""
    try:
        contact_sheet(dataset).save(path, "PNG")
    except OSError as problem:
        raise DataError(f"The contact sheet {path} was not written: {problem.strerror or problem}.") from None
