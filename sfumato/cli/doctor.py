"""``sfumato doctor``."""

import json
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "huggingface_hub", "pillow", "accelerate")


@dataclass(frozen=True)
class Doctor:
    """What sfumato found on this machine, and what it will use."""

    json: Annotated[bool, "print JSON"] = False

    def run(self) -> int:
        found = examine()
        if self.json:
            print(json.dumps(found, indent=2))
            return 0
        for title, rows in found.items():
            print(title)
            for name, value in rows.items():
                print(f"  {name:<16} {value}")
        return 0


def examine() -> dict[str, dict[str, Any]]:
    """Section to name to finding."""
    from sfumato import __version__

    return {
        "software": {"sfumato": __version__, "python": f"{platform.python_version()} ({sys.executable})"}
        | {name: installed(name) for name in PACKAGES},
        "devices": devices(),
        "caches": caches(),
    }


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def devices() -> dict[str, Any]:
    import torch

    from sfumato.core.sizes import show_bytes
    from sfumato.engine.rates import free
    from sfumato.nn import float8, gpu, native
    from sfumato.tasks.forecast import LARGEST, SHARE

    found: dict[str, Any] = {"cpu": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    found["cpu instructions"] = torch.backends.cpu.get_cpu_capability()
    found["cpu kernels"] = native.why()
    found["cpu int8"] = native.why_int8()
    found["cpu precision"] = native.why_half()
    found["memory"] = (
        f"{show_bytes(free())} free; packed weights make a process up to {LARGEST} times as large, within {SHARE:.0%} "
        "of that"
    )
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        half = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        eight = "no fp8" if float8.why_not(torch.device("cuda", i)) else "fp8"
        found[f"cuda:{i}"] = f"{about.name}, {about.total_memory / 2**30:.0f} GiB, {half}, {eight}"
    if torch.cuda.device_count():
        why = gpu.why_not(torch.device("cuda", 0))
        found["cuda kernels"] = (why and f"none, so layers take up to twice as long: {why}") or "compiled by Triton"
    if torch.backends.mps.is_available():
        found["mps"] = "available"
    return found


def caches() -> dict[str, Any]:
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE)
    models = sum(1 for _ in hub.glob("models--*")) if hub.is_dir() else 0
    found = {"hub": f"{hub} ({models} models)" if hub.is_dir() else f"{hub} (not there yet)"}
    found["hub address"] = constants.ENDPOINT + (" (offline: HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "")
    found["hub token"] = "set" if os.environ.get("HF_TOKEN") or Path(constants.HF_TOKEN_PATH).exists() else "none"
    return found
