"""The parts of a model: each class of the ecosystem, what stands for it here, and how its config.json is read."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from sfumato.checkpoints.lazy import Lazy, Tensors
from sfumato.checkpoints.load import check_fit, load_into, outlines
from sfumato.checkpoints.store import File
from sfumato.core.config import fields, from_dict, to_dict
from sfumato.core.errors import CheckpointError, ConfigError, nearest

Inert = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Kind:
    """A class of the ecosystem that is read and written.

    Attributes:
        module: ``"package.module:attribute"`` of the network.
        config: the same of its config dataclass, whose field names are those of config.json.
        stem: of the weight file, as diffusers or transformers name it.
        pickle_stem: of the older, pickled weight file.
        fixed: fields of the config that the class's name settles; they are not in config.json.
        inert: fields of config.json that the config does not have, and the values at which they change nothing here
            (beside those that the config class lists itself as ``fixed``).
        notes: fields that tell of the file and not of the network.
        spellings: (pattern, replacement) of parameter names in older and newer files.
        extra: what config.json says beside the config.
    """

    module: str
    config: str
    stem: str = "diffusion_pytorch_model"
    pickle_stem: str = "diffusion_pytorch_model"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    inert: Inert = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


_CLIP_NOTES = (
    "architectures", "chunk_size_feed_forward", "dtype", "id2label", "initializer_factor", "initializer_range",
    "is_decoder", "is_encoder_decoder", "label2id", "model_type", "output_attentions", "output_hidden_states",
    "problem_type", "return_dict", "tie_word_embeddings", "torch_dtype", "torchscript", "transformers_version",
    "use_cache",
)
_CLIP_INERT: Inert = {"attention_dropout": (0,), "dropout": (0,)}

# diffusers before 0.17 named the autoencoder's attention otherwise; its group norm has kept its name.
_OLD_ATTENTION = tuple(
    (rf"(.*\.attentions\.\d+\.){old}\.(weight|bias)", rf"\g<1>{new}.\g<2>")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
)
# transformers 5 leaves the tower's own name out where the tower is all that there is.
_BARE_TEXT = ((r"((?:embeddings|encoder|final_layer_norm)\..*)", r"text_model.\g<1>"),)
_BARE_VISION = ((r"((?:embeddings|encoder|pre_layrnorm|post_layernorm)\..*)", r"vision_model.\g<1>"),)


def _clip(module: str, config: str, model_type: str, bare: tuple[tuple[str, str], ...], **fixed: Any) -> Kind:
    return Kind(
        module, config, "model", "pytorch_model", fixed, _CLIP_INERT, _CLIP_NOTES, bare, {"model_type": model_type}
    )


_CLIP_TEXT = "sfumato.models.clip_text:ClipText", "sfumato.models.clip_text:ClipTextConfig", "clip_text_model"
_DIT = "sfumato.models.dit:DiT", "sfumato.models.dit:DiTConfig"
_DIT_SAYS = {
    "activation_fn": "gelu-approximate", "attention_bias": True, "norm_elementwise_affine": False,
    "norm_type": "ada_norm_zero",
}
_AUTOENCODER = "sfumato.models.autoencoder:Autoencoder", "sfumato.models.autoencoder:AutoencoderConfig"

KINDS: Mapping[str, Kind] = {
    "UNet2DConditionModel": Kind("sfumato.models.unet:UNet", "sfumato.models.unet:UNetConfig"),
    "ControlNetModel": Kind("sfumato.models.controlnet:ControlNet", "sfumato.models.controlnet:ControlNetConfig"),
    "UNet2DModel": Kind(
        "sfumato.models.unet_unconditional:UnconditionalUNet",
        "sfumato.models.unet_unconditional:UnconditionalUNetConfig",
        spellings=_OLD_ATTENTION,
    ),
    "DiTTransformer2DModel": Kind(*_DIT),
    "Transformer2DModel": Kind(*_DIT, extra=_DIT_SAYS),  # as DiT was published, before it had a class of its own
    "AutoencoderKL": Kind(*_AUTOENCODER, spellings=_OLD_ATTENTION),
    "AutoencoderTiny": Kind(
        "sfumato.models.tiny_autoencoder:TinyAutoencoder", "sfumato.models.tiny_autoencoder:TinyConfig"
    ),
    "VQModel": Kind(
        "sfumato.models.vq_autoencoder:VQAutoencoder",
        "sfumato.models.vq_autoencoder:VQConfig",
        spellings=_OLD_ATTENTION,
    ),
    "CLIPTextModel": _clip(*_CLIP_TEXT, _BARE_TEXT, with_projection=False),
    "CLIPTextModelWithProjection": _clip(*_CLIP_TEXT, _BARE_TEXT, with_projection=True),
    "CLIPVisionModelWithProjection": _clip(
        "sfumato.models.clip_vision:ClipVision",
        "sfumato.models.clip_vision:ClipVisionConfig",
        "clip_vision_model",
        _BARE_VISION,
    ),
}
"""Class name in model_index.json or config.json -> how it is read and written."""

IGNORED_BUFFERS = r"(.*\.)?position_ids"
"""Buffers that older files hold and that are functions of the config: 0, 1, 2, …."""


def resolve(target: str) -> Any:
    """What ``"package.module:attribute"`` names."""
    module, attribute = target.split(":")
    return getattr(import_module(module), attribute)


def kind_of(name: str, where: str) -> Kind:
    """The entry of a class name.

    Raises:
        CheckpointError: a class that is not read here.
    """
    if name not in KINDS:
        raise CheckpointError(f"{where}: the class {name!r} is not read here{nearest(name, KINDS)}")
    return KINDS[name]


def read_config(name: str, settings: Mapping[str, Any], where: str) -> Any:
    """config.json -> the config dataclass of that class.

    A field that the dataclass has is taken. Null where the dataclass takes no null means "not set". Any other field has
    to be one that changes nothing at the value it has.

    Raises:
        CheckpointError: a field that would change the network in a way that is not built here, or values that the
            dataclass refuses.
    """
    kind = kind_of(name, where)
    cls = resolve(kind.config)
    known = {f.name: f for f in fields(cls)}
    inert = {**{key: (value,) for key, value in getattr(cls, "fixed", {}).items()}, **kind.inert}
    taken: dict[str, Any] = dict(kind.fixed)
    for key, value in settings.items():
        if key.startswith("_") or key in kind.notes:
            continue
        if key in known and key not in kind.fixed:
            if value is not None or type(None) in get_args(known[key].type):
                taken[key] = value
        elif key not in inert:
            raise CheckpointError(f"{where}: {key} = {value!r} is unknown to {name} here{nearest(key, known)}")
        elif value not in inert[key] and ... not in inert[key]:
            allowed = " or ".join(map(repr, inert[key]))
            raise CheckpointError(f"{where}: {key} = {value!r} is not built here; {name} is read with {allowed}.")
    try:
        return from_dict(cls, taken, where)
    except ConfigError as problem:
        raise CheckpointError(str(problem)) from None


def write_config(name: str, config: Any, dtype: torch.dtype | None) -> dict[str, Any]:
    """The config dataclass -> config.json, which ``read_config`` and the ecosystem's own class read back."""
    kind = KINDS[name]
    own = {f.name: f.default for f in fields(type(config)) if f.name in getattr(config, "own", ())}
    settings = {
        key: value for key, value in to_dict(config).items()
        if key not in kind.fixed and not (key in own and value == own[key])  # the ecosystem does not know these
    }
    if kind.stem == "model":  # transformers' style
        precision = {"torch_dtype": str(dtype).removeprefix("torch.")} if dtype else {}
        return {"architectures": [name], **kind.extra, **precision, **settings}
    return {"_class_name": name, **kind.extra, **settings}


def our_names(name: str, tensors: Tensors) -> dict[str, Lazy]:
    """Parameters of that class under the names used here, whichever version of the ecosystem wrote them."""
    result: dict[str, Lazy] = {}
    for key, tensor in tensors.items():
        if re.fullmatch(IGNORED_BUFFERS, key):
            continue
        for pattern, replacement in KINDS[name].spellings:
            key = re.sub(f"^(?:{pattern})$", replacement, key)
        result[key] = tensor
    return result


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint: what it is, how large, and its weights, not read yet.

    Attributes:
        kind: its class in the ecosystem, a key of ``KINDS``.
        config: its config dataclass.
        tensors: its weights under the names used here.
        where: file or folder, for messages.
        left_behind: names in the file that no module needs and that were not taken.
        seems: what the file seems to be, for messages.
        file: the opened weight file, where this part has one of its own.
        paths: the files that its weights are read from, shared ones included; none where they are in memory.
    """

    kind: str
    config: Any
    tensors: Tensors
    where: str
    left_behind: tuple[str, ...] = ()
    seems: str = ""
    file: File | None = None
    paths: tuple[Path, ...] = ()

    @property
    def build(self) -> Callable[[], nn.Module]:
        """Makes the network, with random weights."""
        module, config = resolve(KINDS[self.kind].module), self.config
        return lambda: module(config)

    def load(
        self, dtype: torch.dtype | None = None, device: torch.device | str = "cpu", channels_last: bool = False
    ) -> Any:
        """The network with its weights; see ``load_into``."""
        return load_into(
            self.build,
            self.tensors,
            self.where,
            dtype=dtype,
            device=device,
            channels_last=channels_last,
            seems=self.seems,
        )

    def outline(self, dtype: torch.dtype) -> nn.Module:
        """The network without weights, on the meta device, in this precision.

        Raises:
            CheckpointError: the file's weights are not this network's.
        """
        with outlines():
            module = self.build().eval()
        shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        check_fit(shapes, self.tensors, type(module).__name__, self.where, self.seems)
        return module.to(dtype)
