"""A parsed prompt becomes pieces that a text encoder can take: at most 75 tokens each, with their weights."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sfumato.text.prompt import Prompt, Span
from sfumato.text.tokenizer import ClipTokenizer

COMMA, BACKTRACK = ",</w>", 20
"""A piece that is full ends after its last comma, if that is among its last twenty tokens: A1111's default."""


@dataclass(frozen=True)
class Chunk:
    """The tokens of one piece, without start, end and padding. All four are equally long.

    Attributes:
        ids: token ids.
        weights: the weight of each token.
        spans: for each token, the number of the prompt's span that it comes from, counted over the whole prompt.
        words: the characters of the prompt that each token stands for.
    """

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    spans: tuple[int, ...] = ()
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chunked:
    """A prompt in pieces.

    Attributes:
        chunks: at least one.
        dropped: the text that was cut off; empty unless truncation was asked for.
    """

    chunks: tuple[Chunk, ...]
    dropped: str = ""

    @property
    def tokens(self) -> int:
        """The tokens used, without start, end and padding."""
        return sum(len(chunk.ids) for chunk in self.chunks)


@dataclass(frozen=True)
class _Token:
    id: int
    weight: float
    span: int
    word: str
    rest: Callable[[], str]  # the prompt from here on


def split(prompt: Prompt, tokenizer: ClipTokenizer, mode: Literal["chunk", "truncate"] = "chunk") -> Chunked:
    """Tokenise a prompt, span by span, and fill one piece after the other; ``BREAK`` closes a piece early.

    Args:
        mode: ``chunk``: as many pieces as it takes, closed after a comma where one is near; ``truncate``: one piece,
            and ``dropped`` tells what did not fit.
    """
    room, comma = tokenizer.length - 2, tokenizer.id(COMMA)
    done: list[list[_Token]] = []
    sections = _tokens(prompt, tokenizer)
    if mode == "truncate":
        whole = sections[0]
        late = [*whole[room:], *(token for section in sections[1:] for token in section)]
        return Chunked((_chunk(whole[:room]),), late[0].rest() if late else "")
    for section in sections:
        piece: list[_Token] = []
        for token in section:
            if len(piece) == room:
                commas = [i for i, t in enumerate(piece) if t.id == comma and i >= room - BACKTRACK]
                end = commas[-1] + 1 if commas and token.id != comma else room
                done.append(piece[:end])
                piece = piece[end:]
            piece.append(token)
        if piece or section is not sections[-1] or not done:
            done.append(piece)
    return Chunked(tuple(_chunk(piece) for piece in done))


def _tokens(prompt: Prompt, tokenizer: ClipTokenizer) -> list[list[_Token]]:
    sections: list[list[_Token]] = []
    numbered = -1
    for i, spans in enumerate(prompt.chunks):
        section = []
        for j, span in enumerate(spans):
            numbered += 1
            for token in tokenizer.tokens(span.text):
                word = span.text[token.start : token.stop]
                rest = _Rest(prompt, i, j, token.start)
                section.append(_Token(token.id, span.weight, numbered, word, rest))
        sections.append(section)
    return sections


@dataclass(frozen=True)
class _Rest:
    """The text of a prompt from one character on; made only when it is asked for."""

    prompt: Prompt
    section: int
    span: int
    start: int

    def __call__(self) -> str:
        def text(spans: tuple[Span, ...]) -> str:
            return "".join(span.text for span in spans)

        here, *later = self.prompt.chunks[self.section :]
        first = here[self.span].text[self.start :] + text(here[self.span + 1 :])
        return " ".join([first, *(text(spans) for spans in later)])


def _chunk(tokens: list[_Token]) -> Chunk:
    return Chunk(
        tuple(t.id for t in tokens), tuple(t.weight for t in tokens), tuple(t.span for t in tokens),
        tuple(t.word for t in tokens),
    )
