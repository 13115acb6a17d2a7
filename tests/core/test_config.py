"""Configs: there and back through plain data and through command-line words; what is refused, and how."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.core.config import Field, convert, fields, from_dict, parse, read_json, read_toml, to_dict
from sfumato.core.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    rate: Annotated[float, "a number"] = 0.5
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config:
    name: Annotated[str, "what it is called"]
    size: int = 3
    wide: bool = False
    kind: Literal["a", "b", 3] = "a"
    pair: tuple[int, float] = (1, 2.0)
    maybe: float | None = None
    either: int | tuple[int, ...] = 1
    folder: Path = Path("x")
    inner: Inner = Inner()
    table: dict[str, int] = field(default_factory=dict)
    derived: int = field(init=False, default=7)


configs = st.builds(
    Config,
    name=st.text(), size=st.integers(), wide=st.booleans(), kind=st.sampled_from(["a", "b", 3]),
    pair=st.tuples(st.integers(), st.floats(allow_nan=False)), maybe=st.none() | st.floats(allow_nan=False),
    either=st.integers() | st.lists(st.integers(), max_size=4).map(tuple),
    folder=st.text("abc/.", min_size=1).map(Path),
    inner=st.builds(Inner, rate=st.floats(allow_nan=False), tags=st.lists(st.text()).map(tuple)),
    table=st.dictionaries(st.text(), st.integers()),
)  # fmt: skip


@given(configs)
def test_a_config_written_as_json_is_read_back_equal(config: Config) -> None:
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config


def test_fields_tell_what_a_help_text_needs() -> None:
    first = fields(Config)[0]
    assert (first.name, first.type, first.doc, first.required) == ("name", str, "what it is called", True)
    assert fields(Config)[-1] == Field("table", dict[str, int], {}, "")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "missing name"),
    ({"nmae": "x"}, "unknown key 'nmae'; did you mean 'name'"),
    ({"name": "x", "derived": 1}, "unknown key 'derived'"),
    ({"name": 3}, r"Config\.name: expected str, got 3"),
    ({"name": "x", "size": 2.5}, r"size: expected int, got 2\.5"),
    ({"name": "x", "size": True}, "size: expected int, got True"),
    ({"name": "x", "wide": 1}, "wide: expected bool, got 1"),
    ({"name": "x", "kind": "c"}, "kind: 'c' is not one of 'a', 'b', 3"),
    ({"name": "x", "pair": [1]}, "pair: expected 2 values, got 1"),
    ({"name": "x", "pair": "12"}, "pair: expected a list"),
    ({"name": "x", "maybe": "1"}, "maybe: expected float"),
    ({"name": "x", "inner": {"rat": 1}}, r"Config\.inner: unknown key 'rat'; did you mean 'rate'"),
    ({"name": "x", "inner": 3}, r"Config\.inner: expected a table"),
    ({"name": "x", "inner": {"tags": ["a", 3]}}, r"inner\.tags\[1\]: expected str, got 3"),
    ({"name": "x", "table": {"k": "v"}}, r"table\.k: expected int"),
    ({"name": "x", "table": 3}, "table: expected a table"),
]


@pytest.mark.parametrize(("data", "message"), REFUSED)
def test_refusals_say_where_and_what(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(Config, data)


def test_whole_numbers_are_floats_where_floats_are_wanted() -> None:
    found = from_dict(Inner, {"rate": 2})
    assert isinstance(found.rate, float)


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_survive_the_command_line(value: float) -> None:
    assert parse(repr(value), type(value), "--x") == value


@given(st.text())
def test_texts_are_taken_as_they_stand(text: str) -> None:
    assert parse(text, str, "--x") == text


@given(st.lists(st.integers() | st.integers(), min_size=1))
def test_lists_are_separated_by_commas_or_written_as_toml(values: list[int]) -> None:
    assert parse(",".join(map(str, values)), tuple[int, ...], "--x") == tuple(values)
    assert parse(str(values), tuple[int, ...], "--x") == tuple(values)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.widths=[96,192]", ("a.widths=[96,192]",)),
        ("a=[1,[2,3]], b={c=1,d=2},e", ("a=[1,[2,3]]", "b={c=1,d=2}", "e")),
        ('a="x, y",b', ('a="x, y"', "b")), ("a='x,]',b", ("a='x,]'", "b")), (r'a="x\",y",b', (r'a="x\",y"', "b")),
        ("it's, that's", ("it's", "that's")), ('a",b', ('a"', "b")), ("a],b[c,d]", ("a]", "b[c,d]")),
        (" , a,, ", ("a",)),
    ],
)  # fmt: skip
def test_commas_inside_brackets_and_quotes_do_not_separate(text: str, parts: tuple[str, ...]) -> None:
    assert parse(text, tuple[str, ...], "--x") == parts


PARSED: list[tuple[str, Any, Any]] = [
    ("yes", bool, True), ("OFF", bool, False), ("none", int | None, None), ("4", int | None, 4),
    ("3", Literal["a", 3], 3), ("1, 2.5", tuple[int, float], (1, 2.5)), ("a/b", Path, Path("a/b")),
    ("7", float, 7.0), ("4", int | tuple[int, ...], 4), ("4,5", int | tuple[int, ...], (4, 5)),
    ("1e-4", float, 1e-4), ("{a = 1}", dict[str, int], {"a": 1}), ("x", Annotated[str, "doc"], "x"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "hint", "value"), PARSED)
def test_words_are_read_as_their_types(text: str, hint: Any, value: Any) -> None:
    found = parse(text, hint, "--x")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "hint"),
    [("maybe", bool), ("x", int), ("1.5", int), ("1\ny = 2", int), ("1,x", tuple[int, ...]), ("1", tuple[int, int]),
     ("", int), ("[1", tuple[int, ...]), ("c", Literal["a", "b"])],
)  # fmt: skip
def test_words_of_another_type_are_refused_with_the_flag(text: str, hint: Any) -> None:
    with pytest.raises(ConfigError, match="--x"):
        parse(text, hint, "--x")


@given(st.text(), st.sampled_from([int, float, bool, tuple[int, ...], tuple[float, float], int | None, Literal["a"]]))
def test_any_word_is_read_or_refused(text: str, hint: Any) -> None:
    try:
        value = parse(text, hint, "--x")
    except ConfigError:
        return
    assert convert(value, hint, "--x") == value or value != value  # nan is a float


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("a = = 1")
    for read in (read_toml, read_json):
        with pytest.raises(ConfigError, match=f"{bad} is not"):
            read(bad)
        with pytest.raises(ConfigError, match="no file"):
            read(tmp_path / "absent")
    bad.write_bytes(b"\xff\xfe")
    for read in (read_toml, read_json):
        with pytest.raises(ConfigError, match="is not"):
            read(bad)
