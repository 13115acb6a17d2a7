"""What a prompt's signs mean."""

import gc
import math
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.core.errors import RequestError
from sfumato.text.prompt import SYNTAXES, Prompt, Span, Syntax, Tag, escape, parse

NAMES: list[Syntax] = ["a1111", "comfy", "compel"]
SIGNS = st.text(alphabet=st.sampled_from(list("ab ()[]:|\\<>+-.,1BREAKND\n")), max_size=60)
WORDS = ["BREAK", " BREAK ", "AND", "<lora:x:0.8>", ":1.3)", ":0.5]", "(", ")", "[", "]", "\\", "a", " ", "++", ".and("]
PHRASES = st.lists(st.sampled_from(WORDS), max_size=20).map("".join)


def spans(text: str, syntax: Syntax = "a1111") -> list[tuple[str, float]]:
    parsed = parse(text, syntax)
    assert len(parsed.chunks) == 1
    return [(span.text, round(span.weight, 6)) for span in parsed.chunks[0]]


@pytest.mark.parametrize(("text", "expected"), [
    ("normal text", [("normal text", 1)]),
    ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    ("[unbalanced", [("unbalanced", 0.909091)]),
    ("unbalanced) text]", [("unbalanced) text]", 1)]),
    (r"\(literal\]", [("(literal]", 1)]),
    (r"back\\slash", [("back\\slash", 1)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    ("(x:1.3)", [("x", 1.3)]),
    ("(x: 1.3 )", [("x", 1.3)]),
    ("(x:-.5)", [("x", -0.5)]),
    ("(x:1.2.3)", [("x:1.2.3", 1.1)]),
    ("x:1.3)", [("x:1.3)", 1)]),
    ("((x:1.2):1.5)", [("x", 1.8)]),
    ("(a [b] c)", [("a ", 1.1), ("b", 1), (" c", 1.1)]),
    ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 0.909091)]),
    ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).", [
        ("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
        ("sky", 1.4641), (".", 1.1),
    ]),
    ("ratio 16:9", [("ratio 16:9", 1)]),
    ("", []),
])
def test_a1111(text: str, expected: list[tuple[str, float]]) -> None:
    assert spans(text) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("(x)", [("x", 1.1)]),
    ("((x))", [("x", 1.21)]),
    ("((x:1.3))", [("x", 1.3)]),
    ("(a (b:1.2) c:1.5)", [("a ", 1.5), ("b", 1.2), (" c", 1.5)]),
    ("(a (b) c:1.5)", [("a ", 1.5), ("b", 1.65), (" c", 1.5)]),
    ("[x] and [y|z]", [("[x] and [y|z]", 1)]),
    ("(open", [("(open", 1)]),
    ("shut) (x", [("shut) (x", 1)]),
    (r"\(a\) \[b", [(r"(a) \[b", 1)]),
])
def test_comfy(text: str, expected: list[tuple[str, float]]) -> None:
    assert spans(text, "comfy") == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("fire (flames)0.5", [("fire ", 1), ("flames", 0.5)]),
    ("fire (flames)", [("fire flames", 1)]),
    ("flames+", [("flames", 1.1)]),
    ("picking apricots++, (from a tree)--", [
        ("picking ", 1), ("apricots", 1.21), (", ", 1), ("from a tree", 0.81),
    ]),
    ("a (picking apricots+)++ b", [("a ", 1), ("picking ", 1.21), ("apricots", 1.331), (" b", 1)]),
    ("cat hot-dog eating +test", [("cat hot-dog eating +test", 1)]),
    ("a badly (formed", [("a badly (formed", 1)]),
    ("fire (flames (trees)1.5)2.0", [("fire ", 1), ("flames ", 2), ("trees", 3)]),
    (r"C\+\+ \(x\)", [("C++ (x)", 1)]),
    ("a -- b", [("a -- b", 1)]),
])
def test_compel(text: str, expected: list[tuple[str, float]]) -> None:
    assert spans(text, "compel") == expected


@pytest.mark.parametrize("syntax", NAMES)
def test_break_starts_a_chunk_and_takes_the_spaces_around_it(syntax: Syntax) -> None:
    assert parse("a  BREAK\n b", syntax).chunks == ((Span("a"),), (Span("b"),))
    assert parse("BREAK", syntax).chunks == ((), ())
    assert parse(r"a \BREAK b BREAKFAST", syntax).chunks == ((Span("a BREAK b BREAKFAST"),),)


def test_break_inside_brackets_keeps_their_weight() -> None:
    assert parse("(a BREAK b:2)").chunks == ((Span("a", 2.0),), (Span("b", 2.0),))


@pytest.mark.parametrize("syntax", NAMES)
def test_tags_are_taken_out(syntax: Syntax) -> None:
    parsed = parse("a<lora:My style (v1):0.8> b <hypernet:x> <3 <i>", syntax)
    assert parsed.tags == (Tag("lora", ("My style (v1)", "0.8")), Tag("hypernet", ("x",)))
    assert "".join(s.text for s in parsed.chunks[0]) == "a b  <3 <i>"
    assert parse(r"\<lora:x:1>", syntax) == Prompt(((Span("<lora:x:1>"),),))


@pytest.mark.parametrize(("text", "syntax", "reserved"), [
    ("a [cat:dog:0.5] b", "a1111", ("[cat:dog:0.5]",)),
    ("[cat:0.5] [x|y]", "a1111", ("[cat:0.5]", "[x|y]")),
    ("cat AND dog", "a1111", ("AND",)),
    (r"\[cat:dog:0.5\] \AND a|b BAND", "a1111", ()),
    ('("a", "b").and()', "compel", (".and(",)),
    ("cat AND [cat:dog:0.5]", "comfy", ()),
])
def test_what_needs_several_texts_is_named(text: str, syntax: Syntax, reserved: tuple[str, ...]) -> None:
    assert parse(text, syntax).reserved == reserved


def test_an_unknown_syntax_offers_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean 'compel'"):
        parse("x", "compell")  # type: ignore[arg-type]


@given(st.one_of(st.text(), SIGNS, PHRASES), st.sampled_from(NAMES))
def test_no_string_is_an_error(text: str, syntax: Syntax) -> None:
    parsed = parse(text, syntax)
    assert parsed.chunks
    for chunk in parsed.chunks:
        assert all(span.text for span in chunk)
        assert all(a.weight != b.weight for a, b in pairwise(chunk))


@given(st.one_of(st.text(), SIGNS, PHRASES), st.sampled_from(NAMES))
def test_escape_is_undone_by_parse(text: str, syntax: Syntax) -> None:
    assert parse(escape(text, syntax), syntax) == Prompt(((Span(text),),) if text else ((),))


@given(st.lists(st.floats(0.1, 3).map(lambda w: round(w, 2)), min_size=1, max_size=8))
def test_weights_multiply(weights: list[float]) -> None:
    text = "(" * len(weights) + "x" + "".join(f":{w})" for w in weights)
    (span,) = parse(text).chunks[0]
    assert math.isclose(span.weight, math.prod(weights), rel_tol=1e-12)


@pytest.mark.parametrize("syntax", NAMES)
@pytest.mark.parametrize("piece", ["(", "(a", "[", ")", ":", ": ", "<a:", "1", "a+", "\\", " ", "a:1", "((a)", "+-"])
def test_time_is_linear(piece: str, syntax: Syntax) -> None:
    """The best of some tries, since another program can make any one slow."""
    assert set(SYNTAXES) == set(NAMES)
    for text in (piece * (20_000 // len(piece)), ":" + piece * (20_000 // len(piece))):
        assert any(seconds(text, syntax) < 0.5 for _ in range(5))


def seconds(text: str, syntax: Syntax) -> float:
    gc.disable()  # else it also goes through what all tests before have left
    try:
        start = time.process_time()
        parse(text, syntax)
        return time.process_time() - start
    finally:
        gc.enable()
