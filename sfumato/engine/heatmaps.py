"""Where a picture looked at its prompt: Tang et al., "What the DAAM", 2022, section 3.2.

A tap for ``nn.attention.tapped``. It adds up the weights of all cross-attentions of all steps, averaged over heads and
brought to the size of the latents; what it keeps is one map a token.
"""

import torch.nn.functional as F
from torch import Tensor

from sfumato.models.controlnet import PLACE

CROSS = (".cross", ".cross1")
"""How the names end of places that attend to the prompt."""


class Heatmaps:
    """The weights of one picture, the first row of every forward.

    Attributes:
        heard: how many attentions were added up.

    Args:
        size: height and width of the latents.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size, self.heard = size, 0
        self._total: Tensor | None = None

    def __call__(self, q: Tensor, k: Tensor, name: str) -> None:
        """Hear an attention: q [B, heads, N, d], k [B, heads, L, d]."""
        if not name.endswith(CROSS) or q.is_meta:  # a forecast counts what it would take, and looks at nothing
            return
        if name.startswith(PLACE):  # looks at the words for the control picture's sake
            return
        logits = q[0].float() @ k[0].float().transpose(1, 2) * q.shape[-1] ** -0.5
        weights = logits.softmax(-1).mean(0)  # [N, L]
        maps = weights.T.reshape(1, weights.shape[1], *self._size_of(len(weights)))
        whole = F.interpolate(maps, self.size, mode="bilinear", align_corners=False)[0]  # [L, h, w]
        self._total = whole if self._total is None else self._total + whole
        self.heard += 1

    def mean(self) -> Tensor:
        """[L, h, w] on the CPU: the share of each token in what a position looks at; all tokens together are 1.

        Raises:
            ValueError: nothing was heard.
        """
        if self._total is None:
            raise ValueError("no cross-attention was heard")
        return (self._total / self.heard).cpu()

    def _size_of(self, positions: int) -> tuple[int, int]:
        """Height and width of so many positions, the latents' halved a few times, odd sizes rounded up."""
        height, width = self.size
        while height * width > positions:
            height, width = (height + 1) // 2, (width + 1) // 2
        assert height * width == positions, (positions, self.size)
        return height, width
