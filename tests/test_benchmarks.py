"""The measurements' own arithmetic: what is compared, what is left out and said."""

import sys

import pytest
import torch
from torch import Tensor

from benchmarks.harness import Absent, Program, compare, psnr
from benchmarks.markdown import of_row
from benchmarks.options import options


def ones() -> Tensor:
    return torch.ones(4)


def missing() -> Tensor:
    raise Absent("it is not installed")


def test_unequal_and_absent_subjects_are_left_out_and_it_is_said() -> None:
    subjects = {"peer": ones, "equal": ones, "unequal": lambda: 1.1 * ones(), "gone": missing}
    row = compare("work", subjects, turns=2)
    assert list(row.subjects) == ["peer", "equal"]
    assert [len(found.seconds) for found in row.subjects.values()] == [2, 2]
    assert "differs from peer by 1.0e-01" in row.notes["unequal"]
    assert row.notes["gone"] == "left out: it is not installed"


def test_reference_cannot_be_left_out() -> None:
    with pytest.raises(RuntimeError, match="gone, the reference: it is not installed"):
        compare("work", {"gone": missing, "own": ones}, turns=1)


@pytest.mark.parametrize("rounds", [0, 3])
def test_lossy_subjects_stay_and_tell_their_error(rounds: int) -> None:
    row = compare("work", {"peer": ones, "own": lambda: 1.1 * ones()}, turns=2, lossy=["own"], rounds=rounds, span=1.0)
    assert row.psnr == {"own": pytest.approx(20.0)}
    assert len(row.ratios("own")) == 2 * max(1, rounds)


def test_psnr_of_equal_tensors_is_infinite() -> None:
    assert psnr(ones(), ones(), 1.0) == float("inf")


def test_program_is_measured_and_its_failure_told() -> None:
    command = [sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write('2')", "{out}"]
    found = Program(command, read=lambda path: torch.tensor([float(path.read_text())])).turn(keep=True)
    assert found.output is not None
    assert found.output.item() == 2.0
    assert found.memory > 0
    with pytest.raises(RuntimeError, match="exit code 3: no such thing"):
        Program([sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"]).turn()


def test_table_pairs_equals_with_equals_and_lossy_with_lossy() -> None:
    subjects = {"diffusers": ones, "peer": ones, "peer int8": ones, "sfumato": ones, "sfumato int8": ones}
    row = compare("work", subjects, turns=1, lossy=["peer int8", "sfumato int8"])
    pairs = [tuple(line.split(" | ")[1:3]) for line in of_row(row)]
    assert pairs == [
        ("sfumato", "diffusers"), ("sfumato", "peer"), ("sfumato int8", "diffusers"), ("sfumato int8", "peer int8"),
    ]  # fmt: skip


def test_subjects_are_chosen_by_name_and_the_reference_stays() -> None:
    subjects = {"peer": 1, "other": 2, "sfumato": 3}
    flags = options(None, 0, 5)
    assert flags.parse_args(["--subjects", "sfumato"]).of(subjects) == {"peer": 1, "sfumato": 3}
    assert flags.parse_args(["--without", "sfumato"]).of(subjects) == {"peer": 1, "other": 2}
    with pytest.raises(SystemExit, match="no subject nobody"):
        flags.parse_args(["--subjects", "nobody"]).of(subjects)
