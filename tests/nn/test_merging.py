"""Token merging: what goes where, and back."""

import pytest
import torch

from sfumato.core.errors import ConfigError
from sfumato.nn.merging import Merge, Merging, merging, share_at, squares


@pytest.mark.parametrize("size", [(8, 8), (6, 10), (5, 7)])
def test_of_every_square_one_token_is_kept(size: tuple[int, int]) -> None:
    height, width = size
    kept, free = squares(height, width, torch.device("cpu"))
    assert sorted([*kept.tolist(), *free.tolist()]) == list(range(height * width))
    found = {(p // width // 2, p % width // 2) for p in kept.tolist()}
    assert len(found) == len(kept) == (height // 2) * (width // 2)


@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_what_is_equal_comes_back_as_it_was(size: tuple[int, int]) -> None:
    """Every token has one of four values, all of which are kept somewhere: merging equals changes nothing."""
    count = size[0] * size[1]
    values = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    kept, _ = squares(*size, torch.device("cpu"))
    which = torch.arange(count) % 4
    which[kept] = torch.arange(len(kept)) % 4
    x = values[which][None]
    merge = Merge.of(x, size, 0.5)
    assert merge.join(x).shape == (1, count - count // 2, 16)
    torch.testing.assert_close(merge.part(merge.join(x)), x)


def test_the_most_alike_goes_first_and_becomes_a_mean() -> None:
    x = torch.eye(4)[None]
    kept, free = squares(2, 2, torch.device("cpu"))
    x[0, free[1]] = x[0, kept[0]] * 3.0
    merge = Merge.of(x, (2, 2), 0.25)
    assert merge.gone.tolist() == [[1]]
    joined = merge.join(x)
    torch.testing.assert_close(joined[0, -1], x[0, kept[0]] * 2.0)
    back = merge.part(joined)
    torch.testing.assert_close(back[0, free[1]], back[0, kept[0]])
    torch.testing.assert_close(back[0, free[0]], x[0, free[0]])


def test_rows_do_not_depend_on_each_other() -> None:
    x = torch.randn(3, 64, 8, generator=torch.Generator().manual_seed(1))
    whole, alone = Merge.of(x, (8, 8), 0.5), Merge.of(x[2:], (8, 8), 0.5)
    torch.testing.assert_close(whole.part(whole.join(x))[2:], alone.part(alone.join(x[2:])))


def test_only_where_it_is_open_and_only_at_its_size() -> None:
    assert share_at((8, 8)) == 0.0
    with merging(Merging(0.5, (8, 8))):
        assert share_at((8, 8)) == 0.5
        assert share_at((4, 4)) == 0.0
    with merging(Merging(0.5, (8, 1))):
        assert share_at((8, 1)) == 0.0
    with pytest.raises(ConfigError, match=r"0\.75"):
        Merging(0.8, (8, 8))
