"""What a prompt did: a picture, and for each word of its prompt the places that looked at it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from sfumato.adapters.wanted import spoken
from sfumato.core.errors import RequestError
from sfumato.core.request import Request
from sfumato.engine.heatmaps import Heatmaps
from sfumato.families.types import Model
from sfumato.nn.attention import tapped
from sfumato.tasks.picture import Picture, grid
from sfumato.tasks.settle import settle
from sfumato.tasks.text_to_image import Result
from sfumato.text.chunks import split
from sfumato.text.prompt import parse

SHADES = ("#1a1a40", "#c8443c", "#ffe08a")
"""From nothing to most."""


class Word(NamedTuple):
    """A word of a prompt, and where the picture looked at it."""

    text: str
    heat: Tensor  # [h, w] of the latents: the share of the word in what a position looks at

    @property
    def share(self) -> float:
        """Of the whole picture's looking; the rest goes to other words, and most to the prompt's start and end."""
        return float(self.heat.mean())


class Explanation(NamedTuple):
    """A picture and its words."""

    result: Result
    words: list[Word]

    @property
    def picture(self) -> Picture:
        """The picture itself."""
        return self.result.pictures[0]

    def over(self, word: Word, side: int = 256) -> Image.Image:
        """The picture in grey under the word's heat, which goes from its least to its most.

        Args:
            side: pixels of the shorter side at least.
        """
        image = self.picture.image
        times = max(1, -(-side // min(image.size)))
        size = image.width * times, image.height * times
        heat = F.interpolate(word.heat[None, None], size[::-1], mode="bicubic", align_corners=False)[0, 0]
        heat = (heat - heat.min()) / (heat.max() - heat.min()).clamp_min(1e-12)
        shade = Image.fromarray((heat * 255).round().to(torch.uint8).numpy())
        black, mid, white = SHADES
        colours = ImageOps.colorize(shade, black=black, mid=mid, white=white)
        grey = ImageOps.grayscale(image).resize(size, Image.Resampling.LANCZOS).convert("RGB")
        return Image.blend(grey, colours, 0.55)

    def sheet(self, side: int = 256, columns: int | None = None) -> Picture:
        """The picture, and it once more for every word, with the word and its share beneath.

        Args:
            side: of each, see ``over``.
            columns: side by side.
        """
        shown = [(self.over(word, side), f"{word.text}   {word.share:.1%}") for word in self.words]
        whole = self.picture.image.resize(shown[0][0].size, Image.Resampling.LANCZOS)
        made = grid([Picture(_captioned(image, text)) for image, text in [(whole, ""), *shown]], columns)
        words = [{"word": word.text, "share": round(word.share, 5)} for word in self.words]
        return Picture(made.image, {**self.picture.recipe, "explained": words})


def explain(model: Model, request: Request, draw: Callable[[Request], Result]) -> Explanation:
    """Draw a picture, and hear what it looks at meanwhile; the picture is the one that is drawn without.

    Args:
        draw: how this model draws.

    Raises:
        RequestError: more than one picture, no words, no guidance towards them, or a model that attends to none.
    """
    if request.count != 1:
        raise RequestError(f"count = {request.count}: one picture is explained at a time.")
    settled = settle(request, model)
    if "positive" not in settled.names:
        raise RequestError("cfg_scale = 0 draws from the negative prompt alone: there are no words to explain.")
    places = words_of(model, settled.request)
    if not places:
        raise RequestError("The prompt has no words that this model looks at, so there is nothing to explain.")
    heat = Heatmaps((settled.latent_shape[1], settled.latent_shape[2]))
    with tapped(heat):
        result = draw(settled.request)
    if not heat.heard:
        raise RequestError(f"{model.family.title} does not attend to words, so there is nothing to explain.")
    maps = heat.mean()
    return Explanation(result, [Word(text, maps[list(columns)].sum(0)) for text, columns in places])


def words_of(model: Model, request: Request) -> list[tuple[str, Sequence[int]]]:
    """The words of the prompt as it is written, each with the positions of its tokens in the context."""
    if "tokenizer" not in model.tokenizers and "tokenizer_2" not in model.tokenizers:
        return []
    tokenizer = model.tokenizers.get("tokenizer") or model.tokenizers["tokenizer_2"]
    told = spoken(request.prompt, request.prompt_weighting)
    prompt = parse(told, request.prompt_weighting) if isinstance(told, str) else told
    found: list[tuple[str, list[int]]] = []
    ended = True
    for number, chunk in enumerate(split(prompt, tokenizer, request.long_prompts).chunks):
        for place, (token, text) in enumerate(zip(chunk.ids, chunk.words, strict=True)):
            if ended:
                found.append(("", []))
            word, columns = found.pop()
            found.append((word + text, [*columns, tokenizer.length * number + 1 + place]))
            ended = tokenizer.ends_word(token)
    return [(word, columns) for word, columns in found if any(sign.isalnum() for sign in word)]


def _captioned(image: Image.Image, text: str) -> Image.Image:
    height = max(14, image.width // 12)
    font = ImageFont.load_default(height * 0.7)
    made = Image.new("RGB", (image.width, image.height + height), "white")
    made.paste(image)
    ImageDraw.Draw(made).text((image.width / 2, image.height + height / 2), text, "black", font, "mm")
    return made
