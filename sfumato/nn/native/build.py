"""Compiling ``kernels.cpp`` for this machine, once, and loading it.

The library is compiled when it is first wanted, never on import, and kept in ``$XDG_CACHE_HOME/sfumato`` (else
``~/.cache/sfumato``) under a name that stands for everything it depends on: source, PyTorch, compiler, processor. A
wheel may bring libraries along, for ``LEVELS`` of instructions and one version of PyTorch: where one of them fits it is
used, and no compiler is needed.
"""

import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from sfumato.core.errors import ConfigError
from sfumato.nn.native import shapes

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("kernels.cpp")
_lock = threading.Lock()
_outcome: str | None = None  # None: not tried yet; "": loaded; else why not
_place = ""  # where the loaded library lies, in words

LEVELS: Mapping[str, tuple[frozenset[str], tuple[str, ...]]] = {
    "avx512vnni": (
        frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"}),
        ("-march=x86-64-v4", "-mavx512vnni"),
    ),
    "avx512": (frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}), ("-march=x86-64-v4",)),
    "avx2": (frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "abm", "movbe"}), ("-march=x86-64-v3",)),
}
"""Of instructions, the best first: what a wheel's libraries are compiled for. By name what the processor must have, as
/proc/cpuinfo tells it, and what the compiler is told."""


class BuildError(Exception):
    """Why there is no native library, in one sentence."""


def available() -> bool:
    """Whether the native kernels can be used. The first call may compile them: 10 to 30 seconds, once a machine."""
    global _outcome, _place
    with _lock:
        if _outcome is None:
            try:
                library = build(SOURCE, cache_folder())
                torch.ops.load_library(library)  # type: ignore[no-untyped-call]
                shapes.register()
                _outcome = ""
                _place = "compiled beforehand" if library.parent == SOURCE.parent else str(library.parent)
            except BuildError as problem:
                _outcome = str(problem)
            except OSError as problem:
                _outcome = f"the compiled library cannot be loaded: {problem.__cause__ or problem}"
            if _outcome:
                log.info("Native kernels are not used: %s", _outcome)
        return not _outcome


def why() -> str:
    """One line for `sfumato doctor`: whether the native kernels are used, and the reason."""
    if available():
        return f"native kernels, {_place}"
    return f"plain PyTorch: {_outcome}"


def why_int8() -> str:
    """One line for `sfumato doctor`: how layers multiply in 8 bits, where that is asked for."""
    if not available():
        return "plain PyTorch, slower than float32"
    if "avx512_vnni" in _processor().split():
        return "native kernels, AVX-512 VNNI"
    return "native kernels without AVX-512 VNNI, slower than float32"


def why_half() -> str:
    """One line for `sfumato doctor`: how networks in half precision fare on this processor."""
    said = "float32 unless asked otherwise; half precision in plain PyTorch, slower"
    try:
        flags = _processor().split()
    except BuildError:
        return said
    has = [flag for flag in ("amx_bf16", "avx512_bf16", "bf16") if flag in flags]
    return f"{said} (the processor has {has[0] if has else 'no instructions for bfloat16'})"


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sfumato"


def build(source: Path, folder: Path) -> Path:
    """The compiled library: one beside the source if it fits, or from ``folder``, made where it is not there yet.

    Any number of processes may ask at once: one compiles, the others wait for it. What appears under the final name
    is complete.

    Raises:
        BuildError: no compiler, a processor without the instructions, a folder that cannot be written, or the
            compiler's message.
    """
    switch = os.environ.get("SFUMATO_NATIVE", "1")
    if switch not in ("0", "1"):
        raise ConfigError(f"SFUMATO_NATIVE={switch}: 1 allows native kernels (the default), 0 turns them off.")
    if switch == "0":
        raise BuildError("turned off by SFUMATO_NATIVE=0")
    processor = _processor()
    for level, (needed, _) in LEVELS.items():
        beside = source.with_name(beforehand(source, level))
        if needed <= set(processor.split()) and beside.exists():
            return beside
    command = _command(_compiler(), ["-march=native" if _is_x86() else "-mcpu=native"])
    try:
        stamp = "\0".join([source.read_text(encoding="utf-8"), torch.__version__, *command, processor])
        library = folder / f"{source.stem}-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.so"
        if library.exists():
            return library
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(library.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, or the process dies
            if not library.exists():
                log.info("Compiling native kernels (once on this machine) …")
                _compile(command, source, library)
    except OSError as problem:
        raise BuildError(f"nothing can be kept in {folder}: {problem}") from None
    return library


def beforehand(source: Path, level: str) -> str:
    """Name of the file of a library that is compiled for others: it fits this source and this version of PyTorch alone.

    PyTorch's builds for CPUs and for GPUs are one and the same to it.
    """
    version = torch.__version__.partition("+")[0]
    stamp = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    return f"{source.stem}-{stamp}-torch{version}-{level}.so"


def build_beforehand(folder: Path) -> list[Path]:
    """Compile a library for each of ``LEVELS``, for a wheel.

    Raises:
        BuildError: this is no x86-64 with Linux, or there is no compiler, or what it says.
    """
    if platform.system() != "Linux" or not _is_x86():
        raise BuildError(f"libraries for others are compiled on x86-64 with Linux; this is {platform.platform()}")
    compiler, made = _compiler(), []
    for level, (_, flags) in LEVELS.items():
        made.append(folder / beforehand(SOURCE, level))
        _compile(_command(compiler, flags), SOURCE, made[-1])
    return made


def _compile(command: list[str], source: Path, library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="building-") as place:
        made = Path(place) / library.name
        line = [*command, str(source), "-o", str(made), "-ltorch_cpu", "-lc10"]  # libraries come after their users
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
            raise BuildError(f"{command[0]} failed: {lines[0] if lines else f'status {done.returncode}'}")
        os.replace(made, library)


def _compiler() -> str:
    named = os.environ.get("CXX")
    if named:
        return named
    for name in ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found:
            return found
    raise BuildError("there is no C++ compiler (install g++ or clang++, or name one in CXX)")


def _is_x86() -> bool:
    return platform.machine() in ("x86_64", "AMD64")


def _command(compiler: str, instructions: Sequence[str]) -> list[str]:
    root = Path(torch.__file__).parent
    return [
        *shlex.split(compiler), "-std=c++20", "-O3", *instructions, "-fopenmp", "-fPIC", "-shared",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}", f"-L{root / 'lib'}",
    ]


def _processor() -> str:
    """The instructions that this machine has."""
    if platform.system() != "Linux":
        raise BuildError(f"they are written for Linux, this is {platform.system()}")
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError as problem:
        raise BuildError(f"the processor is unknown: {problem}") from None
    found = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    if platform.machine() == "x86_64" and not {"avx2", "fma"} <= set(found.split()):
        raise BuildError("this processor has no AVX2 and FMA")
    return found
