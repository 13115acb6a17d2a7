"""What networks say: each prediction reads back what it was made of."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.noise.prediction import PREDICTIONS
from sfumato.noise.schedule import EDM, RectifiedFlow, Schedule, discrete

FRAMES: dict[str, Schedule] = {
    "epsilon": discrete(), "v_prediction": discrete(), "sample": discrete(), "flow": RectifiedFlow(), "edm": EDM(),
}


@given(st.sampled_from(sorted(PREDICTIONS)), st.floats(0.01, 60.0), st.integers(0, 100))
def test_round_trip(name: str, sigma: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x0, noise = (torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    alpha = FRAMES[name].alpha(torch.tensor(sigma, dtype=torch.float64))
    own = alpha * sigma
    said = PREDICTIONS[name].target(x0, noise, alpha, own)
    back = PREDICTIONS[name].to_x0(alpha * x0 + own * noise, said, alpha, own)
    torch.testing.assert_close(back, x0, rtol=1e-7, atol=1e-7)


def test_every_prediction_has_a_frame_here() -> None:
    assert set(FRAMES) == set(PREDICTIONS)


def test_edm_outputs_have_unit_variance_on_data_of_its_deviation() -> None:
    """Karras et al., 2022, section 5: what the preconditioning is for."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(200_000, generator=generator, dtype=torch.float64) for _ in range(2))
    for sigma in (0.01, 0.5, 20.0):
        alpha = float(EDM().alpha(torch.tensor(sigma)))
        target = PREDICTIONS["edm"].target(0.5 * x0, noise, alpha, alpha * sigma)
        assert float(target.std()) == pytest.approx(1.0, abs=0.01)
