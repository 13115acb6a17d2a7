"""A dataclass as flags."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.cli.parser import build, leaves, read
from sfumato.core.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    guidance_scale: Annotated[float, "how much, 0 to 100 %"] = 7.5
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Options:
    """What it does."""

    source: Annotated[str, "where from"]
    inner: Inner = field(default_factory=Inner)
    note: Annotated[str | None, "a word"] = None
    count: int = 1
    kind: Literal["a", "b"] = "a"
    loud: Annotated[bool, "be loud"] = False
    safe: Annotated[bool, "do not be safe"] = True


def parsed(*words: str, positional: tuple[str, ...] = ()) -> Options:
    return read(build(Options, "tool", positional, {"count": ("-n", "--number")}), Options, words)


def test_defaults_are_the_dataclass_own() -> None:
    assert parsed("here") == Options("here")


CASES: list[tuple[list[str], dict[str, Any]]] = [
    (["--count", "3"], {"count": 3}), (["--count=3"], {"count": 3}), (["-n", "3"], {"count": 3}),
    (["--number", "3"], {"count": 3}), (["--loud"], {"loud": True}), (["--no-safe"], {"safe": False}),
    (["--kind", "b"], {"kind": "b"}), (["--note", "x y"], {"note": "x y"}), (["--note=--loud"], {"note": "--loud"}),
    (["--guidance-scale", "2"], {"inner": Inner(2.0)}), (["--guidance_scale=.5"], {"inner": Inner(0.5)}),
    (["--sizes", "1,2"], {"inner": Inner(sizes=(1, 2))}),
    (["--sizes", "1", "--sizes", "2,3"], {"inner": Inner(sizes=(1, 2, 3))}),
]  # fmt: skip


@pytest.mark.parametrize(("words", "values"), CASES)
@pytest.mark.parametrize("first", [True, False])
def test_flags_set_fields_before_and_after_the_positional(
    words: list[str], values: dict[str, Any], first: bool
) -> None:
    assert parsed(*(["here", *words] if first else [*words, "here"])) == Options("here", **values)


def test_an_optional_field_may_go_without_its_flag() -> None:
    for words in (["here", "word"], ["--count", "2", "here", "word"], ["here", "--count", "2", "word"]):
        assert parsed(*words, positional=("note",)).note == "word"
    assert parsed("here", "--note", "word", positional=("note",)).note == "word"
    with pytest.raises(ConfigError, match="twice"):
        parsed("here", "word", "--note", "other", positional=("note",))


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "SOURCE|source"), (["x", "--cuont", "3"], "no flag --cuont; did you mean '--count'"),
     (["x", "--coun", "3"], "no flag --coun"), (["x", "--count", "three"], "--count: cannot read 'three'"),
     (["x", "--count"], "--count.*: expected one argument"), (["x", "y z"], "unexpected 'y z'"),
     (["x", "--kind", "c"], "--kind: 'c' is not one of 'a', 'b'"),
     (["x", "--count", "1", "-n", "2"], "-n is given twice"),
     (["x", "--safe"], "no flag --safe"), (["x", "--loud=yes"], "--loud")],
)  # fmt: skip
def test_refusals_name_the_flag(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parsed(*words)


def test_help_shows_every_field_its_text_and_its_default() -> None:
    text = " ".join(build(Options, "tool").format_help().split())
    for _, leaf in leaves(Options):
        assert leaf.doc in text
        assert leaf.required or leaf.name.replace("_", "-") in text
    assert "(default: 7.5)" in text
    assert "What it does." in text


words = st.lists(
    st.sampled_from(["--count", "--note", "--loud", "--no-safe", "--sizes", "-n", "--", "here", "3", "1,2", "--x=1"])
    | st.text(max_size=6),
    max_size=7,
)


@given(words)
def test_any_line_is_read_or_refused(line: list[str]) -> None:
    try:
        found = parsed(*line)
    except ConfigError:
        return
    assert isinstance(found, Options)


@given(st.integers(), st.text().filter(lambda t: not t.startswith("-")), st.lists(st.integers(), min_size=1))
def test_values_arrive_as_they_were_written(count: int, note: str, sizes: list[int]) -> None:
    line = [f"--count={count}", f"--note={note}", f"--sizes={','.join(map(str, sizes))}", "here"]
    expected = None if note.casefold() in ("", "none", "null") else note
    assert parsed(*line) == Options("here", Inner(sizes=tuple(sizes)), expected, count)
