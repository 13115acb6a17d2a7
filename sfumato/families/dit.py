"""DiT: pictures of a class, which the prompt names or numbers."""

from collections.abc import Mapping, Sequence

import torch

from sfumato.core.errors import RequestError, nearest
from sfumato.core.request import Request
from sfumato.families.types import Family, Model, Prompts
from sfumato.nn.conditioning import Conditioning


def condition_class(model: Model, request: Request, names: Sequence[str]) -> Prompts:
    """The prompt is a class: a number, or one of the names that the checkpoint has for it. An empty one is no class.

    Raises:
        RequestError: there is no such class, or several have that name; settings that are for texts.
    """
    for name, usual in (("prompt_weighting", "a1111"), ("long_prompts", "chunk")):
        if getattr(request, name) != usual:
            raise RequestError(f"{name} means nothing to {model.family.title}, whose prompt is a class; leave it out.")
    classes: int = model.network.config.num_embeds_ada_norm  # type: ignore[assignment,union-attr]
    titles = {int(number): str(title) for number, title in model.options.get("id2label", {}).items()}
    texts = {"positive": request.prompt, "negative": request.negative_prompt}
    labels = {name: class_of(texts[name].strip(), classes, titles) for name in names}
    notes = [
        f"Class {label}{f' ({titles[label]})' if label in titles else ''}." if label < classes else "No class."
        for label in list(labels.values())[:1]
    ]
    return Prompts({n: Conditioning(labels=torch.tensor([label])) for n, label in labels.items()}, {}, notes)


def class_of(text: str, classes: int, titles: Mapping[int, str]) -> int:
    """The number of the class that a text stands for; ``classes`` itself where it is empty.

    Args:
        titles: number to the names of a class, which commas separate; each of them will do, and all together.
    """
    if not text:
        return classes
    if text.isdecimal():
        if int(text) >= classes:
            raise RequestError(f"There is no class {text}: they go from 0 to {classes - 1}." if classes else _NONE)
        return int(text)
    names: dict[str, list[int]] = {}
    for number, title in titles.items():
        for name in {title, *title.split(",")}:
            names.setdefault(name.strip().casefold(), []).append(number)
    found = names.get(text.casefold(), [])
    if len(found) > 1:
        which = " or ".join(f"{number} ({titles[number]})" for number in found)
        raise RequestError(f"Several classes are called {text!r}: give the number, {which}.")
    if not found:
        if not classes:
            raise RequestError(_NONE)
        many = f"a number from 0 to {classes - 1}"
        if not names:
            raise RequestError(f"{text!r}: this checkpoint has no names for its classes; give {many}.")
        raise RequestError(f"There is no class called {text!r}{nearest(text.casefold(), names)} Or give {many}.")
    return found[0]


_NONE = "This model knows no classes: leave the prompt out."

DIT = Family(
    name="dit", title="DiT", size=256, condition=condition_class, denoiser="transformer",
    defaults={"steps": 50, "cfg_scale": 4.0},
    # As the authors sample: all that the network says of the noise is used, its variance too.
    scheduler={
        "_class_name": "DDPMScheduler", "variance_type": "learned_range", "beta_schedule": "linear",
        "beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 1000, "timestep_spacing": "linspace",
        "clip_sample": False,
    },
)
