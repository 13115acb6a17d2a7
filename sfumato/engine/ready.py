"""A model made ready to draw fast on the device it is on, with the same result unless 8 bits are asked for."""

from collections.abc import Container

import torch

from sfumato.core.errors import ConfigError
from sfumato.engine import lossy
from sfumato.engine.compiled import Mode, compile_denoiser
from sfumato.engine.pack import BALANCED, FAST, Packing, pack
from sfumato.families.types import TINY, Model


def make_ready(
    model: Model, int8: bool = False, again: Container[str] | None = None, compiled: Mode | None = None
) -> None:
    """Pack the denoiser and the autoencoder for the CPU, where native kernels are to be had; elsewhere do nothing.

    Afterwards the networks can no longer be trained or changed, nor rest in their files. What was done, or why nothing
    was, is added to the model's notes.

    Args:
        int8: the denoiser multiplies in 8 bits, which is lossy; see ``pack``.
        again: only these parts, which were read once more since; nothing new is noted.
        compiled: the denoiser is left to PyTorch's compiler, on any device; see ``compile_denoiser``.

    Raises:
        ConfigError: ``int8`` elsewhere than on the CPU in float32.
    """
    if int8 and (model.device.type, model.dtype) != ("cpu", torch.float32):
        raise ConfigError(
            f"quantize = 'int8' is for the CPU in float32, and this is on {model.device} in {model.dtype}: leave it "
            "out, or open the model there."
        )
    if compiled is not None and (again is None or model.family.denoiser in again):
        compile_denoiser(model, compiled)
    if model.device.type != "cpu":
        return
    if again is not None:
        if model.family.denoiser in again and compiled is None:
            ready(model, model.family.denoiser, BALANCED, int8)
        return
    # The autoencoder's weights are few and its pictures large: there transformed weights cost little and gain most.
    done = [
        *([] if compiled is not None else [ready(model, model.family.denoiser, BALANCED, int8)]),
        *(ready(model, name, FAST) for name in ("vae", TINY) if name in model.parts),
    ]
    if count := sum(packing.int8 for packing in done):
        model.opened = {**model.opened, "quantize": "int8"}  # a picture's recipe tells it
        model.notes.append(f"Multiplied in 8 bits in {count} layers of the denoiser: lossy. {lossy.costs(['int8'])}")
    if why := next((packing.why for packing in done if packing.why), ""):
        model.notes.append(f"Without native kernels, so slower: {why}.")
    else:
        layers = sum(packing.layers for packing in done)
        model.notes.append(f"Native kernels in {layers} layers, {sum(p.winograd for p in done)} of them by Winograd.")


def ready(model: Model, name: str, growth: float, int8: bool = False) -> Packing:
    """Pack one part, giving the pages of its file back layer by layer: plain weights never stand beside packed ones."""
    part = model.files.get(name)

    def release(layer: str) -> None:
        if part is not None:
            for key, tensor in part.tensors.items():
                if key.startswith(f"{layer}."):
                    tensor.release()

    packing = pack(model.parts[name], growth, release, int8)
    if packing.layers:
        model.files.pop(name, None)
    return packing
