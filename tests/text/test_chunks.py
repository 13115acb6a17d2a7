"""Prompts in pieces of 75 tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.text.chunks import Chunked, split
from sfumato.text.prompt import parse
from sfumato.text.tokenizer import builtin


def pieces(text: str, mode: str = "chunk") -> Chunked:
    return split(parse(text), builtin(), "truncate" if mode == "truncate" else "chunk")


def lengths(text: str) -> list[int]:
    return [len(chunk.ids) for chunk in pieces(text).chunks]


@pytest.mark.parametrize(("text", "expected"), [
    ("", [0]),
    ("a cat", [2]),
    ("cat " * 75, [75]),
    ("cat " * 76, [75, 1]),
    ("cat " * 70 + ", " + "cat " * 10, [71, 10]),  # the comma is near: what follows it moves on
    ("cat " * 50 + ", " + "cat " * 30, [75, 6]),  # too far back
    ("cat " * 75 + ", cat", [75, 2]),  # the comma itself is the first that does not fit
    ("cat " * 54 + ", " + "cat " * 30, [75, 10]),
    ("cat " * 55 + ", " + "cat " * 30, [56, 30]),
    ("cat BREAK dog dog", [1, 2]),
    ("cat BREAK", [1]),
    ("BREAK cat", [0, 1]),
    ("a BREAK BREAK b", [1, 0, 1]),
])
def test_where_pieces_end(text: str, expected: list[int]) -> None:
    assert lengths(text) == expected


@given(st.lists(st.sampled_from(["cat", ",", "(dog:1.2)", "🐈", "supercalifragilistic"]), max_size=150))
def test_no_token_is_lost(words: list[str]) -> None:
    text = " ".join(words)
    found = pieces(text)
    ids = [i for chunk in found.chunks for i in chunk.ids]
    assert ids == [i for span in parse(text).chunks[0] for i in builtin().encode(span.text)]
    assert found.tokens == len(ids)
    assert all(len(c.ids) == len(c.weights) == len(c.spans) == len(c.words) <= 75 for c in found.chunks)


def test_weights_and_words_go_with_their_tokens() -> None:
    (chunk,) = pieces("a (Red fox:1.5) [x]").chunks
    assert chunk.words == ("a", "Red", "fox", "x")
    assert chunk.weights == (1.0, 1.5, 1.5, 1 / 1.1)
    assert chunk.spans == (0, 1, 1, 3)


def test_truncation_says_what_is_lost() -> None:
    found = pieces("cat " * 74 + "(Red Fox, jumping:1.2) high BREAK and far", "truncate")
    assert found.tokens == 75
    assert len(found.chunks) == 1
    assert found.dropped == "Fox, jumping high and far"
    assert pieces("a BREAK (b:2) c", "truncate").dropped == "b c"
    assert pieces("cat " * 75, "truncate").dropped == ""
