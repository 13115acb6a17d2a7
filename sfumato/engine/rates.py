"""How fast this machine is, and how much memory a process holds before it has a model: measured once, kept in a file.

The measurement runs in a process of its own, so that it neither disturbs nor is coloured by the caller's.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from sfumato.checkpoints.load import outlines
from sfumato.core.config import from_dict
from sfumato.core.errors import ConfigError
from sfumato.core.files import atomic_file, cache_folder
from sfumato.engine.trace import Operation
from sfumato.models.autoencoder import SD_VAE, Autoencoder
from sfumato.models.clip_text import CLIP_L, ClipText
from sfumato.models.unet import SD1, UNet
from sfumato.text import tokenizer


@dataclass(frozen=True)
class Rates:
    """Of one device in one precision.

    Attributes:
        convolution: floating-point operations a second in 3 x 3 convolutions as U-Nets have them.
        product: the same in matrix products.
        attention: the same in fused attention.
        movement: bytes a second, read and written, in sums of tensors that fit no cache.
        latency: seconds that the smallest operation takes.
        load: bytes a second from a mapped file's pages, when they are in memory, to the device.
        process: bytes of a process that has run every kind of operation and holds no model.
    """

    convolution: float
    product: float
    attention: float
    movement: float
    latency: float
    load: float
    process: int

    def seconds(self, operations: Iterable[Operation]) -> float:
        """Each operation takes what its arithmetic takes or what its traffic takes, whichever is more."""
        speed = {"convolution": self.convolution, "product": self.product, "attention": self.attention}
        return sum(
            max(o.moved / self.movement, o.flops / speed[o.kind] if o.flops else 0.0, self.latency) for o in operations
        )


def rates(device: torch.device, dtype: torch.dtype, again: bool = False) -> Rates:
    """Those of this machine; measured (10 to 30 seconds) where they are not known yet.

    Args:
        again: measure even if they are known.
    """
    path = cache_file()
    known = _read(path)
    key = machine(device, dtype)
    if key in known and not again:
        return known[key]
    command = [sys.executable, "-m", __name__, str(device), str(dtype).removeprefix("torch.")]
    threads = str(torch.get_num_threads())
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode:
        raise ConfigError(f"This machine's rates cannot be measured: {(done.stderr.splitlines() or ['?'])[-1]}")
    found = from_dict(Rates, json.loads(done.stdout), "measured rates")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(json.dumps({k: asdict(v) for k, v in {**known, key: found}.items()}, indent=1).encode())
    return found


def cache_file() -> Path:
    """Where rates are kept."""
    return cache_folder() / "rates.json"


def machine(device: torch.device, dtype: torch.dtype) -> str:
    """All that rates depend on: processor or GPU, threads, precision, PyTorch."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads, level = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
        name = f"{device.type}, {processor()}, {level}, {threads} threads"
    return f"{name}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}"


def processor() -> str:
    """The processor as its maker calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _read(path: Path) -> dict[str, Rates]:
    """What is known; a file that cannot be read is as good as none, since it can be measured again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): from_dict(Rates, entry, str(path)) for key, entry in content.items()}
    except (OSError, ValueError, AttributeError, ConfigError):
        return {}


def measure(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measure in this process."""
    speeds = _speeds(device, dtype)  # its tensors are gone before memory is looked at
    return from_dict(Rates, {**speeds, "process": _process(device)})


@torch.inference_mode()
def _speeds(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Run one operation of each kind, of the sizes that Stable Diffusion has at 256 pixels."""

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    x = new(2, 320, 32, 32).contiguous(memory_format=torch.channels_last)
    weight = new(320, 320, 3, 3)
    a, b = new(2048, 640), new(640, 2560)
    q = new(2, 8, 1024, 40)
    big, other = new(16_000_000), new(16_000_000)
    small = new(8)
    page = torch.empty(16_000_000, dtype=dtype)
    took = {
        "convolution": _time(lambda: F.conv2d(x, weight, padding=1), device),
        "product": _time(lambda: a @ b, device),
        "attention": _time(lambda: F.scaled_dot_product_attention(q, q, q), device),
        "movement": _time(lambda: torch.add(big, other), device),
        "latency": _time(lambda: small + small, device, turns=50),
        "load": _time(lambda: page.to(device, copy=True), device),
    }
    work = {
        "convolution": 2.0 * 2 * 32 * 32 * weight.numel(), "product": 2.0 * 2048 * 640 * 2560,
        "attention": 4.0 * 16 * 1024 * 1024 * 40, "movement": 3.0 * big.nbytes, "load": float(page.nbytes),
    }
    return {**{name: amount / took[name] for name, amount in work.items()}, "latency": took["latency"]}


def _time(run: Callable[[], object], device: torch.device, turns: int = 5) -> float:
    """Seconds of one call: the middle one of several, after one that is not counted."""
    found = []
    for _ in range(turns + 1):
        if device.type != "cpu":
            torch.accelerator.synchronize()
        begin = time.perf_counter()
        run()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        found.append(time.perf_counter() - begin)
    return median(found[1:])


def _process(device: torch.device) -> int:
    """Bytes that this process holds, with all that drawing imports, a tokenizer, and the outlines of networks.

    What a GPU's driver takes is not counted.
    """
    if device.type != "cpu":
        return 0
    import_module("sfumato.tasks.pipeline")
    with outlines():
        held = tokenizer.builtin(), UNet(SD1), Autoencoder(SD_VAE), ClipText(CLIP_L)
    found = resident()
    assert len(held[0]) > 0  # held until here
    return found


def resident() -> int:
    """Bytes of physical memory that this process holds now: its own, and pages of mapped files that it has touched.

    0 where the system does not tell.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(json.dumps(asdict(measure(torch.device(sys.argv[1]), getattr(torch, sys.argv[2])))))
