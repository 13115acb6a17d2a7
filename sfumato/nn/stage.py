"""One level of a U-Net, and how the time reaches its residual blocks."""

from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.embeddings import Times
from sfumato.nn.layers import Linear
from sfumato.nn.resnet import ResnetBlock
from sfumato.nn.rows import expand_rows


class Stage(nn.Module):
    """Residual blocks, an attention after each or after none, and what changes the size at the end.

    The network that holds it runs it; what is here is the names and the order: modules are registered as they run,
    which is what ``timed`` relies on.
    """

    def __init__(
        self, resnets: Iterable[nn.Module], attentions: Iterable[nn.Module] = (),
        downsamplers: Iterable[nn.Module] = (), upsamplers: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsamplers = nn.ModuleList(downsamplers)
        self.upsamplers = nn.ModuleList(upsamplers)

    def layers(self) -> Iterator[tuple[nn.Module, nn.Module | None]]:
        """Each residual block with the attention that follows it, if one does."""
        return zip(self.resnets, chain(self.attentions, repeat(None)), strict=False)


def stages(blocks: nn.ModuleList) -> Iterator[Stage]:
    """The levels that a list of modules holds."""
    return iter(cast("Iterable[Stage]", blocks))


def call(module: nn.Module, *inputs: Any) -> Tensor:
    """``module(*inputs)``: how a network runs its parts where its caller does not say otherwise.

    ``partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)`` in its place keeps only their inputs and runs
    them again in the backward pass.
    """
    output: Tensor = module(*inputs)
    return output


def timed(network: nn.Module) -> list[ResnetBlock]:
    """The residual blocks that the time reaches, in the order in which they run."""
    return [m for m in network.modules() if isinstance(m, ResnetBlock) and m.time_emb_proj is not None]


def project_times(blocks: Iterable[ResnetBlock], embedding: Tensor) -> Times:
    """[..., rows, D] -> what these blocks make of it, side by side."""
    active = F.silu(embedding)
    return Times(torch.cat([cast(Linear, block.time_emb_proj)(active) for block in blocks], dim=-1))


def time_widths(blocks: Iterable[ResnetBlock]) -> list[int]:
    """How many columns of ``Times`` each of them has."""
    return [cast(Linear, block.time_emb_proj).out_features for block in blocks]


def deal_times(widths: list[int], times: Times, rows: int) -> tuple[Tensor, ...]:
    """For each residual block, as they run, its own columns.

    Args:
        widths: of a network's residual blocks; see ``time_widths``.
        rows: of the conditions.

    Returns:
        [1 or ``rows``, C']; the first B rows are those of B pictures whose other rows are still shared.
    """
    shifts = times.shifts if len(times) == 1 else expand_rows(times.shifts, rows)
    return torch.split(shifts, widths, dim=-1)
