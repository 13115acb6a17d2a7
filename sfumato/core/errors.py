"""Every error that sfumato raises on purpose.

A message says what was wrong, where, and what to do, in one paragraph: the command line prints it as it stands.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class SfumatoError(Exception):
    """Base of all deliberate errors; anything else that escapes is a bug."""


class ConfigError(SfumatoError):
    """A recipe, a config file or a command-line value that cannot be read as what it should be."""


class RequestError(SfumatoError):
    """A request that cannot be drawn: an unknown sampler, a size the model cannot take, an unused field."""


class CheckpointError(SfumatoError):
    """A checkpoint that is truncated, unsafe, ambiguous, incomplete or of another family."""


class DataError(SfumatoError):
    """Training data that is missing, unreadable or inconsistent."""


class NumericError(SfumatoError):
    """A computation that produced NaN or infinity."""


class CapacityError(SfumatoError):
    """Something the machine cannot hold: memory, disk, or a limit that protects them."""


MOST = 40
"""Names that a message lists."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The end of an error message: ``; did you mean 'a' or 'b'?``, or the known names where none is near."""
    names = sorted(set(known))
    by_folded = {n.casefold(): n for n in names}
    found = [by_folded[m] for m in get_close_matches(name.casefold(), by_folded, n=count, cutoff=0.5)]
    if found:
        return "; did you mean " + " or ".join(repr(n) for n in found) + "?"
    return "; known are " + ", ".join(names[:MOST] + ["…"] * (len(names) > MOST)) + "." if names else ""
