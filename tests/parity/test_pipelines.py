"""The whole way from prompt to latents equals diffusers' pipelines: same folder, prompt, noise, sampler, guidance."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import sfumato
from tests.parity import tiny

PROMPT, NEGATIVE = "a red apple on the table, photo", "blue star"
STEPS, SCALE, SEED, SIDE = 20, 7.5, 5, 64

LCM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

SOLVERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False, "set_alpha_to_one": False},
    "PNDMScheduler": {"skip_prk_steps": True, "set_alpha_to_one": False},
    "LMSDiscreteScheduler": {},
    "EulerDiscreteScheduler": {"timestep_spacing": "leading"},
    "HeunDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "DPMSolverMultistepScheduler of first order": {"solver_order": 1},
    "DPMSolverMultistepScheduler heun": {"solver_type": "heun", "lower_order_final": False},
    "DPMSolverMultistepScheduler karras": {"use_karras_sigmas": True},
    "DEISMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
}
"""Scheduler classes and what their config says beside the noise schedule."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(family: str) -> tuple[Any, Path]:
        folder = tmp_path_factory.mktemp(family)
        peer = tiny.pipeline(family, folder)
        peer.save_pretrained(folder / "model")
        return peer, folder / "model"

    return make


def with_scheduler(peer: Any, solver: str) -> Any:
    import diffusers

    shared = ("beta_start", "beta_end", "beta_schedule", "steps_offset", "prediction_type")
    config = {key: peer.scheduler.config[key] for key in shared}
    cls = getattr(diffusers, solver.split()[0])
    if "steps_offset" not in cls.__init__.__wrapped__.__code__.co_varnames:
        config.pop("steps_offset")
    peer.scheduler = cls(**config, **SOLVERS[solver])
    return peer


EVERYDAY = {("sd2", "DDIMScheduler"), ("sdxl", "EulerDiscreteScheduler")}
"""Beside all of sd1: the other families go through the same code but for their conditionings."""

CASES = [
    pytest.param(family, solver, marks=[] if family == "sd1" or (family, solver) in EVERYDAY else pytest.mark.slow)
    for family in ("sd1", "sd2", "sdxl") for solver in SOLVERS
]


@pytest.mark.parametrize(("family", "solver"), CASES)
def test_latents_equal_those_of_diffusers(folders: Any, family: str, solver: str, tmp_path: Path) -> None:
    peer, _ = folders(family)
    peer = with_scheduler(peer, solver)
    peer.save_pretrained(tmp_path)
    theirs = peer(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=STEPS, guidance_scale=SCALE, height=SIDE, width=SIDE,
        generator=torch.Generator().manual_seed(SEED), output_type="latent",
    ).images
    pipe = sfumato.load(str(tmp_path), dtype="float32")
    ours = pipe(
        PROMPT, negative_prompt=NEGATIVE, steps=STEPS, cfg_scale=SCALE, height=SIDE, width=SIDE, seed=SEED,
        noise="torch",
    )
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours.latents, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("solver", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_the_refiner_takes_over_where_diffusers_lets_it(
    folders: Any, solver: str, share: float, tmp_path: Path
) -> None:
    base, refiner = (with_scheduler(folders(family)[0], solver) for family in ("sdxl", "sdxl-refiner"))
    base.save_pretrained(tmp_path / "base")
    refiner.save_pretrained(tmp_path / "refiner")
    told: dict[str, Any] = {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": SCALE,
        "output_type": "latent",
    }
    half = base(**told, denoising_end=share, height=SIDE, width=SIDE, generator=torch.Generator().manual_seed(SEED))
    theirs = refiner(**told, image=half.images, denoising_start=share).images
    pipe = sfumato.load(str(tmp_path / "base"), refiner=str(tmp_path / "refiner"), dtype="float32")
    ours = pipe(
        PROMPT, negative_prompt=NEGATIVE, steps=STEPS, cfg_scale=SCALE, height=SIDE, width=SIDE, seed=SEED,
        noise="torch", refiner_start=share,
    )
    assert (theirs - half.images).abs().max() > 0.1
    torch.testing.assert_close(ours.latents, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


DIT_SOLVERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {"clip_sample": False},
    "DDPMScheduler": {"clip_sample": False},
    "DPMSolverMultistepScheduler": {},
}


@pytest.mark.parametrize("solver", DIT_SOLVERS)
def test_dit_equals_its_pipeline(solver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All four channels guided and the learned variance left aside, as diffusers does it."""
    import diffusers

    peer = tiny.dit()
    peer.scheduler = getattr(diffusers, solver)(**DIT_SOLVERS[solver])
    tiny.save_dit(peer, tmp_path)
    stream = torch.Generator().manual_seed(SEED)

    def drawn(shape: Any, **_: Any) -> torch.Tensor:
        """The pipeline hands no generator to its scheduler; both halves of its batch are one picture."""
        return torch.randn((1, *shape[1:]), generator=stream).expand(tuple(shape))

    for place in ("pipelines.dit.pipeline_dit", "schedulers.scheduling_ddpm"):
        monkeypatch.setattr(f"diffusers.{place}.randn_tensor", drawn)
    latents: list[torch.Tensor] = []
    decode = peer.vae.decode

    def heard(z: torch.Tensor) -> Any:
        latents.append(z)
        return decode(z)

    monkeypatch.setattr(peer.vae, "decode", heard)
    peer([1], num_inference_steps=STEPS, guidance_scale=4.0, output_type="pt")
    theirs = latents[0] * peer.vae.config.scaling_factor
    pipe = sfumato.load(str(tmp_path), dtype="float32")
    ours = pipe("goldfish", steps=STEPS, cfg_scale=4.0, seed=SEED, noise="torch")
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours.latents, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_a_model_that_guides_itself_draws_what_its_pipeline_draws(tmp_path: Path) -> None:
    """Latent consistency models: the guidance scale is told to the U-Net, which is asked once a step."""
    import diffusers as untyped

    diffusers: Any = untyped
    parts = tiny.pipeline("sd1", tmp_path).components
    network = tiny.unet(cross_attention_dim=768, time_cond_proj_dim=16)
    tiny.randomise(network, seed=0)
    peer = diffusers.LatentConsistencyModelPipeline(
        **{**parts, "unet": network.eval(), "scheduler": diffusers.LCMScheduler(**LCM)}, requires_safety_checker=False
    )
    peer.set_progress_bar_config(disable=True)
    peer.save_pretrained(tmp_path / "model")
    pipe = sfumato.load(str(tmp_path / "model"), dtype="float32")
    found = []
    for scale in (8.0, 3.0):
        theirs = peer(
            PROMPT, num_inference_steps=4, guidance_scale=scale, height=SIDE, width=SIDE, output_type="latent",
            generator=torch.Generator().manual_seed(SEED),
        ).images
        ours = pipe(PROMPT, steps=4, cfg_scale=scale, height=SIDE, width=SIDE, seed=SEED, noise="torch")
        assert set(ours.tokens) == {"positive"}
        torch.testing.assert_close(ours.latents, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
        found.append(theirs)
    assert (found[0] - found[1]).abs().max() > 0.01
