"""A network whose forwards are recorded as CUDA graphs: its kernels start as one, not one by one from Python.

A U-Net's forward is a thousand small kernels, and for few pictures a GPU has done each of them before Python has
started the next. A recording is made of the second forward with inputs of some shape, and replayed from then on. What
it computes, and on what, is fixed: so it has inputs of its own, into which what is given is copied, and it lasts as
long as the network's weights stay where they are in memory.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sfumato.nn.attention import is_tapped
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.embeddings import Times
from sfumato.nn.merging import is_merging

MOST = 32
"""Shapes of one network that are remembered; of more, those that came up last."""

Forward = Callable[[], Tensor]
Record = Callable[[Forward], Forward]
"""Makes of a forward one that does the same to the same memory again, each time it is called."""


class CudaGraphs:
    """Records forwards as CUDA graphs. They share what memory they need in between, since one runs at a time."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Forward) -> Forward:
        graph, tries = torch.cuda.CUDAGraph(), torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = False  # memory of another alignment would make it try again, and wait
        try:
            # Other threads may do to the device what they like: a server's, one that copies a picture.
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                output = forward()
        except RuntimeError:
            # The generator goes on as if it were recorded, and refuses to draw, until a recording ends well.
            with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
                torch.zeros(1, device="cuda")
            raise
        finally:
            torch.backends.cudnn.benchmark = tries

        def again() -> Tensor:
            graph.replay()
            return output

        return again


class Recordings:
    """The recordings of one network, by the shapes of its inputs.

    Attributes:
        why_not: what kept a forward from being recorded, after which no other is; empty where nothing did.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.why_not = ""
        self._places: list[int] = []
        self._shapes: OrderedDict[Hashable, _Recording] = OrderedDict()

    def check(self, network: nn.Module) -> bool:
        """Forget everything if the weights are elsewhere than they were.

        Returns:
            Whether the network may be recorded: nobody listens to its layers.
        """
        places, heard = [], False
        for module in network.modules():
            places += [tensor.data_ptr() for tensor in (*module._parameters.values(), *module._buffers.values())
                       if tensor is not None]  # fmt: skip
            heard = heard or bool(module._forward_hooks or module._forward_pre_hooks)
        if places != self._places:
            self._shapes.clear()
            self._places = places
        return not heard

    def run(self, network: nn.Module, x: Tensor, t: Times, conditioning: Conditioning) -> Tensor:
        """``network(x, t, conditioning)``."""
        given = [x, t.shifts]
        conditioning.map(given.append)
        key = (conditioning.signature(), *((tensor.shape, tensor.dtype) for tensor in given))
        if key not in self._shapes:
            self._shapes[key] = _Recording(x, t, conditioning)
            if len(self._shapes) > MOST:
                self._shapes.popitem(last=False)
        self._shapes.move_to_end(key)
        own = self._shapes[key]
        torch._foreach_copy_(own.tensors, given)
        forward: Forward = lambda: network(*own.inputs)
        if not own.reads:  # at first libraries set themselves up and compilers compile, which is not to be recorded
            with Reads() if network._compiled_call_impl is None else nullcontext() as reads:
                output = forward()
            own.reads = reads.tensors if reads is not None else own.tensors
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


class _Recording:
    """Inputs of its own, and, from the second forward on, what is done with them."""

    def __init__(self, x: Tensor, t: Times, conditioning: Conditioning) -> None:
        self.tensors: list[Tensor] = []

        def own(tensor: Tensor) -> Tensor:
            self.tensors.append(torch.empty_like(tensor))
            return self.tensors[-1]

        self.inputs = own(x), Times(own(t.shifts)), conditioning.map(own)
        self.reads: list[Tensor] = []
        self.replay: Forward | None = None


class Recorded:
    """A network in one run, during which its weights stay where they are; see ``recorded``."""

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
        return self.recordings.run(self.network, x, t, conditioning)


_known: "WeakKeyDictionary[nn.Module, Recordings]" = WeakKeyDictionary()


def recorded(network: nn.Module, device: torch.device) -> nn.Module | Recorded:
    """The network, its forwards recorded where the device can do that. To be asked anew for each run."""
    if device.type != "cuda" or torch.version.hip:
        return network
    if network not in _known:
        _known[network] = Recordings(CudaGraphs())
    return Recorded(network, _known[network])
