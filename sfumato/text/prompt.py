r"""What a prompt's signs mean: a string becomes text with weights, in linear time, whatever the string is.

Three syntaxes, named after the programs whose users write them:

========  ==================================================================  =================
syntax    weights                                                             literal
========  ==================================================================  =================
a1111     ``(x)`` 1.1, ``(x:1.3)`` 1.3, ``[x]`` 1 / 1.1; they multiply        ``\`` + character
comfy     ``(x)`` times 1.1, ``(x:1.3)`` 1.3 whatever stands around it        ``\(`` ``\)``
compel    ``x+`` 1.1, ``x--`` 0.9 ^ 2, ``(x y)++``, ``(x y)1.3``; multiply    ``\`` + character
========  ==================================================================  =================

In all three ``BREAK`` starts a new chunk, ``<lora:name:0.8>`` is taken out of the text, and ``\BREAK`` and ``\<`` are
those characters themselves. A bracket that nobody closes reaches to the end in a1111 and is a plain character in the
other two; one that nobody opened is a plain character everywhere.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from sfumato.core.errors import RequestError, nearest

Syntax = Literal["a1111", "comfy", "compel"]


@dataclass(frozen=True)
class Span:
    """Characters that share a weight. Neighbours of equal weight are one span."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Tag:
    """``<lora:name:0.8>``: kind ``lora``, arguments ``("name", "0.8")``."""

    kind: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Prompt:
    r"""A parsed prompt.

    Attributes:
        chunks: what stands between the ``BREAK``\ s, at least one; an empty one has no spans.
        tags: what stood in angle brackets, in order.
        reserved: the source of what asks for more than one text at a time and so is not text: ``[from:to:when]``,
            ``[a|b]`` and ``AND`` of a1111, ``.blend(…)``, ``.and(…)``, ``.swap(…)``, ``.attend(…)`` of compel.
    """

    chunks: tuple[tuple[Span, ...], ...]
    tags: tuple[Tag, ...] = ()
    reserved: tuple[str, ...] = ()

    @property
    def weighted(self) -> bool:
        """Whether any weight differs from 1."""
        return any(span.weight != 1.0 for chunk in self.chunks for span in chunk)


def parse(text: str, syntax: Syntax = "a1111") -> Prompt:
    """Read a prompt. No string is an error.

    Weights may come out infinite (a thousand nested brackets) or negative: whoever uses them decides.

    Raises:
        RequestError: an unknown syntax.
    """
    if syntax not in SYNTAXES:
        raise RequestError(f"There is no prompt syntax {syntax!r}{nearest(syntax, SYNTAXES)}")
    found = _Found()
    SYNTAXES[syntax](text, found)
    return found.prompt()


def escape(text: str, syntax: Syntax = "a1111") -> str:
    """The prompt that means exactly these characters: ``parse(escape(text))`` is one span of weight 1."""
    special = {"a1111": r"[\\()\[\]]", "comfy": r"[()]", "compel": r"[\\()+-]"}[syntax]
    words = r"\b(?:BREAK|AND)\b" if syntax == "a1111" else r"\bBREAK\b"
    return re.sub(rf"{special}|{words}|<(?=\w+:[^<>]+>)", lambda m: "\\" + m[0], text)


NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
TAG = r"<(?P<kind>\w+):(?P<arguments>[^<>]+)>"
MARK = r"\bBREAK\b"


@dataclass
class _Group:
    """A pair of brackets: what it multiplies the weights inside by, or sets them to."""

    parent: "_Group | None"
    start: int
    factor: float = 1.0
    absolute: bool = False
    alternates: bool = False
    weight: float = 1.0


class _Found:
    """What a parser has found so far. Weights are known only when brackets close, so pieces point at their groups."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str | None, tuple[_Group | None, ...]]] = []  # None: a BREAK
        self.groups: list[_Group] = []  # parents before children
        self.tags: list[Tag] = []
        self.reserved: list[str] = []

    def text(self, text: str, *inside: _Group | None) -> None:
        """Plain text, which may hold ``BREAK``."""
        for i, part in enumerate(re.split(MARK, text)):
            if i > 0:
                self.pieces.append((None, ()))
            self.pieces.append((part, inside))

    def literal(self, text: str, *inside: _Group | None) -> None:
        self.pieces.append((text, inside))

    def tag(self, match: re.Match[str]) -> None:
        self.tags.append(Tag(match["kind"], tuple(a.strip() for a in match["arguments"].split(":"))))

    def open(self, parent: _Group | None, start: int) -> _Group:
        self.groups.append(_Group(parent, start))
        return self.groups[-1]

    def prompt(self) -> Prompt:
        for group in self.groups:
            outside = 1.0 if group.parent is None or group.absolute else group.parent.weight
            group.weight = outside * group.factor
        chunks: list[list[tuple[str, float]]] = [[]]
        for text, inside in self.pieces:
            if text is None:
                _strip(chunks[-1], -1, str.rstrip)
                chunks.append([])
                continue
            weight = 1.0
            for brackets in inside:
                weight *= 1.0 if brackets is None else brackets.weight
            chunks[-1].append((text, weight))
        for chunk in chunks[1:]:
            _strip(chunk, 0, str.lstrip)
        return Prompt(tuple(_merge(chunk) for chunk in chunks), tuple(self.tags), tuple(self.reserved))


def _strip(chunk: list[tuple[str, float]], end: int, strip: Callable[[str], str]) -> None:
    """Take the spaces beside a ``BREAK`` from that end of a chunk."""
    while chunk:
        text, weight = chunk.pop(end)
        if text := strip(text):
            chunk.insert(len(chunk) if end else 0, (text, weight))
            return


def _merge(pieces: list[tuple[str, float]]) -> tuple[Span, ...]:
    full = [piece for piece in pieces if piece[0]]
    return tuple(Span("".join(t for t, _ in run), weight) for weight, run in groupby(full, key=lambda piece: piece[1]))


A1111 = re.compile(
    rf"\\(?P<escaped>.?)|{TAG}|(?P<close>:\s*(?P<weight>{NUMBER})\s*(?P<with>[)\]]))|(?P<sign>[()\[\]|])"
    r"|(?P<text>[^\\()\[\]:|<]+|[:<])",
    re.DOTALL,
)


def _a1111(text: str, found: _Found) -> None:
    """Round and square brackets pair up independently of each other, as they do there."""
    round_: _Group | None = None  # the innermost open group of each kind
    square: _Group | None = None
    for m in A1111.finditer(text):
        sign = m["sign"] or m["with"]
        if m["escaped"] is not None:
            found.literal(m["escaped"], round_, square)
        elif m["kind"]:
            found.tag(m)
        elif sign == "(":
            round_ = found.open(round_, m.start())
            round_.factor = 1.1  # also where it is never closed
        elif sign == "[":
            square = found.open(square, m.start())
            square.factor = 1 / 1.1
        elif sign == ")" and round_:
            if m["weight"]:
                round_.factor = float(m["weight"])
            round_ = round_.parent
        elif sign == "]" and square:
            if m["weight"] or square.alternates:
                found.reserved.append(text[square.start : m.end()])
            square = square.parent
        else:
            if sign == "|" and square:
                square.alternates = True
            found.text(m[0], round_, square)
            found.reserved += re.findall(r"\bAND\b", m[0])


COMFY = re.compile(
    rf"\\(?P<escaped>[()]|B(?=REAK\b)|<)|{TAG}|(?P<close>:\s*(?P<weight>{NUMBER}(?:[eE][+-]?\d+)?)\s*\))|(?P<sign>[()])"
    r"|(?P<text>[^\\():<]+|[\\:<])",
)


def _comfy(text: str, found: _Found) -> None:
    groups: list[tuple[_Group, int]] = []  # open ones, each with the place of its bracket among the pieces
    for m in COMFY.finditer(text):
        innermost = groups[-1][0] if groups else None
        if m["escaped"]:
            found.literal(m["escaped"], innermost)
        elif m["kind"]:
            found.tag(m)
        elif m["sign"] == "(":
            groups.append((found.open(innermost, m.start()), len(found.pieces)))
            found.literal("(", innermost)
        elif (m["close"] or m["sign"]) and groups:
            group, place = groups.pop()
            found.pieces[place] = ("", ())
            group.factor, group.absolute = (float(m["weight"]), True) if m["weight"] else (1.1, False)
        else:
            found.text(m[0], innermost)


COMPEL = re.compile(
    rf"\\(?P<escaped>.?)|{TAG}|(?P<open>\()|(?P<close>\)(?:(?P<signs>\++|-+)(?![\w+-])|(?P<weight>{NUMBER})(?![\w.]))?)"
    r"|(?P<word>[^\s()\\<]+)|(?P<text>\s+|<)",
    re.DOTALL,
)
COMPEL_FUNCTION = re.compile(r"(?<!\\)\.(?:blend|and|swap|attend)\(")
PUNCTUATION = ".,;:!?\"'"


def _compel(text: str, found: _Found) -> None:
    found.reserved += COMPEL_FUNCTION.findall(text)
    groups: list[tuple[_Group, int]] = []
    for m in COMPEL.finditer(text):
        innermost = groups[-1][0] if groups else None
        if m["escaped"] is not None:
            found.literal(m["escaped"], innermost)
        elif m["kind"]:
            found.tag(m)
        elif m["open"]:
            groups.append((found.open(innermost, m.start()), len(found.pieces)))
            found.literal("(", innermost)
        elif m["close"] and groups:
            group, place = groups.pop()
            found.pieces[place] = ("", ())
            group.factor = float(m["weight"]) if m["weight"] else _signs(m["signs"] or "")
        elif m["word"]:
            word = m["word"].rstrip(PUNCTUATION)
            base = word.rstrip(word[-1]) if word and word[-1] in "+-" else ""
            if base and base[-1] not in "+-":
                signed = found.open(innermost, m.start())
                signed.factor = _signs(word[len(base) :])
                found.text(base, signed)
                found.literal(m["word"][len(word) :], innermost)
            else:
                found.text(m["word"], innermost)
        else:
            found.text(m[0], innermost)


def _signs(signs: str) -> float:
    """``++`` is 1.1 squared, ``--`` is 0.9 squared; a hundred and more are infinite or nothing soon enough."""
    weight = 1.0
    for sign in signs:
        weight *= 1.1 if sign == "+" else 0.9
    return weight


SYNTAXES: dict[str, Callable[[str, _Found], None]] = {"a1111": _a1111, "comfy": _comfy, "compel": _compel}
