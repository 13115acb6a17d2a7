"""What a picture carries so that it can be drawn again."""

import platform
from functools import cache
from importlib.metadata import version
from typing import Any

from sfumato.core.config import to_dict
from sfumato.core.version import VERSION
from sfumato.families.types import TINY, Model
from sfumato.tasks.given import told
from sfumato.tasks.settle import Settled


def recipe(model: Model, settled: Settled, seed: int, refiner: Model | None = None) -> dict[str, Any]:
    """The recipe of one picture: a request for it alone, and all that its pixels depend on beside the request."""
    import torch

    request, given = settled.request, settled.given
    tiny = model.tiny if settled.decoder == TINY else None
    control = model.control if request.control is not None else None
    gpu = model.device.type == "cuda"
    return {
        "request": {**to_dict(request), **(told(request, given) if given else {}), "seed": seed, "count": 1},
        **({"given": dict(given.prints)} if given else {}),
        "model": identity(model),
        **({"refiner": identity(refiner)} if refiner is not None else {}),
        **({"loras": {str(a.wanted): {"sha256": a.sha256, "short": a.short} for a in model.adapters}}
           if model.adapters else {}),
        **({"control_model": {"name": control[0], "sha256": control[1]()}} if control is not None else {}),
        **({TINY: {"name": tiny[0], "sha256": tiny[1]()}} if tiny is not None else {}),
        "versions": dict(versions()),
        "device": torch.cuda.get_device_name(model.device) if gpu else model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "size": [request.width, request.height],
        "seed": seed,
    }


@cache  # a package's version is read from its files
def versions() -> dict[str, str]:
    """Of what pixels depend on."""
    import torch

    return {
        "sfumato": VERSION, "torch": torch.__version__, "python": platform.python_version(),
        "tokenizers": version("tokenizers"), "safetensors": version("safetensors"),
    }  # fmt: skip


def identity(model: Model) -> dict[str, Any]:
    """What tells a model from every other, and what it takes to open it again."""
    file = {} if model.file_digest is None else {"file_sha256": model.file_digest()}
    opened = {"opened": dict(model.opened)} if model.opened else {}
    return {"family": model.family.name, "name": model.source, "sha256": model.digest(), **file, **opened}
