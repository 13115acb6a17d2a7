"""Where a model's parts are while they are not used: on the device, or in their files, whole or layer by layer.

A part that rests has its tensors on the meta device and costs nothing; its weights are read again from the mapped
file, which the system keeps in memory as long as it has room. On a GPU this is offloading, on a CPU it is what lets a
model run that is larger than the memory.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from sfumato.checkpoints.lazy import Lazy, Tensors
from sfumato.checkpoints.load import place
from sfumato.families.types import Model

Where = Literal["resident", "parts", "layers"]


@dataclass(frozen=True)
class Holding:
    """How a model is held while it draws.

    Attributes:
        where: ``resident``: every part stays on the device; ``parts``: a part is there from its first use to that of
            another; ``layers``: each layer only while it computes.
        rows: the most rows of one forward; pictures beyond are drawn in further runs.
        tile: side of the decoder's tiles in latent positions; None: whole pictures, tiles only where they are huge.
        growth: for ``resident`` on a CPU: the layers are packed, and the denoiser's weights may grow by so much (see
            ``engine.pack``); None: they stay as they are.
        recorded: the forwards of what is ``resident`` on a GPU may be recorded (see ``engine.recorded``): what memory
            they need stays taken.
    """

    where: Where = "resident"
    rows: int = 16
    tile: int | None = None
    growth: float | None = None
    recorded: bool = True


USUAL = Holding()
"""Where memory is no question."""


class Keeper:
    """Wakes the parts that are about to be used, and lays others to rest.

    Only parts that can be read again rest (``Model.files``); others stay where they are.

    Args:
        models: all that share the memory.
    """

    def __init__(self, where: Where, *models: Model) -> None:
        self.where = where
        self.models = models

    def use(self, model: Model, *names: str) -> None:
        """These parts of a model are used next. Their modules may be new ones: look them up in ``parts`` again."""
        if self.where == "parts":
            for other in self.models:
                for name in other.files:
                    if other is not model or name not in names:
                        rest(other, name)
        for name in names:
            if self.where == "layers":
                wake_layers(model, name)
            else:
                wake(model, name)

    def use_texts(self, model: Model) -> None:
        """What encodes prompts is used next: all parts but the denoiser and the autoencoder."""
        self.use(model, *model.text_parts)


def asleep(module: nn.Module) -> bool:
    """Whether a part's weights are in its file only: where the first is, all are."""
    first = next(module.parameters(), None)
    return first is not None and first.is_meta


def wake(model: Model, name: str) -> None:
    """Bring a part to the model's device, if it rests."""
    if asleep(model.parts[name]):
        last = model.device.type != "cpu"
        model.parts[name] = model.files[name].load(model.dtype, model.device, channels_last=last)


def rest(model: Model, name: str) -> None:
    """Give up a part's weights; what it occupied of memory is free, the pages of its file included."""
    part = model.files[name]
    if not asleep(model.parts[name]):
        model.parts[name] = part.outline(model.dtype)
        model.packed.discard(name)
    for tensor in part.tensors.values():
        tensor.release()


def wake_layers(model: Model, name: str) -> None:
    """From now on, each layer of the part comes to the device when it is called, and goes when it has answered."""
    if name not in model.files:
        return
    if not any(isinstance(hook, Visit) for m in model.parts[name].modules() for hook in m._forward_hooks.values()):
        rest(model, name)
        for path, layer in model.parts[name].named_modules():
            visit = Visit(layer, path, model.files[name].tensors, model.device)
            if visit.files:
                layer.register_forward_pre_hook(visit.come)
                layer.register_forward_hook(visit, always_call=True)


class Visit:
    """The tensors of a layer, which are on the device only while it computes.

    Tables of embeddings come with the module that owns them too, since it may read them without calling them.
    """

    def __init__(self, layer: nn.Module, path: str, tensors: Tensors, device: torch.device) -> None:
        self.device = device
        self.files: dict[tuple[nn.Module, str], Lazy] = {}
        tables = [(name, child) for name, child in layer.named_children() if isinstance(child, nn.Embedding)]
        for inner, owner in [("", layer), *tables]:
            for name, _ in owner.named_parameters(recurse=False):
                self.files[owner, name] = tensors[".".join(filter(None, (path, inner, name)))]
        self.nothing: dict[tuple[nn.Module, str], nn.Parameter] = {}

    def come(self, *_: Any) -> None:
        """Before the layer computes."""
        for (owner, name), tensor in self.files.items():
            absent = owner.get_parameter(name)
            if absent.is_meta:  # else its owner has brought it already
                there = place(tensor, absent.dtype, self.device, channels_last=self.device.type != "cpu")
                self.nothing[owner, name] = absent
                owner._parameters[name] = nn.Parameter(there, requires_grad=False)

    def __call__(self, *_: Any) -> None:
        """When it has answered, or failed."""
        for (owner, name), absent in self.nothing.items():
            owner._parameters[name] = absent
            self.files[owner, name].release()
        self.nothing.clear()
