"""Forwards that are recorded once and replayed: the same answers, and only where nothing else is asked for."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.engine.recorded import (
    MOST,
    SMALL,
    Recorded,
    RecordedDecoder,
    Recordings,
    known,
    recorded,
    recorded_decoder,
)
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.dit import DiT
from sfumato.models.overflow import decode_whole
from sfumato.models.unet import UNet
from sfumato.nn.attention import tapped
from sfumato.nn.conditioning import Conditioning
from sfumato.nn.embeddings import Times
from sfumato.nn.merging import Merging, merging
from sfumato.nn.transformer import Attention
from tests.engine.test_no_waiting import tiny_dit, tiny_unet


class Tape:
    """What a CUDA graph is, on a CPU: its output is always in the same memory."""

    def __init__(self) -> None:
        self.made = self.replayed = 0

    def __call__(self, forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.made += 1
        output = forward()

        def again() -> Tensor:
            self.replayed += 1
            return output.copy_(forward())

        return again


def told(network: UNet | DiT, rows: int) -> Conditioning:
    if isinstance(network, DiT):
        return Conditioning(labels=torch.arange(rows))
    return network.prepare(Conditioning(context=torch.randn(rows, 5, 3)))


def asks(network: UNet | DiT, side: int = 8, rows: int = 2) -> tuple[Tensor, Times, Conditioning]:
    conditioning = told(network, rows)
    return torch.randn(1, 4, side, side), network.prepare_times(torch.tensor([7.0]), conditioning)[0], conditioning


@pytest.mark.parametrize("build", [tiny_unet, tiny_dit])
@torch.inference_mode()
def test_it_answers_as_the_network_does(build: Callable[[], Any]) -> None:
    network, tape = build().eval(), Tape()
    fast = Recorded(network, Recordings(tape))
    given = [asks(network) for _ in range(5)]
    answers = [fast(*ask) for ask in given]
    for answer, ask in zip(answers, given, strict=True):  # none was written over by those after it
        torch.testing.assert_close(answer, network(*ask))
    assert (tape.made, tape.replayed) == (1, 4)  # the first is not to be recorded
    wider = asks(network, rows=4)
    assert [len(fast(*wider)) for _ in range(2)] == [4, 4]
    assert tape.made == 2


@torch.inference_mode()
def test_rows_that_are_views_of_one_are_told_apart_in_the_next_step() -> None:
    network = tiny_unet().eval()
    fast = Recorded(network, Recordings(Tape()))
    x, times, conditioning = asks(network)
    same = Times(times.shifts[:1].expand(2, -1)), conditioning.map(lambda row: row[:1].expand(2, *row.shape[1:]))
    other = Times(times.shifts[:1].repeat(2, 1)), conditioning
    for rest in (same, same, other, same):
        torch.testing.assert_close(fast(x, *rest), network(x, *rest))


@torch.inference_mode()
def test_weights_that_move_are_found_where_they_are() -> None:
    network, tape = tiny_unet().eval(), Tape()
    recordings, ask = Recordings(tape), asks(network)
    for _ in range(2):
        Recorded(network, recordings)(*ask)
    network.conv_out.weight.copy_(2 * network.conv_out.weight)  # in place: a recording sees it
    torch.testing.assert_close(Recorded(network, recordings)(*ask), network(*ask))
    assert tape.made == 1
    network.conv_out.weight = torch.nn.Parameter(3 * network.conv_out.weight)
    for _ in range(2):
        torch.testing.assert_close(Recorded(network, recordings)(*ask), network(*ask))
    assert tape.made == 2


@torch.inference_mode()
def test_what_python_sees_is_not_recorded() -> None:
    network, tape = tiny_unet().eval(), Tape()
    recordings, ask, heard = Recordings(tape), asks(network), list[str]()
    fast = Recorded(network, recordings)
    for _ in range(3):
        fast(*ask)
        with tapped(lambda q, k, name: heard.append(name)):
            fast(*ask)
        with merging(Merging(0.5, (8, 8))):
            torch.testing.assert_close(fast(*ask), network(*ask))
        fast(ask[0], 7.0, ask[2])
        fast(*ask, run=lambda module, *inputs: module(*inputs))
    assert len(heard) == 3 * sum(isinstance(module, Attention) for module in network.modules())
    assert (tape.made, tape.replayed) == (1, 2)
    calls: list[Any] = []
    network.conv_in.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        Recorded(network, recordings)(*ask)
    assert len(calls) == 3


@torch.inference_mode()
def test_a_forward_that_cannot_be_recorded_runs_all_the_same() -> None:
    def refuse(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    network = tiny_unet().eval()
    fast, ask = Recorded(network, Recordings(refuse)), asks(network)
    assert not fast.note
    for _ in range(3):
        torch.testing.assert_close(fast(*ask), network(*ask))
    assert fast.note.endswith("slower: operation not permitted when stream is capturing.")


@torch.inference_mode()
def test_no_more_shapes_are_kept_than_so_many() -> None:
    class Nothing(torch.nn.Module):
        def forward(self, x: Tensor, t: Times, conditioning: Conditioning) -> Tensor:
            return x + t.shifts.sum()

    network, tape = Nothing(), Tape()
    fast = Recorded(network, Recordings(tape))
    times = Times(torch.ones(1, 1))
    for side in [*range(1, MOST + 2), MOST + 1, 1]:  # the first was forgotten, the last was not
        fast(torch.randn(1, 1, side, side), times, Conditioning())
    assert tape.made == 1


@torch.inference_mode()
def test_decoding_is_recorded_where_pictures_are_small() -> None:
    config = AutoencoderConfig(block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1)
    autoencoder, tape = Autoencoder(config).eval(), Tape()
    how = RecordedDecoder(autoencoder, Recordings(tape))
    for _ in range(3):
        z = torch.randn(1, 4, 8, 8)
        torch.testing.assert_close(how(autoencoder, z), autoencoder.decode(z))
    assert (tape.made, tape.replayed) == (1, 2)
    other = Autoencoder(config).eval()  # as the copy in float32 is, where half precision overflows
    for _ in range(3):
        torch.testing.assert_close(how(other, z), other.decode(z))
        how(autoencoder, torch.randn(1, 4, 8, SMALL // 8 + 1))
    assert tape.made == 1
    assert recorded_decoder(autoencoder, torch.device("cpu")) is decode_whole


@torch.inference_mode()
def test_recordings_give_way_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny_unet().eval()
    recordings, ask = Recordings(Tape()), asks(network)
    monkeypatch.setitem(known, network, recordings)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for _ in range(2):
        Recorded(network, recordings)(*ask)
    full = Recordings(Tape())

    def out_of_memory(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("none is left")

    monkeypatch.setattr(full, "run", out_of_memory)
    torch.testing.assert_close(Recorded(network, full)(*ask), network(*ask))
    assert not recordings.clear()  # it was given up
    with pytest.raises(torch.OutOfMemoryError):
        Recorded(network, full)(*ask)


class Lookup(torch.nn.Module):
    """Reads a table that is not its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Times, conditioning: Conditioning) -> Tensor:
        return x * self.scale + TABLES[x.shape[-1]]


TABLES: dict[int, Tensor] = {}


@torch.inference_mode()
def test_a_recording_keeps_what_it_reads_but_not_the_network() -> None:
    def record(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
        output = forward()
        return lambda: output

    network, recordings = Lookup(), Recordings(record)
    assert recorded(network, torch.device("cpu")) is network
    fast, x = Recorded(network, recordings), torch.zeros(1, 1, 3, 3)
    TABLES[3] = torch.ones(3)
    table, gone = weakref.ref(TABLES[3]), weakref.ref(network)
    for _ in range(2):
        assert torch.equal(fast(x, Times(torch.ones(1, 1)), Conditioning()), TABLES[3].expand_as(x))
    TABLES.clear()
    assert table() is not None
    del fast, network
    gc.collect()
    assert gone() is None
    del recordings
    gc.collect()
    assert table() is None
