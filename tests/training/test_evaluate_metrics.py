"""The measures themselves, beside other people's and beside what can be worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.core.errors import ConfigError, DataError
from sfumato.training.evaluate import captions
from sfumato.training.evaluate.distributions import distances, frechet, kid, precision_recall
from sfumato.training.evaluate.likeness import psnr, ssim
from sfumato.training.evaluate.retrieval import chance, hits, retrieval
from sfumato.training.evaluate.sweep import settings, table


def clouds(dim: int = 12, n: int = 60, m: int = 45) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(n, dim), torch.randn(m, dim) * 1.3 + 0.4


def pictures(seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.randint(0, 256, (3, 3, 24, 20), dtype=torch.uint8)


def test_psnr_and_ssim_are_scikit_images() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a = pictures(0)
    b = (a.float() + 20 * torch.randn(a.shape)).clamp(0, 255).byte()
    for i in range(len(a)):
        one, other = (x[i].permute(1, 2, 0).numpy() for x in (a, b))
        assert psnr(a, b)[i].item() == pytest.approx(metrics.peak_signal_noise_ratio(one, other, data_range=255))
        _, whole = metrics.structural_similarity(
            one, other, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=2, data_range=255,
            full=True,
        )
        assert ssim(a, b)[i].item() == pytest.approx(whole[5:-5, 5:-5].mean(), abs=1e-9)
    assert torch.isinf(psnr(a, a)).all()
    assert torch.allclose(ssim(a, a), torch.ones(3, dtype=torch.float64))
    with pytest.raises(ConfigError, match="8 x 8"):
        ssim(a[..., :8, :8], b[..., :8, :8])


def test_frechet_distance_is_that_of_the_matrix_square_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = (x.double().numpy() for x in clouds())
    first, second = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * linalg.sqrtm(first @ second).real)
    assert frechet(*clouds()) == pytest.approx(expected, rel=1e-9)
    assert frechet(clouds()[0], clouds()[0]) == pytest.approx(0, abs=1e-9)
    # One dimension, by hand: (m - n)^2 + (s - t)^2.
    x = torch.tensor([[0.0], [2.0]])
    assert frechet(x, 3 * x + 5) == pytest.approx((6 + 1) ** 2 + (2 * 2**0.5) ** 2)


def test_frechet_distance_with_fewer_pictures_than_features() -> None:
    a, b = (x.double() for x in clouds(dim=40, n=12, m=10))
    # The trace of the root is the sum of the singular values of the product of both centred sets.
    one, other = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b))
    traces = one.square().sum() + other.square().sum() - 2 * torch.linalg.svdvals(one @ other.T).sum()
    assert frechet(a, b) == pytest.approx(((a.mean(0) - b.mean(0)).square().sum() + traces).item(), rel=1e-6)


class Given(nn.Module):
    """A feature network for a peer: what looks like pictures are features already."""

    num_features = 12

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).float()


def test_fid_and_kid_are_torchmetrics() -> None:
    fids = pytest.importorskip("torchmetrics.image.fid")
    kids = pytest.importorskip("torchmetrics.image.kid")
    a, b = clouds(n=50, m=50)
    fid = fids.FrechetInceptionDistance(feature=Given(), input_img_size=(3, 2, 2))
    theirs = kids.KernelInceptionDistance(feature=Given(), subsets=1, subset_size=50)
    for metric in (fid, theirs):
        metric.set_dtype(torch.float64)
        metric.update(a.reshape(-1, 3, 2, 2), real=True)
        metric.update(b.reshape(-1, 3, 2, 2), real=False)
    assert frechet(a, b) == pytest.approx(fid.compute().item(), rel=1e-4)
    assert kid(a, b) == pytest.approx(theirs.compute()[0].item(), rel=1e-4)


def test_kid_has_no_bias() -> None:
    torch.manual_seed(0)
    found = [kid(torch.randn(20, 4), torch.randn(20, 4)) for _ in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 20
    assert kid(torch.randn(20, 4), torch.randn(20, 4) + 2) > 10 * np.std(found)


def test_precision_and_recall_by_hand() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0], [100.0], [101.0], [102.0], [103.0]])
    drawn = torch.tensor([[0.5], [1.5], [2.5], [1.0], [60.0]])
    # Balls about real points reach 2 to 3 from each end of their group; those about drawn ones never reach 100.
    precision, recall = precision_recall(real, drawn, neighbours=3)
    assert precision == pytest.approx(4 / 5)
    assert recall == 1.0  # the lone point's ball reaches to its third nearest, 59 away: over all of the second group
    precision, recall = precision_recall(real, drawn[:4], neighbours=3)
    assert (precision, recall) == (1.0, 0.5)
    with pytest.raises(ConfigError, match="too few"):
        distances(real, drawn[:4])


def test_retrieval_knows_equal_captions() -> None:
    eye = torch.eye(8)
    same = torch.tensor([0, 1, 2, 3, 4, 5, 6, 6])
    swapped = eye[[0, 1, 2, 3, 4, 5, 7, 6]]
    found = retrieval(eye, 3 * swapped, same)
    assert found["text_to_image_top1"] == found["image_to_text_top1"] == 1.0
    assert found["clip_score"] == pytest.approx(75.0)
    found = retrieval(eye, swapped, torch.arange(8))
    assert found["text_to_image_top1"] == 0.75


def test_chance_is_what_random_numbers_find() -> None:
    there = torch.tensor([0, 0, 0, 1, 2, 3, 4, 5, 6, 7])
    expected = chance(there[:4], there)
    assert expected[1] == pytest.approx((3 * 0.3 + 0.1) / 4)
    torch.manual_seed(0)
    tries = [hits(torch.rand(4, 10), there[:4], there) for _ in range(4000)]
    for k in (1, 5):
        assert np.mean([t[k] for t in tries]) == pytest.approx(expected[k], abs=0.02)


def test_captions_are_chosen_one_by_one(tmp_path: Path) -> None:
    words = [f"thing {i}" for i in range(50)]
    chosen = captions.choose([*words, *words, ""], 10)
    assert len(set(chosen)) == 10
    assert captions.choose(words[::-1], 10) == chosen
    left = captions.choose([w for w in words if w != chosen[3]], 10)
    assert left[:3] == chosen[:3]
    assert left[3:9] == chosen[4:]
    assert captions.choose(words, 10, seed=1) != chosen
    (tmp_path / "list.txt").write_text("# a comment\n\n a cat \na dog\n")
    assert captions.read(tmp_path / "list.txt") == ["a cat", "a dog"]
    (tmp_path / "none.txt").write_text("# a comment\n")
    with pytest.raises(DataError, match="no captions"):
        captions.read(tmp_path / "none.txt")
    assert captions.numbered(["b", "a", "b"], ["a", "b", "b"]).tolist() == [1, 0, 1]


def test_settings_of_a_sweep() -> None:
    assert settings(("DPM++ 2M:10", "ddim:50")) == [("dpmpp_2m", 10), ("ddim", 50)]
    for wrong in ("ddim", "ddim:", ":5", "ddim:0", "ddim:x"):
        with pytest.raises(ConfigError, match="sampler:steps"):
            settings((wrong,))
    rows = [{"sampler": "ddim", "steps": 5, "kid": 0.123456}]
    assert table(rows) == "| sampler | steps | kid |\n| --- | --- | --- |\n| ddim | 5 | 0.1235 |\n"
