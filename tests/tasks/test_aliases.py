"""diffusers' names for what a request holds."""

import ast
import importlib.util
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.core.errors import RequestError
from sfumato.core.request import Request
from sfumato.tasks.aliases import ALIASES, COUNTED_OTHERWISE, REFUSED, request


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_call_in_either_vocabulary() -> None:
    assert request({"prompt": "a", "steps": 30, "cfg_scale": 7, "clip_skip": 2}) == Request(
        "a", steps=30, cfg_scale=7.0, clip_skip=2
    )
    assert request({
        "prompt": "a", "negative_prompt": None, "num_inference_steps": 30, "guidance_scale": 7.5, "height": 64,
        "num_images_per_prompt": 2, "generator": [generator(7), generator(8)], "eta": 0.5, "guidance_rescale": 0.7,
        "latents": None, "output_type": "pil", "return_dict": True, "denoising_end": 0.8,
    }) == Request("a", steps=30, cfg_scale=7.5, height=64, count=2, seed=7, noise="torch", eta=0.5,
                  guidance_rescale=0.7, refiner_start=0.8)


def test_guidance_off_is_off() -> None:
    assert request({"guidance_scale": 0}).cfg_scale == 1.0
    assert request({"cfg_scale": 0}).cfg_scale == 0.0


def drawn() -> torch.Generator:
    used = generator(7)
    torch.randn(3, generator=used)
    return used


@pytest.mark.parametrize(("arguments", "message"), [
    ({"num_inference_step": 3}, "no argument 'num_inference_step'; did you mean 'num_inference_steps'"),
    ({"stepz": 3}, "did you mean 'steps'"),
    ({"steps": 3, "num_inference_steps": 3}, "says once more what steps is"),
    ({"timesteps": [3, 2]}, "timesteps cannot be given: give sigmas"),
    ({"prompt_embeds": object()}, "text states cannot be put"),
    ({"output_type": "latent"}, ".latents"),
    ({"return_dict": False}, "return_dict = False"),
    ({"num_inference_steps": 3, "clip_skip": 1}, "clip_skip counts from 0 in diffusers"),
    ({"guidance_scale": 3, "sigmas": (3.0, 1.0)}, "sigmas ends before 0 in diffusers"),
    ({"prompt": ["a", "b"]}, "call once for each prompt"),
    ({"generator": 3}, "expected a torch.Generator"),
    ({"generator": []}, "expected a torch.Generator"),
    ({"generator": drawn()}, "nothing was drawn from yet"),
    ({"generator": generator(3), "count": 2}, "1 for 2 pictures"),
    ({"generator": [generator(3), generator(9)], "count": 2}, "must follow each other"),
    ({"generator": generator(3), "seed": 3}, "says once more what seed is|seed says once more"),
    ({"steps": "many"}, "steps"),
    ({"steps": 0}, "steps = 0: must be at least 1"),
])
def test_what_cannot_be_is_refused_with_the_reason(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        request(arguments)
    assert any(part in str(caught.value) for part in message.split("|"))


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_xl"])
def test_every_name_of_the_peers_call_is_known(name: str) -> None:
    """Read from its source: importing it takes longer than all of these tests."""
    spec = importlib.util.find_spec("diffusers")
    if spec is None or spec.origin is None:
        pytest.skip("no diffusers")
    source = Path(spec.origin).parent / "pipelines" / name / f"pipeline_{name}.py"
    calls = [node for node in ast.walk(ast.parse(source.read_text()))
             if isinstance(node, ast.FunctionDef) and node.name == "__call__"]
    names = {argument.arg for argument in calls[0].args.args} - {"self"}
    assert len(names) > 20
    assert names <= {*ALIASES, *REFUSED, *COUNTED_OTHERWISE, *(f.name for f in fields(Request))}
