"""``sfumato samplers``."""

import json
import subprocess
import sys

import pytest

from sfumato.cli import main
from sfumato.noise import SPACINGS
from sfumato.sampling import TABLE
from tests.conftest import ROOT


def test_every_sampler_and_spacing_is_listed_with_all_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samplers"]) == 0
    out = capsys.readouterr().out
    for name, solver in TABLE.items():
        (line,) = [line for line in out.splitlines() if line.split("  ")[0] == name]
        assert all(alias in line for alias in (solver.title, *solver.aliases))
    assert all(f"\n  {name}" in out for name in SPACINGS)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samplers", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["samplers"]) == list(TABLE)
    assert list(found["spacings"]) == list(SPACINGS)


def test_listing_does_not_import_torch() -> None:
    code = "import sys; from sfumato.cli import main; main(['samplers']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
