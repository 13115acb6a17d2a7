"""Fewer rows where several would be equal: guidance asks for one picture under several conditionings."""

import torch
from torch import Tensor


def expand_rows(x: Tensor, rows: int) -> Tensor:
    """Row r of the result is row ``r mod len(x)`` of x: all pictures, then all of them again.

    Args:
        x: [B, ...]; the memory layout is kept.
        rows: B, or a multiple of it.

    Raises:
        ValueError: ``rows`` is not a multiple of B.
    """
    if len(x) == rows:
        return x
    times, rest = divmod(rows, len(x))
    if rest or not times:
        raise ValueError(f"{rows} rows of conditions for {len(x)} pictures: must be a multiple.")
    return torch.cat([x] * times)
