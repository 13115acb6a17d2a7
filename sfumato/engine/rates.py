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

import torch
import torch.nn.functional as F

from sfumato.checkpoints.load import outlines
from sfumato.core.config import from_dict
from sfumato.core.errors import ConfigError
from sfumato.core.files import atomic_file, cache_folder
from sfumato.engine.allocator import return_freed_memory
from sfumato.engine.trace import Operation
from sfumato.models.autoencoder import SD_VAE, Autoencoder
from sfumato.models.clip_text import CLIP_L, ClipText
from sfumato.models.unet import SD1, UNet
from sfumato.nn import native
from sfumato.text import tokenizer


@dataclass(frozen=True)
class Rates:
    """Of one device in one precision.

    Attributes:
        convolution: floating-point operations a second in 3 x 3 convolutions as U-Nets have them.
        product: the same in matrix products.
        attention: the same in fused attention.
        movement: bytes a second, read and written, in sums of tensors that fit no cache.
        packed: the same in products with packed weights (``sfumato.nn.native``; where there is none, as ``product``).
        winograd: the same in Winograd's products, the transforms included.
        int8: the same in products of 8 bits.
        latency: seconds that the smallest operation takes.
        load: bytes a second from a mapped file's pages, when they are in memory, to the device.
        process: bytes of a process that has run every kind of operation and holds no model.
    """

    convolution: float
    product: float
    attention: float
    movement: float
    packed: float
    winograd: float
    int8: float
    latency: float
    load: float
    process: int

    def seconds(self, operations: Iterable[Operation]) -> float:
        """Each operation takes what its arithmetic takes or what its traffic takes, whichever is more."""
        return sum(
            max(o.moved / self.movement, o.flops / getattr(self, o.kind) if o.flops else 0.0, self.latency)
            for o in operations
        )


NOMINAL = Rates(1e11, 1e11, 1e11, 1e10, 1e11, 1e11, 4e11, 1e-6, 1e10, 300_000_000)
"""Where only memory matters: a process that holds about as much as one that has imported everything."""


def known(device: torch.device, dtype: torch.dtype) -> Rates | None:
    """Those of this machine if they have been measured."""
    return _read(cache_file()).get(machine(device, dtype))


def rates(device: torch.device, dtype: torch.dtype, program: str = __name__, again: bool = False) -> Rates:
    """Those of this machine; measured (10 to 30 seconds) where they are not known yet.

    Args:
        program: module that a process imports to draw, since what it brings along takes memory too.
        again: measure even if they are known.
    """
    path = cache_file()
    found = known(device, dtype)
    if found is not None and not again:
        return found
    command = [sys.executable, "-m", __name__, str(device), str(dtype).removeprefix("torch."), program]
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
        every = {**_read(path), machine(device, dtype): found}
        file.write(json.dumps({k: asdict(v) for k, v in every.items()}, indent=1).encode())
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


def measure(device: torch.device, dtype: torch.dtype, program: str = __name__) -> Rates:
    """Measure in this process."""
    speeds = _speeds(device, dtype)  # its tensors are gone before memory is looked at
    return from_dict(Rates, {**speeds, "process": _process(device, program)})


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
    convolution, product = 2.0 * 2 * 32 * 32 * weight.numel(), 2.0 * 2048 * 640 * 2560
    runs: dict[str, tuple[float, Callable[[], object]]] = {
        "convolution": (convolution, lambda: F.conv2d(x, weight, padding=1)),
        "product": (product, lambda: a @ b),
        "attention": (4.0 * 16 * 1024 * 1024 * 40, lambda: F.scaled_dot_product_attention(q, q, q)),
        "movement": (3.0 * big.nbytes, lambda: torch.add(big, other)),
        "latency": (1.0, lambda: small + small),
        "load": (float(page.nbytes), lambda: page.to(device, copy=True)),
    }
    if (device.type, dtype) == ("cpu", torch.float32) and native.available():
        ops = torch.ops.sfumato
        packed, transformed, eight = ops.pack_linear(b.T), ops.pack_winograd(weight), ops.pack_int8(b.T)
        runs["packed"] = product, lambda: ops.linear(a, packed, None, None, 2560)
        runs["winograd"] = convolution / 4, lambda: ops.winograd(x, transformed, None, None, None, 320)
        runs["attention"] = runs["attention"][0], lambda: ops.attention(q, q, q, 0.2)
        runs["int8"] = product, lambda: ops.linear_int8(a, *eight, None, None, 2560)
    took = {name: work / _time(run, device) for name, (work, run) in runs.items()}
    took["latency"] = 1 / took["latency"]
    return {"packed": took["product"], "winograd": took["convolution"], "int8": took["product"], **took}


def _time(run: Callable[[], object], device: torch.device, seconds: float = 0.4) -> float:
    """Of the calls that so many seconds hold, three at least, the fastest: what held up the others was not it.

    On a CPU a call takes no longer than its threads ran together: the rest of the time others had the processor.
    """
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < 4 or time.perf_counter() < end:
        if device.type != "cpu":
            torch.accelerator.synchronize()
        begin, ran = time.perf_counter(), time.process_time()
        run()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        took, ran = time.perf_counter() - begin, time.process_time() - ran
        found.append(min(took, ran) if device.type == "cpu" else took)
    return min(found[1:])


def _process(device: torch.device, program: str) -> int:
    """Bytes that this process holds, with all that the program imports, a tokenizer, and the outlines of networks.

    What a GPU's driver takes is not counted.
    """
    if device.type != "cpu":
        return 0
    import_module(program)
    with outlines():
        held = tokenizer.builtin(), UNet(SD1), Autoencoder(SD_VAE), ClipText(CLIP_L)
    return_freed_memory()  # the measurement's own
    found = resident()
    assert len(held[0]) > 0  # held until here
    return found


def free() -> int:
    """Bytes of memory that this process may still take without others having to give any; 0 where nobody tells.

    What a container's limit (cgroup v2) leaves, if that is less than what the system has.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 0
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        counted = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except (OSError, ValueError):  # no such group, or "max"
        return found
    return min(found, max(0, limit - used + int(counted.get("inactive_file", 0))))


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
    print(json.dumps(asdict(measure(torch.device(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3]))))
