"""Forwards that are recorded as CUDA graphs: a network's kernels start as one, not one by one from Python.

A U-Net's forward is a thousand small kernels, and for few pictures a GPU has done each of them before Python has
started the next. A recording is made of the second forward with inputs of some shape, and replayed from then on. What
it computes, and on what, is fixed: so it has inputs of its own, into which what is given is copied, and it lasts as
long as the network's weights stay where they are in memory.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sfumato.models.latents import Codec
from sfumato.models.overflow import decode_whole
from sfumato.nn.attention import is_tapped
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.embeddings import Times
from sfumato.nn.merging import is_merging

MOST = 32
"""Shapes of one network that are remembered; of more, those that came up last."""

SMALL = 64 * 64
"""Positions of a latent: larger ones keep a GPU busy for longer than Python needs."""

T = TypeVar("T")
Forward = Callable[[], Tensor]
Record = Callable[[Forward], Forward]
"""Makes of a forward one that does the same to the same memory again, each time it is called."""


class CudaGraphs:
    """Records forwards as CUDA graphs. They share what memory they need in between, since one runs at a time."""

    _one_at_a_time = Lock()  # in the whole process

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, forward: Forward) -> Forward:
        graph, tries = torch.cuda.CUDAGraph(), torch.backends.cudnn.benchmark
        with self._one_at_a_time, torch.cuda.device(self.device):
            torch.backends.cudnn.benchmark = False  # memory of another alignment would make it try again, and wait
            try:
                with self._recording(graph, self.pool):
                    output = forward()
            except RuntimeError:
                # The generator goes on as if it were recorded, and refuses to draw, until a recording ends well.
                with self._recording(torch.cuda.CUDAGraph(), None):
                    torch.zeros(1, device=self.device)
                raise
            finally:
                torch.backends.cudnn.benchmark = tries

        def again() -> Tensor:
            graph.replay()
            return output

        return again

    def _recording(self, graph: torch.cuda.CUDAGraph, pool: Any) -> torch.cuda.graph:
        # Other threads may do to the device what they like: a server's, one that copies a picture.
        return torch.cuda.graph(graph, pool, self.stream, capture_error_mode="thread_local")


class Recordings:
    """The recordings of one network, by the shapes of its inputs.

    Attributes:
        why_not: what kept a forward from being recorded, after which no other is; empty where nothing did.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.why_not = ""
        self._compiled = False
        self._places: list[int] = []
        self._shapes: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._lock = Lock()

    def check(self, network: nn.Module) -> bool:
        """Forget everything if the weights are elsewhere than they were.

        Returns:
            Whether the network may be recorded: nobody listens to its layers.
        """
        places, heard, compiled = [], False, False
        for module in network.modules():
            places += [tensor.data_ptr() for tensor in (*module._parameters.values(), *module._buffers.values())
                       if tensor is not None]  # fmt: skip
            heard = heard or bool(module._forward_hooks or module._forward_pre_hooks)
            compiled = compiled or module._compiled_call_impl is not None
        with self._lock:
            if places != self._places:
                self._shapes.clear()
            self._places, self._compiled = places, compiled
        return not heard

    def clear(self) -> bool:
        """Forget everything; whether there was anything."""
        with self._lock:
            found = any(own.replay for own in self._shapes.values())
            self._shapes.clear()
        return found

    def run(self, call: Callable[[Sequence[Tensor]], Tensor], given: Sequence[Tensor], kind: Hashable = None) -> Tensor:
        """``call(given)``.

        Args:
            kind: what else than the tensors' shapes decides what is computed.
        """
        key = (kind, *((tensor.shape, tensor.dtype) for tensor in given))
        with self._lock:  # what one thread has put into the inputs stays there until it is read
            if key not in self._shapes:
                self._shapes[key] = _Recording([torch.empty_like(tensor) for tensor in given])
                if len(self._shapes) > MOST:
                    self._shapes.popitem(last=False)
            self._shapes.move_to_end(key)
            own = self._shapes[key]
            torch._foreach_copy_(own.inputs, [*given])
            forward = partial(call, own.inputs)
            if not own.reads:  # at first libraries set themselves up and compilers compile: not to be recorded
                with nullcontext() if self._compiled else Reads() as reads:
                    output = forward()
                own.reads = own.inputs if reads is None else reads.tensors
                return output.clone()
            if own.replay is None and not self.why_not:
                try:
                    own.replay = self.record(forward)
                except RuntimeError as problem:
                    self.why_not = str(problem).partition("\n")[0]
            return (own.replay or forward)().clone()  # the next one writes over it


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Finds the tensors that are read and were there before: what a recording needs where it lies.

    Weights are among them, and tables that somebody keeps for as long as he likes. (What compilers made keeps its own.)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors: list[Tensor] = []
        self._known: set[int] = set()  # memory that is kept, or came to be since

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self._known:
                self.tensors.append(tensor)
                self._known.add(tensor.untyped_storage().data_ptr())
        made = func(*args, **(kwargs or {}))
        self._known.update(t.untyped_storage().data_ptr() for t in tree_leaves(made) if isinstance(t, Tensor))
        return made


@dataclass
class _Recording:
    """One shape's.

    Attributes:
        inputs: its own, which it reads each time.
        reads: everything that it reads, found by the first forward.
        replay: from the second on.
    """

    inputs: list[Tensor]
    reads: list[Tensor] = field(default_factory=list)
    replay: Forward | None = None


class Recorded:
    """A denoiser in one run, during which its weights stay where they are; see ``recorded``."""

    def __init__(self, network: nn.Module, recordings: Recordings) -> None:
        self.network, self.recordings = network, recordings
        self.may: bool | None = None

    @property
    def note(self) -> str:
        """What there is to say to whoever asked for a picture; empty where all is well."""
        why = self.recordings.why_not
        return why and f"Steps could not be recorded as CUDA graphs, so they are slower: {why}."

    def __call__(self, x: Tensor, t: Any, conditioning: Conditioning, **more: Any) -> Tensor:
        """What is listened to, or changed from outside, runs as it is written, and so does what takes more inputs."""
        if self.may is None:
            self.may = self.recordings.check(self.network)
        if more or not self.may or not isinstance(t, Times) or is_tapped() or is_merging():
            output: Tensor = self.network(x, t, conditioning, **more)
            return output
        given = [x, t.shifts]
        conditioning.map(given.append)

        def call(tensors: Sequence[Tensor]) -> Tensor:
            rest = iter(tensors)
            answer: Tensor = self.network(next(rest), Times(next(rest)), conditioning.map(lambda _: next(rest)))
            return answer

        return making_room(partial(self.recordings.run, call, given, conditioning.signature()), partial(call, given))


class RecordedDecoder:
    """What an autoencoder decodes, where a picture is so small that starting its kernels takes longer than they do."""

    def __init__(self, autoencoder: nn.Module, recordings: Recordings) -> None:
        self.autoencoder, self.recordings = autoencoder, recordings
        self.may = recordings.check(autoencoder)

    def __call__(self, autoencoder: Codec, z: Tensor) -> Tensor:
        """``autoencoder.decode(z)``; only the one that it is for is recorded."""
        own: Any = self.autoencoder
        if autoencoder is not own or not self.may or z.shape[-2:].numel() > SMALL:
            return autoencoder.decode(z)
        return self.recordings.run(lambda tensors: autoencoder.decode(tensors[0]), [z])


known: "WeakKeyDictionary[nn.Module, Recordings]" = WeakKeyDictionary()


def _recordings(network: nn.Module, device: torch.device) -> Recordings:
    if network not in known:
        known[network] = Recordings(CudaGraphs(device))
    return known[network]


def can_record(device: torch.device) -> bool:
    """Whether the device does that."""
    return device.type == "cuda" and not torch.version.hip


def recorded(network: nn.Module, device: torch.device, kept: nn.Module | None = None) -> nn.Module | Recorded:
    """The denoiser, its forwards recorded where the device can do that. To be asked anew for each run.

    Args:
        kept: recordings last as long as this module, a part of the network; the network itself unless given.
    """
    return Recorded(network, _recordings(kept or network, device)) if can_record(device) else network


def recorded_decoder(autoencoder: nn.Module, device: torch.device) -> Callable[[Codec, Tensor], Tensor]:
    """How to decode, recorded where the device can do that. To be asked anew for each run."""
    if not can_record(device):
        return decode_whole
    return RecordedDecoder(autoencoder, _recordings(autoencoder, device))


def forget() -> bool:
    """Give up all recordings of this process, whose memory serves others then; whether there were any."""
    found = [recordings.clear() for recordings in [*known.values()]]
    if any(found):
        torch.cuda.empty_cache()
    return any(found)


def making_room(do: Callable[[], T], otherwise: Callable[[], T]) -> T:
    """What ``do`` gives; where memory is short, and recordings could be given up, what ``otherwise`` gives."""
    try:
        return do()
    except torch.OutOfMemoryError:
        if not forget():
            raise
    return otherwise()
