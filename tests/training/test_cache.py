"""Caches: computed once, found again, gone on with, and never stale."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sfumato.training import cache


class Encoder:
    """Counts what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.fail_at: int | None = None

    def __call__(self, items: list[int]) -> Mapping[str, Tensor]:
        if self.fail_at in items:
            raise KeyboardInterrupt
        self.asked += items
        rows = torch.tensor(items).float()
        return {"mean": rows[:, None] * torch.ones(3), "half": rows.half()}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SHARD", 4)


GROUPS = [[0, 2, 4, 6, 8, 10], [1, 3, 5]]
CONTENTS = {i: f"content {i}" for i in range(11)}


def fill(folder: Path, encoder: Encoder, contents: Mapping[int, str] = CONTENTS, name: str = "e") -> cache.Rows:
    return cache.fill(folder, "latents", GROUPS, contents, name, encoder, batch=2)


def test_rows_are_what_was_computed_and_computed_once(tmp_path: Path) -> None:
    encoder = Encoder()
    rows = fill(tmp_path, encoder)
    assert sorted(encoder.asked) == sorted(GROUPS[0] + GROUPS[1])
    for item in GROUPS[0] + GROUPS[1]:
        assert rows.row(item)["mean"].equal(torch.full((3,), float(item)))
        assert rows.row(item)["half"].dtype == torch.float16
    again = Encoder()
    assert fill(tmp_path, again).row(5)["half"] == 5
    assert again.asked == []
    assert sum(len(t) for t in rows.column("mean")) == 9


def test_an_interrupted_filling_goes_on(tmp_path: Path) -> None:
    encoder = Encoder()
    encoder.fail_at = 1
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, encoder)
    second = Encoder()
    fill(tmp_path, second)
    assert sorted(second.asked) == [1, 3, 5]


def test_a_changed_item_costs_its_shard_and_a_changed_encoder_all(tmp_path: Path) -> None:
    fill(tmp_path, Encoder())
    changed = Encoder()
    fill(tmp_path, changed, {**CONTENTS, 8: "another picture"})
    assert sorted(changed.asked) == [8, 10]
    other = Encoder()
    fill(tmp_path, other, name="f")
    assert len(other.asked) == 9
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_shard_is_computed_again(tmp_path: Path) -> None:
    fill(tmp_path, Encoder())
    for file in tmp_path.iterdir():
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    encoder = Encoder()
    assert fill(tmp_path, encoder).row(10)["mean"][0] == 10
    assert len(encoder.asked) == 9


def test_fingerprints_are_of_weights_and_settings() -> None:
    torch.manual_seed(0)
    network = nn.Linear(2, 2)
    first = cache.fingerprint(network, 64, "flip")
    assert first == cache.fingerprint(network, 64, "flip")
    assert first != cache.fingerprint(network, 32, "flip")
    with torch.no_grad():
        network.bias[0] += 1e-3
    assert first != cache.fingerprint(network, 64, "flip")
