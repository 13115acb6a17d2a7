"""A config dataclass as a command line: its fields become flags, its documentation the help text."""

import argparse
import dataclasses
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

from sfumato.core.config import Field, fields, from_dict, parse
from sfumato.core.errors import ConfigError, nearest

T = TypeVar("T")


class _Parser(argparse.ArgumentParser):
    """argparse, except that a mistake is an exception like any other."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}. `{self.prog} --help` lists what there is.")


class _Once(argparse.Action):
    """Stores (flag, text); a flag given twice is an error unless its field is a list, which it then adds to."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        if isinstance(values, list):  # nargs=0: a flag that is its own value
            values = "false" if (option or "").startswith("--no-") else "true"
        given = getattr(namespace, self.dest, [])
        flag = option or self.metavar
        if given and not self.const:
            raise ConfigError(f"{parser.prog}: {flag} is given twice.")
        setattr(namespace, self.dest, [*given, (flag, values)])


def leaves(cls: type) -> Iterator[tuple[str | None, Field]]:
    """The fields of a config with those of the configs inside it: (name of the inner config or None, field)."""
    for field in fields(cls):
        if dataclasses.is_dataclass(field.type):
            assert isinstance(field.type, type)
            yield from ((field.name, inner) for inner in fields(field.type))
        else:
            yield None, field


def build(
    cls: type, prog: str, positional: Sequence[str] = (), spellings: Mapping[str, Sequence[str]] | None = None
) -> argparse.ArgumentParser:
    """The parser of a config: fields without a default, and those named ``positional``, go without a flag.

    Args:
        spellings: field name to the flags it answers to beside its own, ``--field-name``.
    """
    parser = _Parser(prog, description=cls.__doc__, allow_abbrev=False, argument_default=argparse.SUPPRESS,
                     formatter_class=_formatter, add_help=False)  # fmt: skip
    names = [f.name for _, f in leaves(cls) if f.required or f.name in positional]
    parser.usage = " ".join([prog, *(n.upper() for n in names), "[flags]"])
    groups: dict[str | None, Any] = {}
    for group, field in leaves(cls):
        where = groups.setdefault(group, parser.add_argument_group(group or "options"))
        text = _help(field)
        if field.required or field.name in positional:
            nargs = None if field.required else "?"
            parser.add_argument(field.name, metavar=field.name.upper(), action=_Once, nargs=nargs, help=text)
        if field.required:
            continue
        flags = [f"--{field.name.replace('_', '-')}", *(spellings or {}).get(field.name, ())]
        if field.type is bool and field.default is True:
            flags = [flag.replace("--", "--no-", 1) for flag in flags if flag.startswith("--")]
        if field.type is bool:
            where.add_argument(*flags, dest=field.name, action=_Once, nargs=0, help=text)
        else:
            listed = get_origin(_plain(field.type)) is tuple
            name = _metavar(field.type)
            where.add_argument(*flags, dest=field.name, action=_Once, const=listed, metavar=name, help=text)
    parser.add_argument_group("help").add_argument("-h", "--help", action="help", help="show this and stop")
    return parser


def read(parser: argparse.ArgumentParser, cls: type[T], words: Sequence[str]) -> T:
    """The config that a command line stands for.

    Raises:
        ConfigError: unknown flags (the nearest are offered), flags given twice, values that cannot be read.
    """
    known = [flag for action in parser._actions for flag in action.option_strings]
    found, rest = parser.parse_known_intermixed_args([_dashed(word, known) for word in words])
    if rest:
        flag = next((w.split("=")[0] for w in rest if w.startswith("-")), None)
        if flag:
            raise ConfigError(f"{parser.prog}: there is no flag {flag}{nearest(flag, known)}")
        raise ConfigError(f"{parser.prog}: unexpected {rest[0]!r}; a text with spaces goes in quotes.")
    data: dict[str, Any] = {f.name: {} for f in fields(cls) if dataclasses.is_dataclass(f.type)}
    for group, field in leaves(cls):
        given = getattr(found, field.name, [])
        if not given:
            continue
        values = [parse(text, field.type, flag) for flag, text in given]
        whole = tuple(v for part in values for v in part) if len(values) > 1 else values[0]
        (data[group] if group else data)[field.name] = whole
    return from_dict(cls, data, parser.prog)


def _dashed(word: str, known: Sequence[str]) -> str:
    """``--cfg_scale`` as ``--cfg-scale``: other tools of the field write their flags so."""
    flag, equals, value = word.partition("=")
    dashed = flag.replace("_", "-")
    return dashed + equals + value if flag.startswith("--") and dashed in known else word


def _plain(hint: Any) -> Any:
    """The type without its ``| None``."""
    if get_origin(hint) in (Union, types.UnionType):
        return next(a for a in get_args(hint) if a is not type(None))
    return hint


def _metavar(hint: Any) -> str:
    hint = _plain(hint)
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        inner = _metavar(get_args(hint)[0])
        return f"{inner},{inner},…" if ... in get_args(hint) else ",".join(map(_metavar, get_args(hint)))
    return {int: "N", float: "X", Path: "PATH"}.get(hint, "TEXT")


def _help(field: Field) -> str:
    shown = field.default not in (None, "", (), False, True, dataclasses.MISSING)
    return field.doc.replace("%", "%%") + (f" (default: {field.default})" if shown else "")


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=32)
