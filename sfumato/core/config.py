"""Dataclass <-> dict, TOML, JSON and command line; strict, and typed all the way down.

A config is a dataclass whose fields are annotated with their one-line documentation::

    @dataclass(frozen=True)
    class UNetConfig:
        in_channels: Annotated[int, "channels of the noisy input"] = 4

Unknown keys are refused with the nearest known name; a value of the wrong type names the key and what was expected.
"""

import dataclasses
import json
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sfumato.core.errors import ConfigError, nearest

T = TypeVar("T")
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a config, as help texts and parsers need it."""

    name: str
    type: Any
    default: Any
    doc: str

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING


def fields(cls: type) -> list[Field]:
    """The init fields of a config dataclass, in order, with their types, defaults and documentation."""
    hints = get_type_hints(cls, include_extras=True)
    found = []
    for f in dataclasses.fields(cls):
        if not f.init:
            continue
        hint, doc = hints[f.name], ""
        if get_origin(hint) is Annotated:
            hint, *notes = get_args(hint)
            doc = next((n for n in notes if isinstance(n, str)), "")
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        found.append(Field(f.name, hint, default, doc))
    return found


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build ``cls`` from plain data.

    Args:
        where: how to name the source in messages, e.g. ``"recipe.toml: [diffusion]"``.

    Raises:
        ConfigError: unknown or missing keys, values of the wrong type, or what ``__post_init__`` refuses.
    """
    where = where or cls.__name__
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected a table of settings, got {data!r}.")
    known = {f.name: f for f in fields(cls)}
    for key in data:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, known)}")
    missing = [n for n, f in known.items() if f.required and n not in data]
    if missing:
        raise ConfigError(f"{where}: missing {', '.join(missing)}.")
    return cls(**{k: convert(v, known[k].type, f"{where}.{k}") for k, v in data.items()})


def convert(value: Any, hint: Any, where: str) -> Any:
    """Check plain data (as JSON or TOML give it) against a type and make it that type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return convert(value, arguments[0], where)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        problems = []
        for option in (a for a in arguments if a is not type(None)):
            try:
                return convert(value, option, where)
            except ConfigError as problem:
                problems.append(problem)
        raise problems[0]
    if origin is Literal:
        if value not in arguments:
            offer = nearest(str(value), map(str, arguments))
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, arguments))}{offer}")
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_dict(hint, value, where)
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(f"{where}: expected a list, got {value!r}.")
        if len(arguments) == 2 and arguments[1] is ...:
            return tuple(convert(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
        if len(value) != len(arguments):
            raise ConfigError(f"{where}: expected {len(arguments)} values, got {len(value)}.")
        return tuple(convert(v, a, f"{where}[{i}]") for i, (v, a) in enumerate(zip(value, arguments, strict=True)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a table, got {value!r}.")
        return {str(k): convert(v, arguments[1], f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if (isinstance(value, bool) and hint is not bool) or not isinstance(value, hint):
        raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r}.")
    return value


def to_dict(config: Any) -> Any:
    """Plain data (dicts, lists, strings, numbers) of a config; ``from_dict`` reads it back to an equal object."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}
    if isinstance(config, Mapping):
        return {str(k): to_dict(v) for k, v in config.items()}
    if isinstance(config, tuple | list):
        return [to_dict(v) for v in config]
    if isinstance(config, Path):
        return str(config)
    return config


def table(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table inside data that a stranger may have written; empty where it is something else, or is not there."""
    found = data.get(name)
    return found if isinstance(found, Mapping) else {}


def parse(text: str, hint: Any, where: str) -> Any:
    """Read one command-line value as ``hint``: JSON or TOML notation where the type is not a string."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return parse(text, arguments[0], where)
    if origin in (Union, types.UnionType):
        if text.casefold() in ("none", "null", "") and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        for option in options:
            try:
                return parse(text, option, where)
            except ConfigError:
                if option is options[-1]:
                    raise
    if hint is str or hint is Path:
        return convert(text, hint, where)
    if hint is bool:
        word = text.casefold()
        if word not in TRUE and word not in FALSE:
            raise ConfigError(f"{where}: expected true or false, got {text!r}.")
        return word in TRUE
    if origin is Literal:
        return convert(next((a for a in arguments if str(a) == text), text), hint, where)
    if origin is tuple and not text.lstrip().startswith("["):
        parts = split(text)
        kinds = [arguments[0]] * len(parts) if arguments[-1] is ... else arguments
        if len(parts) != len(kinds):
            raise ConfigError(f"{where}: expected {len(kinds)} values, got {len(parts)}.")
        return tuple(parse(part, kind, where) for part, kind in zip(parts, kinds, strict=True))
    try:
        (value,) = [hint(text)] if hint in (int, float) else tomllib.loads(f"value = {text}").values()
    except ValueError:  # TOML errors are ValueErrors, and so is a second line that would set something else
        raise ConfigError(f"{where}: cannot read {text!r} as {getattr(hint, '__name__', hint)}.") from None
    return convert(value, hint, where)


# A quote opens only where a value may begin: "it's" has an apostrophe.
_PIECES = re.compile(r"""(?<![^\s,=\[{])(?:"(?:\\.|[^"\\])*"|'[^']*')|[\[{]|[\]}]|,|[^\[{\]},"']+|.""", re.DOTALL)


def split(text: str) -> list[str]:
    """The parts between commas, but for commas inside brackets, braces or quotes: ``a=[1,2], b`` has two parts."""
    parts, depth = [""], 0
    for piece in _PIECES.findall(text):
        depth = max(0, depth + (piece in ("[", "{")) - (piece in ("]", "}")))
        if piece == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    return [part.strip() for part in parts if part.strip()]


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; errors name the file and the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path} is not TOML: {problem}.") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file; errors name the file and the line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no file {path}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path} is not JSON: {problem}.") from None
