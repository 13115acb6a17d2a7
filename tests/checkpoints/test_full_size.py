"""Loading at true size: what it costs in memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sfumato.checkpoints.diffusers import Folder, write_folder
from sfumato.checkpoints.lazy import Lazy
from sfumato.checkpoints.ldm import class_of
from sfumato.checkpoints.load import shapes_of
from sfumato.checkpoints.parts import Part
from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.unet import UNetConfig
from tests.checkpoints.models import TRUE
from tests.conftest import ROOT

LOAD = """
import sys, time
from pathlib import Path
import torch
from sfumato.checkpoints.diffusers import read_folder
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
before, start = peak(), time.perf_counter()
folder = read_folder(Path(sys.argv[1]))
modules = [part.load() for part in folder.parts.values()]
loaded = time.perf_counter()
touched = sum(float(p.detach().flatten()[::1024].sum()) for m in modules for p in m.parameters())
ratio = (peak() - before) / sum(p.numel() * 4 for m in modules for p in m.parameters())
seconds = f"opened in {loaded - start:.2f} s, every page touched after {time.perf_counter() - start:.2f} s"
print(f"peak {ratio:.3f} times the weights; {seconds}", file=sys.stderr)
print(ratio)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_whole_model_costs_its_size_once(tmp_path: Path) -> None:
    """Stable Diffusion 1.5 in float32, 4.3 GB: at most 1.15 times that in memory, every page of it touched."""
    layout, parts = TRUE["sd1"], {}
    configs: dict[str, UNetConfig | AutoencoderConfig | ClipTextConfig]
    configs = {"unet": layout.unet, "vae": layout.vae, "text_encoder": layout.text["text_encoder"].config}
    for name, config in configs.items():
        empty = Part(class_of(config), config, {}, name)
        tensors = {k: _zeros(shape) for k, shape in shapes_of(empty.build).items()}
        parts[name] = Part(empty.kind, config, tensors, name)
    write_folder(tmp_path / "model", Folder("StableDiffusionPipeline", parts))
    size = sum(path.stat().st_size for path in (tmp_path / "model").rglob("*.safetensors"))
    assert size == pytest.approx(4 * (859_520_964 + 83_653_863 + 123_060_480), rel=1e-3)
    command = [sys.executable, "-c", LOAD, str(tmp_path / "model")]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    print(done.stderr)
    assert float(done.stdout) < 1.15


def _zeros(shape: tuple[int, ...]) -> Lazy:
    return Lazy(shape, torch.float32, lambda: torch.zeros(shape))
