"""The Gaussian that autoencoders return, against closed forms."""

import math

import pytest
import torch

from sfumato.models.latents import Gaussian


def test_moments_are_split_and_held() -> None:
    found = Gaussian.of_moments(torch.tensor([1.0, 99.0]).reshape(1, 2, 1, 1))
    assert found.mean.item() == 1.0
    assert found.log_variance.item() == 20.0


def test_samples_have_the_mean_and_the_deviation() -> None:
    mean, deviation = torch.full((1, 1, 100, 100), 3.0), 0.5
    drawn = Gaussian(mean, torch.full_like(mean, 2 * math.log(deviation))).sample(
        torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    )
    assert drawn.mean().item() == pytest.approx(3.0, abs=0.02)
    assert drawn.std().item() == pytest.approx(deviation, rel=0.02)


def test_divergence_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn(3, 2, 4, 5, generator=generator) for _ in range(2))
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(mean, (log_variance / 2).exp()), normal(torch.zeros_like(mean), torch.ones_like(mean))
    ).sum((1, 2, 3))
    assert torch.allclose(Gaussian(mean, log_variance).kl(), expected, rtol=1e-5)


def test_a_point_is_its_own_sample() -> None:
    z = torch.randn(1, 2, 3, 4)
    assert torch.equal(Gaussian.point(z).sample(torch.randn_like(z)), z)
