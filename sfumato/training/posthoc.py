"""Averages of any width after training is over, out of two that were kept (Karras et al., EDM2, 2024, section 3).

The power-function average of exponent g over steps 0 … t weighs step s by (g + 1) s^g / t^(g + 1). Snapshots of such
averages, taken at several times, span profiles close to those of other exponents.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sfumato.core.errors import CheckpointError
from sfumato.training.state import Checkpoints


class Profile(NamedTuple):
    """A power-function average: taken at optimiser step ``time`` with this exponent."""

    time: float
    exponent: float


def exponent(width: float) -> float:
    """The exponent whose profile has this standard deviation, as a share of its length (ibid., algorithm 2)."""
    inverse = width**-2.0
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def coefficients(snapshots: Sequence[Profile], wanted: Profile) -> NDArray[np.float64]:
    """How much of each snapshot comes nearest to the wanted profile, in least squares (ibid., algorithm 3)."""
    among = np.array([[_overlap(a, b) for b in snapshots] for a in snapshots])
    onto = np.array([_overlap(a, wanted) for a in snapshots])
    found: NDArray[np.float64] = np.linalg.lstsq(among, onto, rcond=None)[0]
    return found


def combine(snapshots: Sequence[Mapping[str, Tensor]], shares: NDArray[np.float64]) -> dict[str, Tensor]:
    """The weighted sum of the snapshots' tensors; what is no floating-point number comes from the last."""
    result = {}
    for name, last in snapshots[-1].items():
        if not last.is_floating_point():
            result[name] = last
            continue
        total = last.double() * 0.0
        for snapshot, share in zip(snapshots, shares, strict=True):
            total += float(share) * snapshot[name].double()
        result[name] = total.to(last.dtype)
    return result


def of_run(checkpoints: Checkpoints, widths: Sequence[float], wanted: float) -> dict[str, Tensor]:
    """The average of another width at the end of a run, out of the averages in the checkpoints that were kept.

    Args:
        widths: those of the run's ``EmaConfig``.
        wanted: between the least and the greatest of them, or not far outside. The more checkpoints were kept
            (``keep``), the nearer the result.

    Raises:
        CheckpointError: there is no whole checkpoint, or none with averages of these widths.
    """
    profiles, snapshots = [], []
    for step in checkpoints.steps():
        if checkpoints.damage(step):
            continue
        averages = checkpoints.load(step)[0].groups.get("ema", {})
        for i, width in enumerate(widths):
            found = {n.removeprefix(f"{i}."): t for n, t in averages.items() if n.startswith(f"{i}.")}
            if found:
                profiles.append(Profile(step, exponent(width)))
                snapshots.append(found)
    if not snapshots:
        raise CheckpointError(f"{checkpoints.folder} has no whole checkpoint with averages of the widths {widths}.")
    last = max(profile.time for profile in profiles)
    return combine(snapshots, coefficients(profiles, Profile(last, exponent(wanted))))


def _overlap(a: Profile, b: Profile) -> float:
    """The integral of the product of two profiles."""
    earlier, later = (a, b) if a.time < b.time else (b, a)
    ratio = math.pow(earlier.time / later.time, later.exponent)
    return (a.exponent + 1) * (b.exponent + 1) * ratio / ((a.exponent + b.exponent + 1) * later.time)
