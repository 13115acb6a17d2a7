"""Whether texts and pictures find each other in CLIP's space, and how near they are."""

from math import comb

import torch
import torch.nn.functional as F
from torch import Tensor


def retrieval(texts: Tensor, pictures: Tensor, same: Tensor) -> dict[str, float]:
    """Each text looks for its picture among all, and each picture for its text.

    Args:
        texts, pictures: [N, P]; row i of both is one pair. Need not be of length 1.
        same: [N] integers; pairs of one number have the same caption, and any of them is right.

    Returns:
        ``text_to_image_top1`` and so on, shares from 0 to 1; the same by chance, ``chance_top1`` and ``chance_top5``;
        ``clip_score``, the mean of 100 max(cosine, 0) over the pairs (Hessel et al., 2021, eq. 1, without its factor).
    """
    texts, pictures = F.normalize(texts.double(), dim=-1), F.normalize(pictures.double(), dim=-1)
    cosines = texts @ pictures.T
    found: dict[str, float] = {}
    for name, table in (("text_to_image", cosines), ("image_to_text", cosines.T)):
        found |= {f"{name}_top{k}": value for k, value in hits(table, same, same).items()}
    found |= {f"chance_top{k}": value for k, value in chance(same, same).items()}
    return found | {"clip_score": 100.0 * cosines.diagonal().clamp(min=0).mean().item()}


def hits(table: Tensor, asked: Tensor, there: Tensor) -> dict[int, float]:
    """How often what is asked for is the first, or among the first five.

    Args:
        table: [N, M], higher is nearer.
        asked, there: [N], [M] integers; those of one number belong together.
    """
    order = table.topk(min(5, table.shape[1]), dim=1).indices
    right = there[order] == asked[:, None]
    return {k: right[:, :k].any(1).double().mean().item() for k in (1, 5)}


def chance(asked: Tensor, there: Tensor) -> dict[int, float]:
    """What ``hits`` is on average for a table of random numbers."""
    of_each = (there[None] == asked[:, None]).sum(1).tolist()  # right ones of each that is asked for
    total = len(there)
    shares = {
        k: [1.0 - comb(total - right, min(k, total)) / comb(total, min(k, total)) for right in of_each] for k in (1, 5)
    }
    return {k: float(torch.tensor(values, dtype=torch.float64).mean()) for k, values in shares.items()}
