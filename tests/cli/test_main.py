"""The command line as a whole: which command runs, what it exits with, and what it says when it cannot."""

import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

import pytest

from sfumato import __version__
from sfumato.cli import COMMANDS, Command, main
from sfumato.core.errors import CheckpointError
from tests.conftest import ROOT


@dataclass(frozen=True)
class Fail:
    """A command that fails as it is told to."""

    how: Annotated[str, "what happens"]

    def run(self) -> int:
        if self.how == "sfumato":
            raise CheckpointError("The file is truncated.\n\nFetch it again.")
        if self.how == "disk":
            raise OSError(28, "No space left on device", "a.png")
        if self.how == "interrupt":
            raise KeyboardInterrupt
        if self.how == "bug":
            raise ZeroDivisionError("a bug")
        return 1 if self.how == "wanting" else 0


@pytest.fixture(autouse=True)
def _fail_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "fail", Command("tests.cli.test_main:Fail", "fails"))


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [("no", 0, ""), ("wanting", 1, ""), ("sfumato", 2, "sfumato: The file is truncated.\nFetch it again.\n"),
     ("disk", 2, "sfumato: [Errno 28] No space left on device: 'a.png'\n"),
     ("interrupt", 130, "\nsfumato: interrupted\n")],
)  # fmt: skip
def test_exit_codes_and_the_one_paragraph(how: str, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fail", how]) == code
    assert capsys.readouterr() == ("", said)


def test_debug_shows_where_an_error_arose() -> None:
    with pytest.raises(CheckpointError):
        main(["fail", "sfumato", "--debug"])


def test_a_bug_is_not_dressed_up_as_a_mistake_of_the_user() -> None:
    with pytest.raises(ZeroDivisionError):
        main(["fail", "bug"])


@pytest.mark.parametrize(
    ("words", "said"),
    [(["docter"], "no command 'docter'; did you mean 'doctor'"),
     (["doctor", "--jsn"], "no flag --jsn; did you mean '--json'"),
     (["doctor", "x"], "unexpected 'x'"), (["fail"], "HOW"), (["doctor", "--json", "--json"], "--json is given twice")],
)  # fmt: skip
def test_mistakes_are_named_and_the_nearest_offered(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_overview_lists_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(f"{name} " in out and command.summary in out for name, command in COMMANDS.items())


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "fail"])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"usage: sfumato {name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sfumato {__version__}\n"


def test_a_closed_pipe_is_not_an_error() -> None:
    command = f"{sys.executable} -m sfumato doctor | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_generate_answers_to_the_short_form(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["a red apple"], ["generate", "a red apple"], ["--steps", "3", "a red apple"], ["apple"]):
        assert main([*words, "--model", "no such model"]) == 2
        assert "no such model" in capsys.readouterr().err


def test_running_the_package_is_running_main() -> None:
    done = subprocess.run([sys.executable, "-m", "sfumato", "--steps", "none of it"], cwd=ROOT, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
