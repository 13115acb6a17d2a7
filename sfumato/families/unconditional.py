"""Models that are told nothing, or the number of a class: of pixels (Ho et al., 2020), or of latents."""

from collections.abc import Sequence

import torch

from sfumato.core.errors import RequestError
from sfumato.core.request import Request
from sfumato.families.types import Family, Model, Prompts
from sfumato.nn.conditioning import Conditioning


def condition(model: Model, request: Request, names: Sequence[str]) -> Prompts:
    """The prompt is the number of a class where the network knows classes, else empty.

    Raises:
        RequestError: a prompt, a scale or a class that means nothing to it.
    """
    if "negative" in names:
        raise RequestError(f"cfg_scale = {request.cfg_scale}: {model.family.title} has no prompt to be guided towards.")
    for name, usual in (("negative_prompt", ""), ("prompt_weighting", "a1111"), ("long_prompts", "chunk")):
        if getattr(request, name) != usual:
            raise RequestError(f"{name} means nothing to {model.family.title}; leave it out.")
    classes = getattr(model.network.config, "num_class_embeds", None)
    text = request.prompt.strip()
    if classes is None:
        if text:
            raise RequestError(f"{model.family.title} is told nothing and draws what it likes: leave the prompt out.")
        return Prompts({name: Conditioning() for name in names}, {}, [])
    if not text.isdecimal() or int(text) >= classes:
        raise RequestError(f"The prompt of this model is the number of a class, from 0 to {classes - 1}, not {text!r}.")
    return Prompts({name: Conditioning(labels=torch.tensor([int(text)])) for name in names}, {}, [f"Class {text}."])


UNCONDITIONAL = Family(
    name="unconditional", title="An unconditional model", size=32, condition=condition, multiple=1, pixels=True,
    defaults={"steps": 100, "cfg_scale": 1.0},
    scheduler={"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02,
               "num_train_timesteps": 1000},
)  # fmt: skip
