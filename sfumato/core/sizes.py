"""Amounts of memory as people write them."""

import re

from sfumato.core.errors import ConfigError

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
         "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip


def parse_bytes(text: str | int) -> int:
    """``6GB``, ``1.5 GiB``, ``800m`` or a number of bytes.

    Raises:
        ConfigError: it is none of these, or not above 0.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)\s*", str(text).lower())
    unit = found[2] if found else "?"
    unit = unit if unit in UNITS else f"{unit}b"
    if found is None or unit not in UNITS or float(found[1]) <= 0:
        raise ConfigError(f"{text!r} is no amount of memory; write it like 6GB, 1.5GiB or 800MB.")
    return int(float(found[1]) * UNITS[unit])


def show_bytes(count: float) -> str:
    """``6.02 GB`` or ``312 MB``."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
