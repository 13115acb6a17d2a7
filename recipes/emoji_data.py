"""The data set of `emoji.toml`, from its public sources: a picture of each emoji, and its name.

    git clone --depth 1 https://github.com/googlefonts/noto-emoji
    git clone --depth 1 https://github.com/unicode-org/cldr-json
    python recipes/emoji_data.py noto-emoji cldr-json data/emoji

Pictures: Noto Emoji, `png/128` (Apache License 2.0; the model was trained on commit b3e3051a). Names and keywords:
Unicode CLDR, English (Unicode License v3; commit b08a82b5). Which emoji: those of `emoji_codepoints.txt`, among which
are no skin-toned variants and no country flags. Pictures are named by their code points, so that the split into
training and held-out ones does not hang on their order.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from PIL import Image

CHOSEN = Path(__file__).with_name("emoji_codepoints.txt")
INVISIBLE = "\ufe0f"  # asks for the coloured form, where a character has two; file names leave it out
ASCII_QUOTES = str.maketrans("“”‘’", "\"\"''")
ANNOTATIONS = (
    "cldr-json/cldr-annotations-full/annotations/en/annotations.json",
    "cldr-json/cldr-annotations-derived-full/annotationsDerived/en/annotations.json",
)


class Name(NamedTuple):
    """What CLDR says of one emoji."""

    short: str
    keywords: list[str]


def names(cldr: Path) -> dict[str, Name]:
    """Code points in hex, joined with _ as in the names of the pictures -> what the emoji is called."""
    found: dict[str, Name] = {}
    for place in ANNOTATIONS:
        (table,) = json.loads((cldr / place).read_text(encoding="utf-8")).values()
        for text, entry in table["annotations"].items():
            if "tts" in entry:
                code = "_".join(f"{ord(c):04x}" for c in text if c != INVISIBLE)
                keywords = [word.translate(ASCII_QUOTES) for word in entry.get("default", [])]
                found.setdefault(code, Name(entry["tts"][0].translate(ASCII_QUOTES), keywords))
    return found


def on_white(path: Path) -> Image.Image:
    """The picture in RGB, what is transparent made white."""
    image = Image.open(path).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def build(noto: Path, cldr: Path, out: Path) -> int:
    """Write ``out/images`` and ``out/metadata.jsonl``, and tell how many pictures there are."""
    known = names(cldr)
    (out / "images").mkdir(parents=True)
    rows = []
    for code in CHOSEN.read_text(encoding="ascii").split():
        on_white(noto / "png" / "128" / f"emoji_u{code}.png").save(out / "images" / f"{code}.png")
        row = {"file_name": f"images/{code}.png", "text": known[code].short, "keywords": known[code].keywords}
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    (out / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")
    shutil.copy(cldr / "LICENSE", out / "LICENSE-cldr")  # noto-emoji's own LICENSE is that of the font
    return len(rows)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    print(build(*map(Path, sys.argv[1:])), "pictures")
