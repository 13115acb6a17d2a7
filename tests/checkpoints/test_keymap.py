"""The engine of key maps: there and back is the identity, and nothing is left out unsaid."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sfumato.checkpoints.keymap import OPERATIONS, KeyMap, Row, expand, prefixed
from sfumato.checkpoints.lazy import Lazy, Tensors, lazy_all
from sfumato.core.errors import CheckpointError

ROWS = [
    Row("layers.{n}.attn.in_proj_{p}", ("l.{n}.q.{p}", "l.{n}.k.{p}", "l.{n}.v.{p}"), "split 3"),
    Row("layers.{n}.conv.weight", "l.{n}.linear.weight", "squeeze"),
    Row("layers.{n}.ada.{p}", "l.{n}.norm.{p}", "swap halves"),
    Row("projection", "projection.weight", "transpose"),
    Row("logit", "logit"),
    Row("table", ("a.table", "b.table"), "copies"),
]


def theirs(layers: int, width: int) -> dict[str, Tensor]:
    torch.manual_seed(layers * 10 + width)
    weights = {"projection": torch.randn(width, width + 1), "logit": torch.tensor(1.0)}
    weights["table"] = torch.randn(width, 2)
    for n in range(layers):
        weights |= {
            f"layers.{n}.attn.in_proj_weight": torch.randn(3 * width, width),
            f"layers.{n}.attn.in_proj_bias": torch.randn(3 * width),
            f"layers.{n}.conv.weight": torch.randn(width, width, 1, 1),
            f"layers.{n}.ada.weight": torch.randn(2 * width, width),
            f"layers.{n}.ada.bias": torch.randn(2 * width),
        }
    return weights


def key_map(layers: int) -> KeyMap:
    return KeyMap(expand(ROWS, n=range(layers), p=("weight", "bias")), (r"betas", r".*\.position_ids"))


def equal(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n].read(), b[n].read()) and a[n].shape == b[n].shape for n in a)


@given(layers=st.integers(0, 3), width=st.integers(1, 5))
def test_there_and_back_is_the_identity(layers: int, width: int) -> None:
    source = lazy_all(theirs(layers, width))
    ours, ignored = key_map(layers).to_ours(source, "x")
    assert ignored == []
    assert all(t.shape == tuple(t.read().shape) for t in ours.values())
    assert equal(key_map(layers).to_theirs(ours, "x"), source)


def test_every_operation_is_exercised() -> None:
    assert {row.operation for row in ROWS} == set(OPERATIONS)


def test_what_the_operations_mean() -> None:
    weights = theirs(1, 2)
    ours, _ = key_map(1).to_ours(lazy_all(weights), "x")
    assert torch.equal(ours["l.0.k.weight"].read(), weights["layers.0.attn.in_proj_weight"][2:4])
    assert torch.equal(ours["projection.weight"].read(), weights["projection"].T)
    assert ours["l.0.linear.weight"].shape == (2, 2)
    assert torch.equal(ours["l.0.norm.bias"].read(), weights["layers.0.ada.bias"].roll(2))


def test_copies_that_differ_cannot_become_one() -> None:
    ours, _ = key_map(0).to_ours(lazy_all(theirs(0, 2)), "x")
    back = key_map(0).to_theirs(ours | lazy_all({"b.table": torch.zeros(2, 2)}), "x")
    with pytest.raises(CheckpointError, match=r"x: a.table, b.table, …: .*they differ"):
        back["table"].read()


def test_unknown_and_missing_names_are_listed() -> None:
    weights = theirs(1, 2) | {"stray": torch.zeros(1), "betas": torch.zeros(1), "a.position_ids": torch.zeros(1)}
    _, ignored = key_map(1).to_ours(lazy_all({k: v for k, v in weights.items() if k != "stray"}), "x")
    assert ignored == ["betas", "a.position_ids"]
    del weights["logit"]
    with pytest.raises(CheckpointError, match=r"x: keys do not fit: missing 1 \(logit\); unknown 1 \(stray\)\."):
        key_map(1).to_ours(lazy_all(weights), "x")
    with pytest.raises(CheckpointError, match=r"missing .*unknown 1 \(stray\)"):
        key_map(1).to_theirs(lazy_all({"stray": torch.zeros(1)}), "x")


def test_a_shape_that_cannot_be_converted_is_named() -> None:
    weights = theirs(1, 2) | {"layers.0.attn.in_proj_bias": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"in_proj_bias.* gives 1 tensors; 3 are wanted"):
        key_map(1).to_ours(lazy_all(weights), "x")
    weights["projection"] = torch.zeros(2, 2, 2)
    with pytest.raises(CheckpointError, match=r"projection \[2, 2, 2\]"):
        key_map(1).to_ours(lazy_all(theirs(1, 2) | {"projection": weights["projection"]}), "x")


def test_a_table_with_a_mistake_is_refused() -> None:
    with pytest.raises(ValueError, match="on two rows"):
        KeyMap([Row("a", "x"), Row("b", "x")])
    with pytest.raises(KeyError):
        expand([Row("{m}", "{m}")], n=range(2))


def test_prefixes_and_restriction() -> None:
    rows = prefixed(expand([Row("a.{p}", ("b.{p}",))], p=("weight", "bias")), "theirs.", "ours.")
    assert rows[0] == Row("theirs.a.weight", ("ours.b.weight",))
    assert KeyMap(rows).only(["ours.b.bias"]).rows == [rows[1]]


def test_nothing_is_read_until_it_is_asked_for() -> None:
    read: list[str] = []

    def watched(name: str, tensor: Tensor) -> Lazy:
        def reading() -> Tensor:
            read.append(name)
            return tensor

        return Lazy(tuple(tensor.shape), tensor.dtype, reading)

    ours, _ = key_map(1).to_ours({n: watched(n, t) for n, t in theirs(1, 2).items()}, "x")
    assert read == []
    ours["l.0.q.bias"].read()
    assert read == ["layers.0.attn.in_proj_bias"]
