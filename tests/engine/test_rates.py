"""Rates of the machine: what they make of operations, and when they are measured."""

import json
import mmap
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.core.errors import ConfigError
from sfumato.engine import rates as module
from sfumato.engine.rates import Rates, rates, resident
from sfumato.engine.trace import Operation

CPU = torch.device("cpu")
KNOWN = Rates(
    convolution=100.0, product=200.0, attention=50.0, movement=10.0, packed=250.0, winograd=150.0, int8=500.0,
    latency=0.5, load=5.0, process=7,
)  # fmt: skip


def test_an_operation_takes_what_holds_it_up() -> None:
    assert KNOWN.seconds([Operation("convolution", 1000, 10)]) == 10  # arithmetic
    assert KNOWN.seconds([Operation("convolution", 1000, 500)]) == 50  # traffic
    assert KNOWN.seconds([Operation("movement", 0, 1)]) == 0.5  # its start
    assert KNOWN.seconds([Operation("product", 1000, 1), Operation("attention", 1000, 1)]) == 5 + 20


class Machine:
    """Stands for the process that measures, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.fails = False

    def run(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.asked += 1
        told = json.dumps({**asdict(KNOWN), "process": self.asked})
        return subprocess.CompletedProcess(command, int(self.fails), told, "no such device")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    found = Machine()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", found.run)
    return found


def test_a_machine_is_measured_once(measured: Machine) -> None:
    assert rates(CPU, torch.float32).process == 1
    assert rates(CPU, torch.float32).process == 1
    assert rates(CPU, torch.bfloat16).process == 2  # another precision is another machine
    assert rates(CPU, torch.float32, again=True).process == 3
    assert rates(CPU, torch.float32).process == 3
    assert measured.asked == 3


def test_a_damaged_file_is_written_anew(measured: Machine) -> None:
    rates(CPU, torch.float32)
    for damage in ("{", "[]", '{"x": {"convolution": 1}}'):
        module.cache_file().write_text(damage)
        before = measured.asked
        rates(CPU, torch.float32)
        rates(CPU, torch.float32)
        assert measured.asked == before + 1


def test_a_machine_that_cannot_be_measured(measured: Machine) -> None:
    measured.fails = True
    with pytest.raises(ConfigError, match="no such device"):
        rates(CPU, torch.float32)
    assert not module.cache_file().exists()


def test_resident_memory_rises_with_what_is_held() -> None:
    before, size = resident(), 100_000_000
    with mmap.mmap(-1, size) as held:  # pages of its own, whatever the heap has free
        for page in range(0, size, mmap.PAGESIZE):
            held[page] = 1
        assert 90e6 < resident() - before < 130e6


@pytest.mark.slow
def test_this_machine() -> None:
    found = module.measure(CPU, torch.float32)
    assert 1e8 < found.convolution < 1e14
    assert 1e8 < found.product < 1e14
    assert 1e8 < found.movement < 1e13
    assert 0 < found.latency < 1e-2
    assert found.process > 1e8
