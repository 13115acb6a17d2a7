"""What every benchmark can be told on the command line."""

import argparse
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class Chosen(argparse.Namespace):
    """The options as given."""

    rounds: int
    turns: int
    subjects: list[str]
    without: list[str]
    trial: bool

    def of(self, subjects: Mapping[str, T]) -> dict[str, T]:
        """Those that were chosen, in the order they have; the first is the reference and always stays.

        Raises:
            SystemExit: there is none of a name.
        """
        if unknown := {*self.subjects, *self.without} - set(subjects):
            raise SystemExit(f"There is no subject {', '.join(sorted(unknown))}; known are {', '.join(subjects)}.")
        first, *others = subjects
        wanted = [name for name in others if name not in self.without and name in (self.subjects or others)]
        return {name: subjects[name] for name in (first, *wanted)}


class Options(argparse.ArgumentParser):
    """A parser of ``Chosen``."""

    def parse_args(self, arguments: Any = None, namespace: Any = None) -> Any:
        found = super().parse_args(arguments, namespace or Chosen())
        if found.trial:
            found.rounds, found.turns = min(found.rounds, 1), 1
        return found


def options(about: str | None, rounds: int, turns: int) -> Options:
    """The options that all have, with this benchmark's defaults."""
    flags = Options(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--subjects", nargs="+", default=[], metavar="NAME", help="beside the first, only these")
    flags.add_argument("--without", nargs="+", default=[], metavar="NAME", help="all but these")
    flags.add_argument("--rounds", type=int, default=rounds, help="starts of each subject; 0: all stay alive together")
    flags.add_argument("--turns", type=int, default=turns, help="that count, of each subject, in each round")
    flags.add_argument("--trial", action="store_true", help="one round of one turn, and nothing is written")
    return flags
