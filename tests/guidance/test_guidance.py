"""Guidance: which conditionings are asked for, and what is made of the answers."""

import pytest
import torch
from torch import Tensor

from sfumato.guidance import build

BOTH = ("positive", "negative")


def outputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, 4, 8, 8, generator=generator) for name in BOTH}


def test_a_scale_of_one_asks_for_the_positive_alone() -> None:
    guidance = build(1.0)
    assert guidance.wants(1.0) == ("positive",)
    positive = outputs()["positive"]
    assert guidance.combine({"positive": positive}, 1.0) is positive


def test_a_scale_of_nought_asks_for_the_negative_alone() -> None:
    guidance = build(0.0)
    assert guidance.wants(1.0) == ("negative",)
    negative = outputs()["negative"]
    assert guidance.combine({"negative": negative}, 1.0) is negative


def test_classifier_free_guidance() -> None:
    guidance, said = build(7.5), outputs()
    assert guidance.wants(1.0) == BOTH
    torch.testing.assert_close(guidance.combine(said, 1.0), 7.5 * said["positive"] - 6.5 * said["negative"])
    x0 = said["positive"]
    assert guidance.constrain(x0, 1.0) is x0


def test_the_first_channels_alone_can_be_guided() -> None:
    """As DiT's authors sample: three of four, the last is the positive's."""
    said = outputs()
    found, whole = (build(4.0, guidance_channels=n).combine(said, 1.0) for n in (3, None))
    torch.testing.assert_close(found[:, :3], whole[:, :3], rtol=0, atol=0)
    torch.testing.assert_close(found[:, 3], said["positive"][:, 3], rtol=0, atol=0)
    assert build(0.0, guidance_channels=3).wants(1.0) == BOTH


def test_rescale_gives_each_picture_the_contrast_of_the_positive() -> None:
    said = outputs()
    said["positive"][1] *= 3.0
    whole = build(7.5, guidance_rescale=1.0).combine(said, 1.0)
    torch.testing.assert_close(whole.std((1, 2, 3)), said["positive"].std((1, 2, 3)))
    plain, half = build(7.5).combine(said, 1.0), build(7.5, guidance_rescale=0.5).combine(said, 1.0)
    torch.testing.assert_close(half, (plain + whole) / 2)


def test_rescale_equals_diffusers() -> None:
    module = pytest.importorskip("diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion")
    said = outputs()
    expected = module.rescale_noise_cfg(build(7.5).combine(said, 1.0), said["positive"], guidance_rescale=0.7)
    torch.testing.assert_close(build(7.5, guidance_rescale=0.7).combine(said, 1.0), expected)


def test_outside_its_interval_nothing_but_the_positive_is_asked_for() -> None:
    guidance, said = build(7.5, guidance_interval=(0.5, 5.0), guidance_rescale=0.7), outputs()
    for sigma in (0.5, 2.0, 5.0):
        assert guidance.wants(sigma) == BOTH
        inside = guidance.combine(said, sigma)
        torch.testing.assert_close(inside, build(7.5, guidance_rescale=0.7).combine(said, sigma))
    for sigma in (0.49, 5.1):
        assert guidance.wants(sigma) == ("positive",)
        assert guidance.combine({"positive": said["positive"]}, sigma) is said["positive"]


def test_dynamic_thresholding_is_by_picture() -> None:
    x0 = torch.stack([torch.linspace(-0.5, 0.5, 64), torch.linspace(-4.0, 4.0, 64)]).view(2, 1, 8, 8)
    found = build(7.5, dynamic_threshold=1.0).constrain(x0, 1.0)
    torch.testing.assert_close(found[0], x0[0])  # within the range of pixels: as it was
    torch.testing.assert_close(found[1], x0[1] / 4.0)
    clipped = build(7.5, dynamic_threshold=0.5).constrain(x0, 1.0)[1]
    assert float(clipped.max()) == pytest.approx(1.0)
    assert int((clipped == 1.0).sum()) > 10


@pytest.mark.parametrize("maximum", [1.0, 1.5])
def test_dynamic_thresholding_equals_diffusers(maximum: float) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(thresholding=True, sample_max_value=maximum, dynamic_thresholding_ratio=0.9)
    x0 = 2.0 * outputs()["positive"]
    found = build(1.0, dynamic_threshold=0.9, threshold_maximum=maximum).constrain(x0, 1.0)
    torch.testing.assert_close(found, scheduler._threshold_sample(x0))


def test_static_thresholding_gives_way_to_dynamic() -> None:
    x0 = torch.linspace(-4.0, 4.0, 64).view(1, 1, 8, 8)
    torch.testing.assert_close(build(1.0, clip=1.0).constrain(x0, 1.0), x0.clamp(-1.0, 1.0))
    torch.testing.assert_close(build(1.0, clip=1.0, dynamic_threshold=1.0).constrain(x0, 1.0), x0 / 4.0)


def test_every_layer_passes_on_what_it_does_not_change() -> None:
    guidance = build(7.5, guidance_rescale=0.5, guidance_interval=(0.0, 9.0), dynamic_threshold=0.99)
    said = outputs()
    torch.testing.assert_close(guidance.combine(said, 1.0), build(7.5, guidance_rescale=0.5).combine(said, 1.0))
    assert guidance.wants(10.0) == ("positive",)
    assert float(guidance.constrain(5.0 * said["positive"], 10.0).abs().max()) <= 1.0
