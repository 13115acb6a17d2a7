"""A model of twenty lines, for what is done with models: it draws at once, and tells how it was asked."""

from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.errors import RequestError
from sfumato.core.request import Request
from sfumato.families.stable_diffusion import BETAS
from sfumato.families.types import Family, LatentFormat, Model, Prompts
from sfumato.nn.conditioning import Conditioning


class Net(nn.Module):
    """Its answer depends on picture, time and context, row by row; it notes how many rows it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.rows: list[int] = []

    def forward(self, x: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        assert conditioning.context is not None
        self.rows.append(len(conditioning))
        k = len(conditioning) // len(x)
        told = conditioning.context.mean((1, 2))[:, None, None, None]
        return torch.tanh(x.repeat(k, 1, 1, 1) * self.scale + told) * (1 + t.repeat(k)[:, None, None, None] / 1000)


class Decoder(nn.Module):
    def decode(self, z: Tensor) -> Tensor:
        return torch.tanh(z[:, :3])


def condition(model: Model, request: Request, names: Any) -> Prompts:
    if request.prompt == "unreadable":
        raise RequestError("This prompt cannot be read.")
    words = {"positive": request.prompt, "negative": request.negative_prompt}
    value = {name: float("nan") if words[name] == "nan" else len(words[name]) / 10 for name in names}
    return Prompts({name: Conditioning(context=torch.full((1, 2, 3), v)) for name, v in value.items()}, {}, [])


def toy() -> Model:
    """Pictures of 8 x 8 in four steps; the prompt "nan" fails while it is drawn, "unreadable" before that."""
    scheduler = {"_class_name": "EulerDiscreteScheduler", **BETAS}
    family = Family("toy", "a toy", 8, condition, 1, {"steps": 4, "cfg_scale": 3.0}, scheduler)
    parts = {"unet": Net(), "vae": Decoder()}
    return Model(family, parts, {}, scheduler, LatentFormat(4, 1), "toy", lambda: "0" * 64, 8)
