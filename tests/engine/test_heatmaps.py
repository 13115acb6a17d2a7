"""Maps of what positions look at: shares of all tokens, of the first row, whatever size a layer works in."""

import pytest
import torch

from sfumato.engine.heatmaps import Heatmaps


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (5, 12)])
def test_all_tokens_together_are_one_at_every_size(size: tuple[int, int]) -> None:
    heat = Heatmaps(size)
    height, width = size
    for _ in range(3):
        heat(torch.randn(2, 4, height * width, 16), torch.randn(2, 4, 11, 16), "up.cross")
        height, width = (height + 1) // 2, (width + 1) // 2
    heat(torch.randn(2, 4, 5, 16), torch.randn(2, 4, 5, 16), "up.self")
    assert heat.heard == 3
    maps = heat.mean()
    assert maps.shape == (11, *size)
    torch.testing.assert_close(maps.sum(0), torch.ones(size))


def test_a_position_that_looks_at_one_token_is_where_it_is() -> None:
    heat = Heatmaps((4, 4))
    q, k = torch.zeros(1, 1, 16, 8), torch.zeros(1, 1, 3, 8)
    k[0, 0, 1, 0] = 40.0
    q[0, 0, 6, 0] = 40.0  # row 1, column 2
    heat(q, k, "mid.cross")
    found = heat.mean()
    assert found[1].argmax() == 6
    torch.testing.assert_close(found[:, 1, 2], torch.tensor([0.0, 1.0, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, 0, 0], torch.full((3,), 1 / 3))


def test_where_nothing_was_heard_there_is_nothing() -> None:
    with pytest.raises(ValueError, match="no cross-attention"):
        Heatmaps((4, 4)).mean()
