"""The order of items and every draw are functions of (seed, epoch, place)."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sfumato.core.errors import ConfigError
from sfumato.training.buckets import buckets, likest
from sfumato.training.framing import Framing, frame, to_network
from sfumato.training.order import Order, Place, held_out


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 3))
def test_every_item_is_shown_in_every_epoch(count: int, batch: int, epoch: int) -> None:
    order = Order.of(count, 1, batch)
    n = order.steps_per_epoch
    places = [p for step in range(epoch * n, (epoch + 1) * n) for p in order.places(step)]
    assert [p.number for p in places] == list(range(n * batch))
    assert {p.epoch for p in places} == {epoch}
    shown = Counter(p.item for p in places)
    assert set(shown) == set(range(count))
    assert max(shown.values()) - min(shown.values()) <= 1


def test_epochs_and_seeds_have_their_own_orders() -> None:
    def items(seed: int, epoch: int) -> list[int]:
        order = Order.of(50, seed, 10)
        return [p.item for step in range(5 * epoch, 5 * epoch + 5) for p in order.places(step)]

    assert items(0, 0) == items(0, 0)
    assert len({tuple(items(s, e)) for s in (0, 1) for e in (0, 1)}) == 4


def test_asking_in_any_order_gives_the_same_places() -> None:
    order = Order.of(37, 3, 8)
    forward = [order.places(s) for s in range(40)]
    assert [order.places(s) for s in reversed(range(40))] == forward[::-1]


def test_parts_make_up_the_step_whoever_they_are() -> None:
    order = Order.of(37, 3, 8)
    for step in (0, 7, 23):
        whole = order.places(step)
        for parts in (1, 2, 4, 8):
            assert [p for part in range(parts) for p in order.part(step, part, parts)] == whole
    with pytest.raises(ConfigError, match="3 parts"):
        order.part(0, 0, 3)


def test_batches_are_of_one_group() -> None:
    groups = (0,) * 10 + (1,) * 3 + (2,) * 7
    order = Order(0, 4, groups)
    assert order.steps_per_epoch == 3 + 1 + 2
    for epoch in range(2):
        steps = [order.places(s) for s in range(6 * epoch, 6 * epoch + 6)]
        assert all(len({groups[p.item] for p in places}) == 1 for places in steps)
        assert {p.item for places in steps for p in places} == set(range(20))


def test_draws_differ_by_place_epoch_purpose_and_seed() -> None:
    place = Place(2, 7, 0)
    base = place.normal(5, "noise", 8)
    assert np.array_equal(base, Place(2, 7, 99).normal(5, "noise", 8))  # of the place, not of the item
    others = [Place(3, 7, 0).normal(5, "noise", 8), Place(2, 8, 0).normal(5, "noise", 8),
              place.normal(6, "noise", 8), place.normal(5, "time", 8)]  # fmt: skip
    assert not any(np.array_equal(base, other) for other in others)


def test_what_is_held_out_does_not_depend_on_the_rest() -> None:
    keys = [f"{i}.png" for i in range(2000)]
    chosen = dict(zip(keys, held_out(keys, 0.1), strict=True))
    assert 150 < sum(chosen.values()) < 250
    assert held_out(keys[::-3], 0.1) == [chosen[k] for k in keys[::-3]]
    assert not any(held_out(keys, 0.0))
    assert all(held_out(keys, 1.0))


@pytest.mark.parametrize("resolution", [256, 512, 1024])
def test_buckets_keep_the_area_and_the_step(resolution: int) -> None:
    sizes = buckets(resolution)
    assert sizes[0] == (resolution, resolution)
    assert set(sizes) == {(h, w) for w, h in sizes}
    for width, height in sizes:
        assert width % 64 == height % 64 == 0
        assert width * height <= resolution**2
        assert 0.5 <= width / height <= 2


def test_pictures_go_to_the_likest_bucket() -> None:
    sizes = buckets(512)
    assert sizes[likest((3000, 3000), sizes)] == (512, 512)
    assert sizes[likest((4000, 100), sizes)][0] > 512
    assert all(likest(size, sizes) == i for i, size in enumerate(sizes))
    with pytest.raises(ConfigError, match="multiple of 64"):
        buckets(500)


def gradient(width: int, height: int) -> Image.Image:
    xs, ys = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([xs * 255 // width, ys * 255 // height, 0 * xs], -1).astype(np.uint8))


def test_crops_cover_the_target_and_are_not_stretched() -> None:
    framed = frame(gradient(200, 100), (40, 40))
    assert framed.pixels.shape == (3, 40, 40)
    assert framed.corner == (20, 0)
    red, green = framed.pixels[0].float(), framed.pixels[1].float()
    assert 55 < red[:, 0].mean() < 75
    assert 180 < red[:, -1].mean() < 200
    assert green[0].mean() < 10 < 240 < green[-1].mean()


def test_flips_and_crops_are_drawn_for_the_place() -> None:
    framing = Framing("random", 0.5)
    places = [Place(0, i, 0) for i in range(100)]
    first = [framing.frame(gradient(90, 30), (20, 20), 0, p) for p in places]
    again = [framing.frame(gradient(90, 30), (20, 20), 0, p) for p in places]
    assert all(a.corner == b.corner and a.flipped == b.flipped for a, b in zip(first, again, strict=True))
    assert 30 < sum(f.flipped for f in first) < 70
    assert len({f.corner for f in first}) > 20
    mirrored = frame(gradient(90, 30), (20, 20), flip=True).pixels
    assert mirrored.equal(frame(gradient(90, 30), (20, 20)).pixels.flip(-1))


def test_a_picture_of_the_right_size_keeps_its_pixels() -> None:
    picture = gradient(32, 32)
    pixels = frame(picture, (32, 32)).pixels
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(picture))
    assert to_network(pixels).min() >= -1
    assert to_network(pixels).max() <= 1
