"""Tables of named things: literal dicts whose values are found only when they are asked for.

A table maps a canonical name to ``"package.module:attribute"``, so that listing samplers or printing ``--help``
imports neither torch nor the module that the name stands for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any

from sfumato.core.errors import RequestError, SfumatoError, nearest


@lru_cache(maxsize=1024)  # all names of a table are folded each time one is looked up
def fold(name: str) -> str:
    """The form in which names are compared: case, spaces, dashes and underscores do not matter."""
    return "".join(c for c in name.casefold() if c not in " -_")


@dataclass(frozen=True)
class Registry:
    """A literal table of things of one kind.

    Attributes:
        kind: what an entry is called in messages, e.g. ``"sampler"``.
        targets: canonical name to ``"module:attribute"``.
        aliases: any other accepted spelling to its canonical name.
        error: the exception class raised for an unknown name.
    """

    kind: str
    targets: Mapping[str, str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    error: type[SfumatoError] = RequestError

    def canonical(self, name: str) -> str:
        """The canonical name that ``name`` stands for; an unknown one is an error that offers the nearest."""
        spellings = {fold(n): n for n in self.targets} | {fold(a): n for a, n in self.aliases.items()}
        try:
            return spellings[fold(name)]
        except KeyError:
            known = [*self.targets, *self.aliases]
            raise self.error(f"There is no {self.kind} called {name!r}{nearest(name, known)}") from None

    def get(self, name: str) -> Any:
        """The thing itself, imported now."""
        module, attribute = self.targets[self.canonical(name)].split(":")
        return getattr(import_module(module), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)
