"""OpenVINO as a peer: diffusers' networks converted, in float32 and quantised to 8 bits, weights and activations.

A network is converted when it is first asked for, in a process of its own, to a folder of the system's for temporary
files, and mapped from there: what a subject holds is what a user's process would hold.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import gettempdir
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import folders, peers
from benchmarks.harness import Absent, Made
from sfumato.core.config import to_dict

PLACE = Path(gettempdir()) / "sfumato-benchmark-openvino"
CALIBRATION = (500, 950, 700, 50)
"""Times of the questions, of latents of ``SIZE``, from which the ranges of activations are taken."""
SIZE = 32
INT8 = "-int8"
Inputs = tuple[Tensor, ...]


class UNet(nn.Module):
    """diffusers' U-Net with tensors alone as its arguments."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, pooled: Tensor | None = None, sizes: Tensor | None = None
    ) -> Tensor:
        added = None if pooled is None else {"text_embeds": pooled, "time_ids": sizes}
        y: Tensor = self.network(x, t, context, added_cond_kwargs=added, return_dict=False)[0]
        return y


class Decoder(nn.Module):
    """The decoding half of diffusers' autoencoder."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> Tensor:
        y: Tensor = self.network.decode(z, return_dict=False)[0]
        return y


def unet_inputs(asked: peers.Ask) -> Inputs:
    """A question as ``UNet`` takes it."""
    found = asked.theirs()
    added = found.get("added_cond_kwargs", {})
    return found["sample"], torch.tensor(float(asked.time)), found["encoder_hidden_states"], *added.values()


def network(name: str) -> nn.Module:
    """``unet-M`` or ``decoder-M`` of a model M of ``peers``; with ``-folder`` at the end that of ``folders``."""
    kind, model, *where = name.split("-")
    if kind == "unet":
        return UNet(folders.peer(model, vae=None).unet if where else peers.unet(peers.UNETS[model]))
    return Decoder(folders.peer(model, unet=None).vae if where else peers.autoencoder(peers.VAES[model]))


def examples(name: str) -> list[Inputs]:
    """Questions to it."""
    kind, model, *_ = name.split("-")
    if kind == "decoder":
        return [(peers.latent(peers.VAES[model], SIZE),)]
    return [unet_inputs(peers.ask(peers.UNETS[model], SIZE, seed, time)) for seed, time in enumerate(CALIBRATION)]


def convert(name: str) -> None:
    """Write a network to its folder, whole or not at all; quantised if ``INT8`` ends its name."""
    import openvino

    plain = name.removesuffix(INT8)
    asked = examples(plain)
    if plain == name:
        with torch.inference_mode():
            model = openvino.convert_model(network(name), example_input=asked[0])
    else:
        import nncf

        model = nncf.quantize(
            openvino.Core().read_model(converted(plain)), nncf.Dataset([[x.numpy() for x in one] for one in asked]),
            model_type=nncf.ModelType.TRANSFORMER, subset_size=len(asked),
        )  # fmt: skip
    unfinished = PLACE / f"{name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    openvino.save_model(model, unfinished / "network.xml", compress_to_fp16=False)
    unfinished.rename(PLACE / name)


def converted(name: str) -> Path:
    """The file of a network.

    Raises:
        Absent: without OpenVINO, or without NNCF where it is needed.
        RuntimeError: the conversion failed.
    """
    for package in ("openvino", "nncf")[: 1 + name.endswith(INT8)]:
        if find_spec(package) is None:
            raise Absent(f"{package} is not installed: pip install 'sfumato[bench]'")
    path = PLACE / name / "network.xml"
    if not path.exists():
        print(f"OpenVINO converts {name} …", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, "-m", __name__, name], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"OpenVINO cannot convert it: {(done.stderr.splitlines() or ['?'])[-1]}")
    return path


def opened(name: str, inputs: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], Tensor]:
    """A network, ready for inputs of these shapes; in float32 unless it is quantised."""
    path = converted(name)
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({given.any_name: tuple(x.shape) for given, x in zip(model.inputs, inputs, strict=True)})
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    if not name.endswith(INT8):  # else what is not quantised is computed in what OpenVINO thinks best
        options["INFERENCE_PRECISION_HINT"] = "f32"
    request = core.compile_model(model, "CPU", options).create_infer_request()

    def call(inputs: Sequence[Tensor]) -> Tensor:
        return torch.from_numpy(request.infer([x.numpy() for x in inputs])[0].copy())

    return call


def made_unet(name: str, size: int, int8: bool = False) -> Made:
    """A subject: one of ``peers.UNETS``."""
    inputs = unet_inputs(peers.ask(peers.UNETS[name], size))
    call = opened(f"unet-{name}{INT8 if int8 else ''}", inputs)
    return lambda: call(inputs), {}


def made_decoder(name: str, size: int) -> Made:
    """A subject: one of ``peers.VAES``, on latents of this size."""
    inputs = (peers.latent(peers.VAES[name], size),)
    call = opened(f"decoder-{name}", inputs)
    return lambda: call(inputs), {}


class Stand(SimpleNamespace):
    """What diffusers' pipeline takes for a network: it reads ``config`` and ``dtype``, and calls."""

    call: Callable[..., Tensor]
    config: Any
    dtype = torch.float32

    def __call__(self, *inputs: Any, **options: Any) -> tuple[Tensor]:
        return (self.call(*inputs, **options),)

    def decode(self, z: Tensor, **_: Any) -> tuple[Tensor]:
        return (self.call(z),)


def unet_of_folder(name: str, rows: int, size: int, int8: bool = False) -> Stand:
    """A U-Net of ``folders``."""
    width = peers.UNETS[name].cross_attention_dim
    shapes = torch.empty(rows, 4, size, size), torch.tensor(0.0), torch.empty(rows, 77, width)
    run = opened(f"unet-{name}-folder{INT8 if int8 else ''}", shapes)

    def call(x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        return run((x, t.float(), encoder_hidden_states))

    return Stand(call=call, config=known(peers.UNETS[name]))


def decoder_of_folder(name: str, rows: int, size: int) -> Stand:
    """A decoder of ``folders``."""
    run = opened(f"decoder-{name}-folder", [torch.empty(rows, 4, size, size)])
    return Stand(call=lambda z: run((z,)), config=known(peers.VAES[name]))


def known(config: Any) -> SimpleNamespace:
    """A config as diffusers reads it."""
    return SimpleNamespace(**to_dict(config))


if __name__ == "__main__":
    convert(sys.argv[1])
