"""What a stage begins with where it does not begin with nothing: the weights of a model that is there already."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sfumato.adapters.trained import refuse_trained
from sfumato.checkpoints.diffusers import read_folder, read_part
from sfumato.checkpoints.hub import locate
from sfumato.checkpoints.lazy import Tensors
from sfumato.checkpoints.load import check_fit
from sfumato.checkpoints.parts import Part
from sfumato.checkpoints.sniff import sniff
from sfumato.core.config import to_dict
from sfumato.core.errors import CheckpointError, ConfigError
from sfumato.families.load import in_file
from sfumato.noise.schedule import Discrete
from sfumato.sampling.diffusers_config import from_diffusers
from sfumato.sampling.plan import Plan
from sfumato.text import tokenizer
from sfumato.text.tokenizer import ClipTokenizer

OF_THE_DATA = ("sample_size", "scaling_factor", "shift_factor")
"""Settings that follow from what a network is trained on; no weight hangs on them."""


@dataclass(frozen=True)
class Start:
    """A model to go on from. Headers and configs are read; weights are not.

    Attributes:
        source: as the recipe names it.
        parts: by their names in a model folder; a network that was named alone stands under ``""``.
        tokenizers: by their names in a model folder.
        scheduler: how it is sampled, in the words of scheduler_config.json; empty where a network was named alone.
        options: with which ``families.load.open_model`` opens the same model.
    """

    source: str
    parts: Mapping[str, Part]
    tokenizers: Mapping[str, ClipTokenizer] = field(default_factory=dict)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def part(self, kinds: tuple[str, ...]) -> Part:
        """The part that is of one of these classes.

        Raises:
            ConfigError: there is none.
        """
        for part in self.parts.values():
            if part.kind in kinds:
                return part
        there = ", ".join(part.kind for part in self.parts.values())
        raise ConfigError(f"start = {self.source!r}: a {' or '.join(kinds)} is asked for; there is {there}.")

    def agree(self, ours: Plan) -> None:
        """Refuse a network that was taught to say something else than the recipe asks it for.

        Raises:
            ConfigError: its scheduler tells of another prediction or schedule.
        """
        if not self.scheduler:
            return
        theirs = from_diffusers(self.scheduler)
        apart = []
        if theirs.prediction != ours.prediction:
            apart.append(f"prediction was {theirs.prediction!r} there and is {ours.prediction!r} here")
        a, b = theirs.schedule, ours.schedule
        alike = type(a) is type(b)
        if isinstance(a, Discrete) and isinstance(b, Discrete):
            alike = a.steps == b.steps and bool((a.alphas_bar - b.alphas_bar).abs().max() < 1e-4)
        if not alike:
            shown = [key for key in self.scheduler if key.startswith(("beta", "num_train", "rescale"))]
            about = ", ".join(f"{key} = {self.scheduler[key]!r}" for key in shown)
            apart.append(f"its schedule is another ({self.scheduler['_class_name']}: {about})")
        if apart:
            raise ConfigError(
                f"start = {self.source!r} was trained otherwise than this recipe says: {'; '.join(apart)}. Set "
                "[diffusion] prediction and [diffusion.schedule] to the same, or start from the folder of its network "
                "alone, which says nothing of either."
            )


def open_start(source: str, prediction: str) -> Start:
    """A model folder (a run's is one), a single file, a name on the hub, or the folder of one network alone.

    Args:
        prediction: decides between models whose single files show the same.

    Raises:
        CheckpointError: it is none of these.
    """
    path = locate(source)
    if sniff(path) != "folder":
        options = {}
        try:
            found = in_file(path, None, None)
        except CheckpointError:
            found = in_file(path, None, prediction)
            options = {"prediction": prediction}
        return Start(source, found.parts, found.tokenizers, found.scheduler, options)
    refuse_trained(path)
    if (path / "model_index.json").is_file():
        folder = read_folder(path)
        tokenizers = {name: tokenizer.load(place) for name, place in folder.tokenizers.items()}
        return Start(source, folder.parts, tokenizers, folder.schedulers.get("scheduler", {}))
    if (path / "config.json").is_file():
        return Start(source, {"": read_part(path)})
    raise CheckpointError(f"start = {source!r} is no model and no network: it has no model_index.json or config.json.")


def settle(part: Part, table: Any | None, name: str) -> Any:
    """The config of the network that goes on from ``part``: its own.

    Args:
        table: what the recipe says of the network; nothing, or the same.
        name: of the table, for messages.

    Raises:
        ConfigError: it says something else; each difference is named.
    """
    if table is None:
        return part.config
    if type(table) is not type(part.config):
        raise ConfigError(f"[{name}] describes another kind of network than {part.where}, a {part.kind}.")
    theirs = to_dict(part.config)
    apart = [f"  {key}: {theirs[key]!r} there, {value!r} in the recipe" for key, value in to_dict(table).items()
             if key not in OF_THE_DATA and value != theirs[key]]  # fmt: skip
    if apart:
        raise ConfigError(
            f"[{name}] describes another network than the one to start from, {part.where}:\n" + "\n".join(apart)
            + "\nLeave the table out: the model's own config is taken."
        )
    return part.config


def shared_embedding(part: Part) -> Tensors:
    """The weights of a DiT with the first block's embedding of time and class alone, which stands for all.

    Raises:
        CheckpointError: the blocks' embeddings differ.
    """
    kept, first = {}, "transformer_blocks.0.norm1.emb."
    for name, tensor in part.tensors.items():
        found = re.fullmatch(r"transformer_blocks\.\d+\.norm1\.emb\.(.*)", name)
        if found is None or name.startswith(first):
            kept[name] = tensor
        elif not tensor.read().equal(part.tensors[first + found[1]].read()):
            raise CheckpointError(f"{part.where}: {name} is not the first block's; blocks are trained with one here.")
    return kept


def begin(network: nn.Module, part: Part, tensors: Tensors | None = None) -> None:
    """Give a network the weights of ``part``, in its own precision; the files stay as they are.

    Args:
        tensors: in place of the part's.

    Raises:
        CheckpointError: they are not this network's; missing, unknown and misshapen ones are named.
    """
    tensors = part.tensors if tensors is None else tensors
    own = network.state_dict()
    check_fit({n: tuple(t.shape) for n, t in own.items()}, tensors, type(network).__name__, part.where, part.seems)
    for name, tensor in own.items():
        tensor.copy_(tensors[name].read())
        tensors[name].release()
