"""By which names and shapes a checkpoint is known. The table belongs to the families; here is how it is read."""

from collections.abc import Iterable, Mapping
from types import EllipsisType
from typing import NamedTuple

from sfumato.checkpoints.kinds import ADAPTERS, describe
from sfumato.checkpoints.lazy import Tensors
from sfumato.core.errors import CheckpointError

Expectation = tuple[int | None, ...] | EllipsisType | None
"""A shape with None for any extent, ``...`` for any shape, None for: this name must not be there."""


class Fingerprint(NamedTuple):
    """One row of the table: a variant of a family, and all that a checkpoint of it shows."""

    family: str
    variant: str
    shows: Mapping[str, Expectation]

    def matches(self, tensors: Tensors) -> bool:
        """Whether all that is expected is so."""
        return all(_holds(tensors, name, expected) for name, expected in self.shows.items())

    def __str__(self) -> str:
        return f"{self.family} ({self.variant})" if self.variant else self.family


def _holds(tensors: Tensors, name: str, expected: Expectation) -> bool:
    if expected is None or name not in tensors:
        return expected is None and name not in tensors
    if isinstance(expected, EllipsisType):
        return True
    shape = tensors[name].shape
    return len(shape) == len(expected) and all(e is None or e == s for e, s in zip(expected, shape, strict=True))


def candidates(tensors: Tensors, table: Iterable[Fingerprint]) -> list[Fingerprint]:
    """All rows that hold."""
    return [row for row in table if row.matches(tensors)]


def identify(
    tensors: Tensors, table: Iterable[Fingerprint], where: str, family: str | None = None, variant: str | None = None
) -> Fingerprint:
    """The one row that holds.

    Args:
        family, variant: what the user said, which decides among several; it never overrules the shapes.

    Raises:
        CheckpointError: no row holds (the message says what the file seems to be), or several do (it names them and
            the setting that decides).
    """
    table = list(table)
    found = candidates(tensors, table)
    chosen = [r for r in found if family in (None, r.family) and variant in (None, r.variant)]
    if len(chosen) == 1:
        return chosen[0]
    if not found:
        seems = describe(tensors)
        if seems in ADAPTERS:
            how = "open a model, and give this with --lora" if "LoRA" in seems else "load it beside a model"
            raise CheckpointError(f"{where} is {seems}, which changes a model and is none: {how}.")
        said = f"seems to be {seems}" if seems else f"has names like {', '.join(list(tensors)[:3])}"
        known = ", ".join(dict.fromkeys(r.family for r in table))
        raise CheckpointError(f"{where} is no model of a known family ({known}); it {said}.")
    if not chosen:
        asked = " ".join(filter(None, (family, variant)))
        raise CheckpointError(f"{where} is not {asked}: its names and shapes are those of {_either(found)}.")
    setting = "family" if len({r.family for r in chosen}) > 1 else "variant"
    options = dict.fromkeys(getattr(r, setting) for r in chosen)
    raise CheckpointError(
        f"{where} may be {_either(chosen)}: their names and shapes are the same. Say which with {setting} = "
        f"{' or '.join(map(repr, options))} (--{setting} on the command line)."
    )


def _either(rows: Iterable[Fingerprint]) -> str:
    return " or ".join(map(str, rows))
