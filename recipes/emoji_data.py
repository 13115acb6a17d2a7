"""The data set of `emoji.toml`, from its public sources: a picture of each emoji, and its name.

    git clone --depth 1 https://github.com/googlefonts/noto-emoji
    git clone --depth 1 https://github.com/unicode-org/cldr-json
    python recipes/emoji_data.py noto-emoji cldr-json data/emoji

Pictures: Noto Emoji, `png/128` (Apache License 2.0; the model was trained on commit b3e3051a). Names and keywords:
Unicode CLDR, English (Unicode License v3; commit b08a82b5). Which emoji: those of `emoji_codepoints.txt`, among which
are no skin-toned variants and no country flags. Pictures are named by their code points, so that the split into
training and held-out ones does not hang on their order.

One name a picture would teach the names alone, so each has other captions beside it: see `others`.
"""

import json
import shutil
import sys
from collections import Counter
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


def with_article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiouAEIOU' else 'a'} {text}"


def others(name: Name, rare: set[str], taken: set[str]) -> list[str]:
    """Other captions of an emoji, so that "a slice of pizza" is understood and not "pizza" alone.

    The name with an article, in a phrase, and beside each keyword; without one of its words, if it has three; and the
    keywords that are this emoji's alone.

    Args:
        rare: keywords of one emoji.
        taken: names of emoji, which no caption of another may be.
    """
    short, words = name.short, name.short.split()
    keywords = [k for k in name.keywords if k.lower() not in short.lower()]
    found = [with_article(short), f"a picture of {with_article(short)}", f"an emoji of {short}"]
    found += [f"{word} {short}" if i % 2 else f"{short}, {word}" for i, word in enumerate(keywords)]
    found += [f"{with_article(word)} of {short}" for word in keywords]
    found += [", ".join([short, *keywords[:3]])] if len(keywords) > 1 else []
    found += [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))] if len(words) > 2 else []
    found += [text for k in keywords if k in rare for text in (k, with_article(k))]
    return [text for text in dict.fromkeys(found) if text not in taken]


def on_white(path: Path) -> Image.Image:
    """The picture in RGB, what is transparent made white."""
    image = Image.open(path).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def build(noto: Path, cldr: Path, out: Path) -> int:
    """Write ``out/images`` and ``out/metadata.jsonl``, and tell how many pictures there are."""
    known = names(cldr)
    codes = CHOSEN.read_text(encoding="ascii").split()
    uses = Counter(word for code in codes for word in set(known[code].keywords))
    rare = {word for word, count in uses.items() if count == 1}
    taken = {known[code].short for code in codes}
    (out / "images").mkdir(parents=True)
    rows = []
    for code in codes:
        on_white(noto / "png" / "128" / f"emoji_u{code}.png").save(out / "images" / f"{code}.png")
        texts = [known[code].short, *others(known[code], rare, taken)]
        row = {"file_name": f"images/{code}.png", "text": texts}
        rows.append(json.dumps(row, ensure_ascii=False) + "\n")
    (out / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")
    shutil.copy(cldr / "LICENSE", out / "LICENSE-cldr")  # noto-emoji's own LICENSE is that of the font
    return len(rows)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    print(build(*map(Path, sys.argv[1:])), "pictures")
