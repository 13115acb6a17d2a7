"""The Python face: ``pipe = sfumato.load(source); pipe("a red apple").images[0]``."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from sfumato.adapters.wanted import asked
from sfumato.core.errors import ConfigError, RequestError, nearest
from sfumato.core.request import Request
from sfumato.core.shipped import SHIPPED
from sfumato.core.sizes import parse_bytes, show_bytes
from sfumato.engine.compiled import Mode
from sfumato.engine.driver import OnStep
from sfumato.engine.pack import BALANCED, Eight
from sfumato.engine.rates import NOMINAL, Rates, known, rates
from sfumato.engine.ready import Shapes, check_eight, is_exact, make_ready, unpack
from sfumato.families.adapt import adapt
from sfumato.families.load import open_model
from sfumato.families.types import Model
from sfumato.tasks import TASKS, aliases
from sfumato.tasks.explain import Explanation, explain
from sfumato.tasks.forecast import Forecaster, Growth
from sfumato.tasks.text_to_image import Result, draw


def load(
    source: str = SHIPPED, *, refiner: str | None = None, optimize: bool = True, max_memory: str | int | None = None,
    quantize: Eight | None = None, compile: Mode | None = None, lora_folder: str | Path | None = None,
    **options: Any,
) -> "Pipeline":
    """Open a model and be ready to draw.

    Args:
        source: a model folder, a single checkpoint file, or a hub name; the model that comes with sfumato unless given.
        refiner: another, which takes over at a request's ``refiner_start``.
        optimize: make the networks fast before the first picture, after which they can no longer be changed; see
            ``Pipeline.make_ready``.
        max_memory: what drawing may hold, such as ``"6GB"``: of the process on a CPU, of what PyTorch allocates on a
            GPU. Weights then stay in their files until they are needed, and each request is drawn in a way that fits.
        quantize: the denoisers multiply in 8 bits, which is lossy: ``"int8"`` on a CPU in float32, ``"fp8"`` on a GPU
            that has such products (and on a CPU too, slowly, where one may see what it costs).
        compile: leave the denoiser to PyTorch's compiler, in this mode; see ``engine.compiled``.
        lora_folder: where ``<lora:name:0.8>`` in a prompt finds ``name.safetensors``. A picture's LoRAs are merged into
            the networks before it is drawn, and stay until a request asks for others.
        options: see ``families.load.open_model``: device, dtype, vae, variant, family, prediction, control.

    Raises:
        CheckpointError: it is not a model, or not one that is known here.
        ConfigError: ``quantize`` or ``compile`` where it cannot be had.
    """
    if compile is not None and (quantize == "int8" or not optimize or max_memory is not None):
        raise ConfigError(
            f"compile = {compile!r} is another way to compute the denoiser than quantize = 'int8', and needs it to "
            "stay in memory (no max_memory) and to be optimised: use one or the other."
        )
    if quantize is not None and quantize not in get_args(Eight):
        raise ConfigError(f"quantize = {quantize!r}{nearest(quantize, get_args(Eight))}")
    if compile is not None and compile not in get_args(Mode):
        raise ConfigError(f"compile = {compile!r}{nearest(compile, get_args(Mode))}")
    if quantize is not None and not optimize:
        raise ConfigError(
            f"quantize = {quantize!r} changes the networks' layers, which optimize=False leaves as they are: use one "
            "or the other."
        )
    device = {k: v for k, v in options.items() if k in ("device", "dtype", "variant")}
    asleep = max_memory is not None
    model = open_model(source, **options, asleep=asleep)
    other = open_model(refiner, **device, asleep=asleep) if refiner else None
    pipeline = Pipeline(model, other, max_memory, None if lora_folder is None else Path(lora_folder))
    if lora_folder is not None:
        model.opened = {**model.opened, "lora_folder": str(lora_folder)}
    pipeline.is_ready = not optimize
    pipeline.compiled = compile
    if quantize is not None:
        check_eight(model, quantize)
        if compile is not None and model.device.type == "cpu":
            raise ConfigError(f"compile = {compile!r} and quantize = {quantize!r} together are for GPUs: use one.")
        pipeline.eight = quantize
    return pipeline


class Pipeline:
    """A model, ready to draw.

    Attributes:
        is_ready: whether the networks are as fast as they shall be.
        eight: how the denoisers, made fast, multiply in 8 bits, if they do.
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
        self.is_ready = True
        self.eight: Eight | None = None
        self._said: list[str] = []  # notes of what was made ready
        self._grown: tuple[float, Shapes] = BALANCED, {}  # as the denoiser was packed last
        self.compiled: Mode | None = None

    @property
    def models(self) -> list[Model]:
        """The one or the two."""
        return [self.model] if self.refiner is None else [self.model, self.refiner]

    def make_ready(self, request: Request | None = None) -> None:
        """Make the networks fast now, and not before the first picture: reading and packing all weights takes a while.

        Args:
            request: what they will be used for most; a picture of the model's own size unless given. How large
                packed weights become depends on it and on the memory that is free.

        Raises:
            RequestError: the request cannot be drawn.
        """
        if not self.is_ready:
            found = self._growth(request)
            self._said += found.notes
            self.model.notes.extend(found.notes)
            if found.most is not None:
                self._pack(found.most, found.shapes, found.why)
            self.is_ready = True

    def _growth(self, request: Request | None) -> Growth:
        if not is_exact(self.model):
            return Growth(BALANCED, {}, "")  # no weights will be transformed
        try:
            speeds = known(self.model.device, self.model.dtype) or NOMINAL
            return self._forecaster(request or Request(), speeds).growth()
        except RequestError:
            if request is not None:
                raise
        return Growth(BALANCED, {}, "no request is known yet")  # this model draws nothing without being told what

    def _pack(self, growth: float, shapes: Shapes, why: str) -> None:
        self._grown = growth, shapes
        for model in self.models:
            known_shapes = shapes if model is self.model else {}
            self._said += make_ready(model, self.eight, growth, known_shapes, why, compiled=self.compiled)

    def _unpack(self) -> None:
        for model in self.models:
            unpack(model)
            model.notes = [note for note in model.notes if note not in self._said]
        self._said.clear()
        self.is_ready = False

    def __call__(
        self, prompt: str | Request = "", /, *, on_step: OnStep | None = None, max_memory: str | int | None = None,
        **fields: Any,
    ) -> Result:
        """Draw.

        Args:
            prompt: what to draw, or a whole Request.
            on_step: told after each step; may raise ``engine.driver.Cancelled``.
            max_memory: for this request, in place of that of ``load``. Networks that were made fast and do not fit are
                read anew from their files.
            fields: of the Request, by their own names or by diffusers' (``num_inference_steps``, …).

        Raises:
            RequestError: the request cannot be drawn; nothing was.
            CapacityError: it cannot be drawn in that memory.
        """
        request = requested(prompt, fields)
        limit = self.limit if max_memory is None else parse_bytes(max_memory)
        task = TASKS.get(request.task)
        self.adapt(request)
        if limit is None:
            self.make_ready(request)
            return draw(task, self.model, request, on_step, self.refiner)
        forecaster = self.forecaster(request)
        chosen = forecaster.fit(limit)
        holding = replace(chosen.holding, recorded=False)  # its memory was not counted
        if holding.where != "resident" and any(model.packed for model in self.models):
            self._unpack()
        if holding.growth is not None:
            self._pack(holding.growth, forecaster.shapes(holding), f"as much as {show_bytes(limit)} allow")
            self.is_ready = True
        result = draw(task, self.model, request, on_step, self.refiner, holding)
        return replace(result, notes=[*result.notes, *chosen.notes()])

    def explain(
        self, prompt: str | Request = "", /, *, on_step: OnStep | None = None, **fields: Any
    ) -> Explanation:
        """Draw one picture, and tell for each word of the prompt where the picture looked at it.

        Args:
            prompt, on_step, fields: as when drawing.

        Raises:
            RequestError: the request cannot be drawn, or there is nothing to explain.
        """
        request = requested(prompt, fields)
        self.adapt(request)
        return explain(self.model, request, partial(self, on_step=on_step))

    def adapt(self, request: Request) -> None:
        """Give the model the adapters that the request asks for, and no others."""
        changed = set(adapt(self.model, asked(request), self.lora_folder))
        ready = (self.is_ready and self.compiled is not None) or bool(self.model.packed & changed)
        self.model.packed -= changed
        if ready and self.model.family.denoiser in changed:
            growth, shapes = self._grown
            make_ready(self.model, self.eight, growth, shapes, again=True, compiled=self.compiled)

    def forecaster(self, request: Request, again: bool = False) -> Forecaster:
        """What says how much time and memory a request takes.

        Args:
            again: measure this machine even if it is known.
        """
        self.adapt(request)
        return self._forecaster(request, rates(self.model.device, self.model.dtype, __name__, again))

    def _forecaster(self, request: Request, speeds: Rates) -> Forecaster:
        return Forecaster(self.model, request, speeds, self.refiner, not self.is_ready, self.eight)


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
