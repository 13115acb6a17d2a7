"""A model with other adapters than it had: the parts that they change are read from their files again."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sfumato.adapters.file import locate, merged, open_adapter, recognise
from sfumato.adapters.types import Applied, Wanted
from sfumato.core.errors import CheckpointError
from sfumato.families.types import Model


def adapt(model: Model, wanted: Sequence[Wanted], folder: Path | None = None) -> tuple[str, ...]:
    """Merge these adapters into a model, in place of those it had; none: it is again what its files say, bit for bit.

    Every part that is or was changed is read again, so packing and whatever else was done to its layers is undone.
    Where the parts rest in their files, the changes are made each time they are woken.

    Args:
        folder: where adapters that a prompt names lie.

    Returns:
        The names of the parts that are new.

    Raises:
        CheckpointError: an adapter that is missing, damaged, none, or made for another model; the model is as it was.
        RequestError: see ``adapters.file.locate``.
    """
    if [*wanted] == [applied.wanted for applied in model.adapters]:
        return ()
    names = [name for name in model.parts if name == model.family.denoiser or name.startswith("text_encoder")]
    if lacking := [name for name in names if name not in model.whole]:
        raise CheckpointError(f"{', '.join(lacking)}: not read from files, so nothing can be merged into it.")
    parts = {name: model.whole[name] for name in names}
    opened, found = [], []
    for one in wanted:
        file = open_adapter(locate(one, folder))
        changes = recognise(file, parts)
        layers = {change.layer for change in changes}
        count = Counter(layer.part for layer in layers if one.strength(layer.part))
        hashes = file.hashes
        short = hashes.autov3 or hashes.autov2
        opened.append(Applied(one, file.path, hashes.sha256, short, {n: count[n] for n in names if count[n]}))
        found.append((one, changes))
    before, after = ({name for applied in some for name in applied.layers} for some in (model.adapters, opened))
    affected = tuple(name for name in names if name in before | after)
    for name in affected:
        asleep = any(parameter.is_meta for parameter in model.parts[name].parameters())
        part = merged(parts[name], name, [(changes, one.strength(name)) for one, changes in found])
        model.files[name] = part
        model.parts[name] = part.outline(model.dtype)  # the old weights are given up before the new ones are read
        if not asleep:
            model.parts[name] = part.load(model.dtype, model.device, channels_last=model.device.type != "cpu")
    model.adapters = tuple(opened)
    return affected
