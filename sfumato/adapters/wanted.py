"""Which adapters a request asks for: in its field ``loras``, and in its prompt by ``<lora:name:0.8>``."""

from collections.abc import Sequence
from math import isfinite

from sfumato.adapters.types import Wanted
from sfumato.core.errors import RequestError
from sfumato.core.request import Request
from sfumato.text.prompt import Prompt, Syntax, parse

TAG = "lora"


def asked(request: Request) -> tuple[Wanted, ...]:
    """The adapters of a request, those of the field first; each is ``NAME``, ``NAME:0.8`` or ``NAME:0.8:0.5``.

    One number is the strength everywhere; of two, the first is that in the text encoders, the second that in the
    denoiser.

    Raises:
        RequestError: a strength that is no finite number, a tag in the negative prompt.
    """
    found = [_wanted(*_taken_apart(text), source=f"loras = {text!r}") for text in request.loras]
    for tag in parse(request.prompt, request.prompt_weighting).tags:
        if tag.kind == TAG:
            name, *numbers = tag.arguments
            found.append(_wanted(name, numbers, f"<{TAG}:{':'.join(tag.arguments)}>", tag=True))
    if any(tag.kind == TAG for tag in parse(request.negative_prompt, request.prompt_weighting).tags):
        raise RequestError(
            "The negative prompt asks for a LoRA, which would change the answers to both prompts: name it in the "
            "prompt, with a strength below 0 if its opposite is meant."
        )
    return tuple(found)


def spoken(text: str, syntax: Syntax) -> Prompt | str:
    """A prompt as the text encoders are told it: without the tags of adapters, whose business is not theirs."""
    parsed = parse(text, syntax)
    if not any(tag.kind == TAG for tag in parsed.tags):
        return text
    for tag in parsed.tags:
        if tag.kind != TAG:
            raise RequestError(
                f"The prompt asks for <{tag.kind}:{':'.join(tag.arguments)}>, and of such signs only <{TAG}:…> is "
                r"known. Take it out, or write \< if the sign itself is meant."
            )
    return Prompt(parsed.chunks, (), parsed.reserved)


def _taken_apart(text: str) -> tuple[str, list[str]]:
    """The name, and the numbers behind it."""
    name = text
    numbers: list[str] = []
    while len(numbers) < 2:
        before, colon, last = name.rpartition(":")
        if not colon or not before or _number(last) is None:
            break
        name, numbers = before, [last, *numbers]
    return name, numbers


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _wanted(name: str, numbers: Sequence[str], source: str, tag: bool = False) -> Wanted:
    strengths = [_number(number) for number in numbers]
    read = [strength for strength in strengths if strength is not None and isfinite(strength)]
    if not name or len(strengths) > 2 or len(read) < len(strengths):
        raise RequestError(
            f"{source} is not understood: after the name of a LoRA stands its strength (1 unless given), or two "
            "numbers, the strength in the text encoders and that in the denoiser."
        )
    return Wanted(name, read[0] if read else 1.0, read[-1] if read else 1.0, tag)
