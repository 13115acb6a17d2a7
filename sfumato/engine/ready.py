"""A model made ready to draw fast on the device it is on, with the same result unless 8 bits are asked for."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from torch import nn

from sfumato.core.errors import ConfigError
from sfumato.core.sizes import show_bytes
from sfumato.engine import lossy
from sfumato.engine.allocator import return_freed_memory
from sfumato.engine.compiled import Mode, compile_decoders, compile_denoiser
from sfumato.engine.pack import BALANCED, FAST, SMALL, Eight, Packing, pack
from sfumato.engine.residence import rest, wake
from sfumato.families.types import CONTROL, TINY, Model
from sfumato.nn import float8
from sfumato.nn.transformer import Attention

Shapes = Mapping[str, Sequence[int]]


def check_eight(model: Model, eight: Eight) -> None:
    """Refuse to multiply in 8 bits where it cannot be done.

    Raises:
        ConfigError: ``int8`` elsewhere than on the CPU in float32; ``fp8`` on a GPU whose chip has no such products.
    """
    where = f"{model.device} in {str(model.dtype).removeprefix('torch.')}"
    if eight == "int8" and not is_exact(model):
        raise ConfigError(
            f"quantize = 'int8' is for the CPU in float32, and this is on {where}: leave it out, open the model there, "
            "or try 'fp8'."
        )
    if eight == "fp8" and model.device.type != "cpu":
        why = float8.why_not(model.device)
        if not why and model.dtype == torch.float32:
            why = "what is between the products would stay in float32"
        if why:
            raise ConfigError(f"quantize = 'fp8' cannot be had on {where}: {why}. Leave it out.")


def is_exact(model: Model) -> bool:
    """Whether layers can be packed for the CPU."""
    return (model.device.type, model.dtype) == ("cpu", torch.float32)


def make_ready(
    model: Model, eight: Eight | None = None, growth: float = BALANCED, shapes: Shapes = MappingProxyType({}),
    why: str = "", again: bool = False, compiled: Mode | None = None,
) -> list[str]:
    """Pack the denoiser, what controls it and the decoders for the CPU, where native kernels are to be had.

    On a GPU, and in half precision, the denoiser's self-attentions make queries, keys and values by one product, and
    its linear layers may multiply in 8 bits. A control network never does: it is as exact as without.

    Afterwards the networks can no longer be trained or changed. What was done, or why nothing was, is added to the
    model's notes.

    Args:
        eight: how the denoiser multiplies in 8 bits, if it does, which is lossy; see ``pack``.
        growth: how much larger the denoiser's weights may become, and a control network's as much; with 0 the
            decoders' do not grow either.
        shapes: of the pictures that the denoiser's convolutions will be given, by the layers' names.
        why: so much and no more, for the notes.
        again: the denoiser alone, which was read once more since; nothing new is noted.
        compiled: the denoiser is left to PyTorch's compiler, on any device, and what decodes where it is not packed.

    Returns:
        The notes that were added.

    Raises:
        ConfigError: ``eight`` cannot be had here; see ``check_eight``.
    """
    if eight is not None:
        check_eight(model, eight)
    if compiled is not None:
        compile_denoiser(model, compiled)
        if not again and not is_exact(model):
            compile_decoders(model, compiled)
    if not is_exact(model):
        fuse(model)
    names = packable(model, eight)[: 1 if again else None]
    if compiled is not None and eight is None:
        names = [name for name in names if name != model.family.denoiser]
    for name in names:
        wake(model, name)
    done = pack_parts(model, model.parts, eight, growth, shapes, names, partial(_release, model))
    model.packed.update(name for name, packing in zip(names, done, strict=True) if packing.layers)
    if again:
        return []
    notes = []
    if count := sum(packing.eight for packing in done):
        assert eight is not None
        model.opened = {**model.opened, "quantize": eight}  # a picture's recipe tells it
        notes.append(f"Multiplied in 8 bits ({eight}) in {count} layers of the denoiser: lossy. {lossy.costs([eight])}")
        if eight == "fp8" and (why_slow := float8.why_not(model.device)):
            notes.append(f"Products in fp8 are slower here than in full: {why_slow}.")
    reason = next((packing.why for packing in done if packing.why), "")
    if model.device.type == "cpu" and reason:
        notes.append(f"Without native kernels, so slower: {reason}.")
    elif model.device.type == "cpu":
        if eight == "int8" or compiled is not None:
            why = ""
        elif done[0].after < 0.98 * (1 + growth) * done[0].before:
            why = "all that helps"
        layers, winograd = sum(packing.layers for packing in done), sum(p.winograd for p in done)
        before, after = sum(packing.before for packing in done), sum(packing.after for packing in done)
        notes.append(
            f"Native kernels in {layers} layers, {winograd} of them by Winograd; their weights take "
            f"{show_bytes(after)} where they took {show_bytes(before)}{why and f': {why}'}."
        )
    model.notes.extend(notes)
    return notes


def fuse(model: Model) -> None:
    """Let self-attentions at every step make queries, keys and values by one product, layer by layer."""
    for name in model.stepping:
        wake(model, name)
        for module in model.parts[name].modules():
            if isinstance(module, Attention):
                module.fuse()
                model.packed.add(name)


def packable(model: Model, eight: Eight | None = None) -> list[str]:
    """The parts whose layers are replaced on the model's device: the denoiser first, then what decodes."""
    if model.device.type != "cpu":
        return [model.family.denoiser] if eight is not None else []
    return [name for name in (*model.stepping, "vae", TINY) if name in model.parts]


def pack_parts(
    model: Model, parts: Mapping[str, nn.Module], eight: Eight | None, growth: float, shapes: Shapes,
    names: Sequence[str], packed_now: Callable[[str, str], None] = lambda name, layer: None,
) -> list[Packing]:
    """Pack a model's parts, or outlines of them on the meta device, in place.

    Args:
        names: of the parts that are to be packed, of those that are ``packable``.
        packed_now: is told the part's name, and in what is packed of it the layer's, of each layer whose plain weights
            are needed no more.
    """
    done = []
    for name in names:
        network = what_is_packed(model, parts, name)
        if name in model.stepping:
            side, coarse = model.size // model.latent.factor, eight if name != CONTROL else None
            done.append(pack(network, growth, partial(packed_now, name), coarse, shapes, side))
        else:
            # Its weights are few and its pictures large: there transformed weights cost little and gain most.
            most = FAST if growth > SMALL else SMALL
            done.append(pack(network, most, partial(packed_now, name), side=model.size))
    return done


def what_is_packed(model: Model, parts: Mapping[str, nn.Module], name: str) -> nn.Module:
    """Of a packable part: what computes at every step whole, of an autoencoder what decodes."""
    return parts[name] if name in model.stepping else parts[name].get_submodule("decoder")


def unpack(model: Model) -> None:
    """Parts that were packed are plain again, and rest in their files; one that has none stays as it is."""
    for name in [*model.packed]:
        if name in model.files:
            rest(model, name)
    return_freed_memory()


def _release(model: Model, name: str, layer: str) -> None:
    """Give the pages of its file back: plain weights never stand beside packed ones."""
    part = model.files.get(name)
    if part is not None:
        within = "" if name in model.stepping else "decoder."
        for key, tensor in part.tensors.items():
            if key.startswith(f"{within}{layer}."):
                tensor.release()
