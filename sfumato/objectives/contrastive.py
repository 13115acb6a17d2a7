"""Which text belongs to which picture: CLIP's symmetric cross-entropy (Radford et al., 2021, figure 3)."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sfumato.objectives.loss import Loss


def contrastive(texts: Tensor, pictures: Tensor, scale: Tensor, same: Tensor | None = None) -> Loss:
    """InfoNCE over all pairs of a batch; with several processes, over the batches of all of them.

    Args:
        texts, pictures: [B, P] of length 1; row i of both belong together.
        scale: scalar, the inverse temperature (the exponential of ``logit_scale``).
        same: [B] integers; rows of equal number say the same thing, and are right answers for one another.

    Returns:
        ``parts`` has ``accuracy``: the share of pictures whose own text (or one that says the same) is the likeliest.
    """
    numbers = torch.arange(len(texts), device=texts.device) if same is None else same
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        if same is None:
            numbers = numbers + dist.get_rank() * len(texts)
        texts, pictures, numbers = _of_all(texts), _of_all(pictures), _numbers_of_all(numbers)
    logits = scale * pictures.float() @ texts.float().T  # [B, B], pictures by texts
    right = numbers[:, None] == numbers  # [B, B], symmetric
    target = right.float() / right.sum(1, keepdim=True)
    of_pictures = F.cross_entropy(logits, target, reduction="none")
    of_texts = F.cross_entropy(logits.T, target, reduction="none")
    each = 0.5 * (of_pictures + of_texts)
    best = right.gather(1, logits.argmax(1, keepdim=True)).float().mean()
    return Loss(each.mean(), {"accuracy": best, "scale": scale.detach()}, each.detach())


def _of_all(rows: Tensor) -> Tensor:
    """[B, P] of each process -> [W B, P], through which gradients flow back to the process that they came from."""
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows))  # type: ignore[no-untyped-call]


def _numbers_of_all(numbers: Tensor) -> Tensor:
    parts = [torch.empty_like(numbers) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, numbers)
    return torch.cat(parts)
