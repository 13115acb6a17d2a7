"""Key maps: rows of (theirs, ours, operation), and the one engine that runs them both ways.

A row may hold placeholders, ``blocks.{n}.attn.{p}``, that ``expand`` replaces by every value given for them. An
operation turns a group of their tensors into a group of ours and knows its inverse. Nothing is read when a map is
applied: shapes come from running the operation on the meta device, content when a mapped tensor is read.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.checkpoints.lazy import Lazy, Tensors, listing
from sfumato.core.errors import CheckpointError

Names = str | tuple[str, ...]
Group = list[Tensor]


class Row(NamedTuple):
    """One line of a key map.

    Attributes:
        theirs: the other format's name, or names where several tensors make one of ours.
        ours: the name here, or names.
        operation: a key of ``OPERATIONS``.
    """

    theirs: Names
    ours: Names
    operation: str = "same"


@dataclass(frozen=True)
class Operation:
    """What happens to the tensors of a row: their group -> our group, and back.

    Each is told how many tensors are to come out.
    """

    to_ours: Callable[[Group, int], Group]
    to_theirs: Callable[[Group, int], Group]


def _each(change: Callable[[Tensor], Tensor]) -> Callable[[Group, int], Group]:
    return lambda group, count: [change(t) for t in group]


def _squeeze(t: Tensor) -> Tensor:
    return t if t.dim() == 2 else t.squeeze(-1).squeeze(-1)


def _join(group: Group, count: int) -> Group:
    return [torch.cat(group)]


def _one_of(group: Group, count: int) -> Group:
    if not group[0].is_meta and not all(torch.equal(group[0], t) for t in group[1:]):
        raise CheckpointError("The other format has one tensor where these are several, and they differ.")
    return group[:1]


def _swap_halves(t: Tensor) -> Tensor:
    return torch.cat(t.chunk(2)[::-1])


OPERATIONS: Mapping[str, Operation] = {
    "same": Operation(_each(lambda t: t), _each(lambda t: t)),
    # a 1x1 convolution [O, I, 1, 1] is a matrix [O, I]
    "squeeze": Operation(_each(_squeeze), _each(lambda t: t[:, :, None, None])),
    # a matrix that the other side multiplies from the other side: [A, B] <-> [B, A]
    "transpose": Operation(_each(lambda t: t.t().contiguous()), _each(lambda t: t.t().contiguous())),
    # queries, keys and values that the other side stacks along the first axis
    "split 3": Operation(lambda group, count: list(group[0].chunk(3)), _join),
    # one tensor that several of our modules have each its copy of
    "copies": Operation(lambda group, count: group * count, _one_of),
    # scale and shift (or gate and value) that the other side stacks in the other order
    "swap halves": Operation(_each(_swap_halves), _each(_swap_halves)),
}
"""Name -> operation. Each is the identity when run there and back; a test runs them all."""


def names(field: Names) -> tuple[str, ...]:
    """The names of a row's side."""
    return (field,) if isinstance(field, str) else field


def expand(rows: Iterable[Row], **choices: Iterable[object]) -> list[Row]:
    """Replace placeholders by every combination of values.

    ``expand([Row("a.{n}.{p}", "b.{n}.{p}")], n=range(2), p=("weight", "bias"))`` has four rows. A row is repeated over
    the placeholders that it holds and no others.

    Raises:
        KeyError: a placeholder without values (a mistake in a table, not in a file).
    """
    values = {key: [str(v) for v in found] for key, found in choices.items()}
    result = []
    for row in rows:
        held = sorted(set(re.findall(r"\{(\w+)\}", " ".join(names(row.theirs) + names(row.ours)))))
        for combination in itertools.product(*(values[key] for key in held)):
            result.append(_rename(row, partial(_fill, dict(zip(held, combination, strict=True)))))
    return result


def _fill(chosen: Mapping[str, str], name: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: chosen[found[1]], name)


def _rename(row: Row, theirs: Callable[[str], str], ours: Callable[[str], str] | None = None) -> Row:
    def side(field: Names, change: Callable[[str], str]) -> Names:
        return change(field) if isinstance(field, str) else tuple(change(n) for n in field)

    return Row(side(row.theirs, theirs), side(row.ours, ours or theirs), row.operation)


def prefixed(rows: Iterable[Row], theirs: str, ours: str) -> list[Row]:
    """The rows with prefixes put before the names of each side."""
    return [_rename(row, lambda n: theirs + n, lambda n: ours + n) for row in rows]


@dataclass(frozen=True)
class KeyMap:
    """Expanded rows, each name on one row only.

    Attributes:
        rows: the table, without placeholders.
        ignorable: regular expressions of their names that hold nothing a module needs (bookkeeping buffers). They are
            the only names that may be left behind, and ``to_ours`` tells which were.
    """

    rows: Sequence[Row]
    ignorable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for side in ("theirs", "ours"):
            seen: set[str] = set()
            for row in self.rows:
                for name in names(getattr(row, side)):
                    if name in seen or "{" in name:
                        raise ValueError(f"{name!r} is on two rows, or a placeholder was left in it.")
                    seen.add(name)

    def only(self, ours: Iterable[str]) -> "KeyMap":
        """The rows whose names on our side are among these (a module has no shortcut where channels stay equal)."""
        known = set(ours)
        return KeyMap([r for r in self.rows if known.issuperset(names(r.ours))], self.ignorable)

    def ignores(self, name: str) -> bool:
        """Whether a name of theirs is one that may be left behind."""
        return any(re.fullmatch(pattern, name) for pattern in self.ignorable)

    def to_ours(self, tensors: Tensors, where: str) -> tuple[dict[str, Lazy], list[str]]:
        """Their tensors under our names, and the names that were left behind as ignorable.

        Raises:
            CheckpointError: names that no row has, names of rows that are missing, or shapes that an operation refuses.
        """
        expected = {name for row in self.rows for name in names(row.theirs)}
        ignored = [name for name in tensors if name not in expected and self.ignores(name)]
        unknown = tensors.keys() - expected - set(ignored)
        _complain(where, missing=expected - tensors.keys(), unknown=unknown)
        result: dict[str, Lazy] = {}
        for row in self.rows:
            operation = OPERATIONS[row.operation].to_ours
            result |= _mapped(names(row.theirs), names(row.ours), operation, tensors, where)
        return result, ignored

    def to_theirs(self, tensors: Tensors, where: str) -> dict[str, Lazy]:
        """Our tensors under their names.

        Raises:
            CheckpointError: as ``to_ours``.
        """
        expected = {name for row in self.rows for name in names(row.ours)}
        _complain(where, missing=expected - tensors.keys(), unknown=tensors.keys() - expected)
        result: dict[str, Lazy] = {}
        for row in self.rows:
            operation = OPERATIONS[row.operation].to_theirs
            result |= _mapped(names(row.ours), names(row.theirs), operation, tensors, where)
        return result


def _complain(where: str, missing: Iterable[str], unknown: Iterable[str]) -> None:
    problems = [f"{label} {listing(found)}" for label, found in (("missing", missing), ("unknown", unknown)) if found]
    if problems:
        raise CheckpointError(f"{where}: keys do not fit: {'; '.join(problems)}.")


def _mapped(
    sources: tuple[str, ...],
    targets: tuple[str, ...],
    operation: Callable[[Group, int], Group],
    tensors: Tensors,
    where: str,
) -> dict[str, Lazy]:
    group = [tensors[name] for name in sources]
    try:
        shapes = [tuple(t.shape) for t in operation([t.meta() for t in group], len(targets))]
    except (RuntimeError, IndexError) as problem:
        found = ", ".join(f"{n} {list(t.shape)}" for n, t in zip(sources, group, strict=True))
        raise CheckpointError(f"{where}: {found} has a shape that cannot be converted ({problem}).") from None
    if len(shapes) != len(targets):
        raise CheckpointError(f"{where}: {', '.join(sources)} gives {len(shapes)} tensors; {len(targets)} are wanted.")

    def read(index: int) -> Tensor:
        try:
            return operation([t.read() for t in group], len(targets))[index]
        except CheckpointError as problem:
            raise CheckpointError(f"{where}: {', '.join(sources[:3])}, …: {problem}") from None

    def release() -> None:
        for t in group:
            t.release()

    return {
        target: Lazy(shape, group[0].dtype, partial(read, i), release)
        for i, (target, shape) in enumerate(zip(targets, shapes, strict=True))
    }
