"""The Python face: ``pipe = sfumato.load(source); pipe("a red apple").images[0]``."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from sfumato.adapters.wanted import asked
from sfumato.core.errors import ConfigError, RequestError, nearest
from sfumato.core.request import Request
from sfumato.core.shipped import SHIPPED
from sfumato.core.sizes import parse_bytes
from sfumato.engine.compiled import Mode
from sfumato.engine.driver import OnStep
from sfumato.engine.rates import rates
from sfumato.engine.ready import make_ready
from sfumato.families.adapt import adapt
from sfumato.families.load import open_model
from sfumato.families.types import Model
from sfumato.tasks import TASKS, aliases
from sfumato.tasks.forecast import Forecaster
from sfumato.tasks.text_to_image import Result


def load(
    source: str = SHIPPED, *, refiner: str | None = None, optimize: bool = True, max_memory: str | int | None = None,
    quantize: Literal["int8"] | None = None, compile: Mode | None = None, lora_folder: str | Path | None = None,
    **options: Any,
) -> "Pipeline":
    """Open a model and be ready to draw.

    Args:
        source: a model folder, a single checkpoint file, or a hub name; the model that comes with sfumato unless given.
        refiner: another, which takes over at a request's ``refiner_start``.
        optimize: make the networks fast before the first picture, after which they can no longer be changed; see
            ``Pipeline.make_ready``.
        max_memory: what drawing may hold, such as ``"6GB"``: of the process on a CPU, of what PyTorch allocates on a
            GPU. Weights then stay in their files until they are needed, and each request is drawn in a way that fits,
            with plain kernels.
        quantize: ``"int8"``: the denoisers multiply in 8 bits. Lossy; CPU and float32 only.
        compile: leave the denoiser to PyTorch's compiler, in this mode; see ``engine.compiled``.
        lora_folder: where ``<lora:name:0.8>`` in a prompt finds ``name.safetensors``. A picture's LoRAs are merged into
            the networks before it is drawn, and stay until a request asks for others.
        options: see ``families.load.open_model``: device, dtype, vae, variant, family, prediction.

    Raises:
        CheckpointError: it is not a model, or not one that is known here.
        ConfigError: ``quantize`` or ``compile`` where it cannot be had.
    """
    if compile is not None and (quantize is not None or not optimize or max_memory is not None):
        raise ConfigError(
            f"compile = {compile!r} is another way to compute the denoiser than quantize, and needs it to stay in "
            "memory (no max_memory) and to be optimised: use one or the other."
        )
    if compile is not None and compile not in get_args(Mode):
        raise ConfigError(f"compile = {compile!r}{nearest(compile, get_args(Mode))}")
    if quantize is not None and (not optimize or max_memory is not None):
        raise ConfigError(
            f"quantize = {quantize!r} changes the networks' layers, which max_memory and optimize=False leave as they "
            "are: use one or the other."
        )
    device = {k: v for k, v in options.items() if k in ("device", "dtype", "variant")}
    asleep = max_memory is not None
    model = open_model(source, **options, asleep=asleep)
    other = open_model(refiner, **device, asleep=asleep) if refiner else None
    pipeline = Pipeline(model, other, max_memory, None if lora_folder is None else Path(lora_folder))
    if lora_folder is not None:
        model.opened = {**model.opened, "lora_folder": str(lora_folder)}
    pipeline.is_ready = asleep or not optimize
    pipeline.compiled = compile
    if quantize is not None:
        pipeline.make_ready(int8=True)
    return pipeline


class Pipeline:
    """A model, ready to draw.

    Attributes:
        is_ready: whether the networks are as fast as they shall be.
        packed: whether their layers were replaced for that, so that they can no longer rest in their files.
        int8: whether the denoisers multiply in 8 bits.
        compiled: how the denoisers are compiled, if they are.
        lora_folder: where <lora:name:0.8> finds its files.

    >>> pipe = sfumato.load("path/to/model")
    >>> pipe("a red apple", steps=30, seed=7).images[0].save("apple.png")
    """

    def __init__(
        self, model: Model, refiner: Model | None = None, max_memory: str | int | None = None,
        lora_folder: Path | None = None,
    ) -> None:
        self.model, self.refiner = model, refiner
        self.limit = None if max_memory is None else parse_bytes(max_memory)
        self.lora_folder = lora_folder
        self.is_ready, self.packed, self.int8 = True, False, False
        self.compiled: Mode | None = None

    def make_ready(self, int8: bool = False) -> None:
        """Make the networks fast now, and not before the first picture: reading and packing all weights takes a while.

        Raises:
            ConfigError: see ``engine.ready.make_ready``.
        """
        if not self.is_ready:
            for model in filter(None, (self.model, self.refiner)):
                files = len(model.files)
                make_ready(model, int8, compiled=self.compiled)
                self.int8 = int8
                self.packed |= len(model.files) < files
            self.is_ready = True

    def __call__(
        self, prompt: str | Request = "", /, *, on_step: OnStep | None = None, max_memory: str | int | None = None,
        **fields: Any,
    ) -> Result:
        """Draw.

        Args:
            prompt: what to draw, or a whole Request.
            on_step: told after each step; may raise ``engine.driver.Cancelled``.
            max_memory: for this request, in place of that of ``load``.
            fields: of the Request, by their own names or by diffusers' (``num_inference_steps``, …).

        Raises:
            RequestError: the request cannot be drawn; nothing was.
            CapacityError: it cannot be drawn in that memory.
        """
        request = requested(prompt, fields)
        limit = self.limit if max_memory is None else parse_bytes(max_memory)
        task = TASKS.get(request.task)
        if limit is not None and self.packed:
            raise RequestError(
                "max_memory comes too late: the networks were made fast for the pictures before, and their weights "
                "stay in memory as they are now. Give max_memory to sfumato.load, or open the model once more."
            )
        self._adapt(request)
        if limit is None:
            self.make_ready()
            result: Result = task(self.model, request, on_step, self.refiner)
            return result
        chosen = self.forecaster(request).fit(limit)
        result = task(self.model, request, on_step, self.refiner, chosen.holding)
        return replace(result, notes=[*result.notes, *chosen.notes()])

    def _adapt(self, request: Request) -> None:
        """Give the model the adapters that the request asks for, and no others."""
        changed = adapt(self.model, asked(request), self.lora_folder)
        if changed and (self.packed or (self.compiled is not None and self.is_ready)):
            make_ready(self.model, self.int8, changed, self.compiled)

    def forecaster(self, request: Request, again: bool = False) -> Forecaster:
        """What says how much time and memory a request takes.

        Args:
            again: measure this machine even if it is known.
        """
        self._adapt(request)
        return Forecaster(self.model, request, rates(self.model.device, self.model.dtype, again), self.refiner)


def requested(prompt: str | Request, fields: Mapping[str, Any]) -> Request:
    """The request of a call.

    Raises:
        RequestError: the same is said twice, or what no request has; see ``aliases.request``.
    """
    if isinstance(prompt, Request):
        if fields:
            raise RequestError(
                f"A whole Request was given, and {', '.join(fields)} beside it: put everything into the Request "
                "(dataclasses.replace makes a changed copy)."
            )
        return prompt
    if prompt and fields.get("prompt") is not None:
        raise RequestError(f"Two prompts were given, {prompt!r} and {fields['prompt']!r}: leave one out.")
    return aliases.request({**({"prompt": prompt} if prompt else {}), **fields})
