"""The command line: ``sfumato COMMAND …``, and ``sfumato "a red apple"`` as short for ``sfumato generate``."""

import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import NamedTuple

from sfumato.core.errors import ConfigError, SfumatoError


class Command(NamedTuple):
    """One line of the table."""

    target: str  # "module:class": a config dataclass with a method ``run() -> int``, the exit code
    summary: str


COMMANDS = {
    "generate": Command("sfumato.cli.generate:Generate", "draw pictures from a prompt"),
    "explain": Command("sfumato.cli.explain:Explain", "draw a picture, and show where it looked at each word"),
    "plan": Command("sfumato.cli.plan:Plan", "how long a picture would take, and how much memory"),
    "info": Command("sfumato.cli.info:Info", "what a picture says of how it was made"),
    "replay": Command("sfumato.cli.replay:Replay", "draw a picture again from its own recipe, and compare"),
    "inspect": Command("sfumato.cli.inspect:Inspect", "what a checkpoint is, and whether it is whole"),
    "convert": Command("sfumato.cli.convert:Convert", "a checkpoint in another format, verified"),
    "reconstruct": Command("sfumato.cli.reconstruct:Reconstruct", "a picture through an autoencoder and back"),
    "samplers": Command("sfumato.cli.samplers:Samplers", "the samplers and spacings, and the names they answer to"),
    "models": Command("sfumato.cli.models:Models", "the families that are known, and the models in the local cache"),
    "serve": Command("sfumato.cli.serve:Serve", "draw for many, over HTTP, and on a page in the browser"),
    "train": Command("sfumato.cli.train:Train", "train a model from a recipe, or go on with it"),
    "eval": Command("sfumato.cli.eval:Eval", "measure a model, or a run, on a data set"),
    "data check": Command("sfumato.cli.data:Check", "look through a data set before training on it"),
    "data shapes": Command("sfumato.cli.data:Shapes", "make a data set of captioned scenes of shapes"),
    "doctor": Command("sfumato.cli.doctor:Doctor", "what sfumato found on this machine, and what it will use"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 done and found wanting, 2 refused, 130 interrupted.

    What is refused is said in one paragraph on stderr; ``--debug`` shows where in the code it was.
    """
    if argv is None:  # the process is ours
        from sfumato.engine.allocator import keep_freed_memory

        keep_freed_memory()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        return run([word for word in words if word != "--debug"])
    except KeyboardInterrupt:
        print("\nsfumato: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, as `| head` does; Python must not flush to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (SfumatoError, OSError, MemoryError) as problem:
        if debug:
            raise
        text = re.sub(r"\n\s*\n", "\n", str(problem).strip()) or type(problem).__name__
        print(text if text.startswith("sfumato ") else f"sfumato: {text}", file=sys.stderr)
        return 2


def run(words: list[str]) -> int:
    """As ``main``, but mistakes are exceptions."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        from sfumato import __version__

        print(f"sfumato {__version__}")
        return 0
    name, rest = _command(words)
    if rest is words and not words[0].startswith("-") and (near := get_close_matches(words[0], COMMANDS, 1, 0.75)):
        raise ConfigError(
            f"There is no command {words[0]!r}; did you mean {near[0]!r}? "
            f"To draw the word itself: sfumato generate {words[0]}"
        )
    module, attribute = COMMANDS[name].target.split(":")
    command = getattr(import_module(module), attribute)
    from sfumato.cli.parser import build, read

    positional, spellings = getattr(command, "positional", ()), getattr(command, "spellings", {})
    parser = build(command, f"sfumato {name}", positional, spellings)
    if "-h" in rest or "--help" in rest:
        parser.print_help()
        if hasattr(command, "more_help"):
            print(f"\n{command.more_help()}")
        return 0
    code: int = read(parser, command, rest).run()
    return code


def _command(words: list[str]) -> tuple[str, list[str]]:
    """The command, of one word or two, and what follows it; a text that is no command is a prompt."""
    for length in (2, 1):
        if " ".join(words[:length]) in COMMANDS:
            return " ".join(words[:length]), words[length:]
    inner = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if inner:
        raise ConfigError(f"`sfumato {words[0]}` is followed by one of: {', '.join(n.split()[1] for n in inner)}.")
    return "generate", words


def overview() -> str:
    """What ``sfumato --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([
        'usage: sfumato "a red apple"          short for: sfumato generate "a red apple"',
        "       sfumato COMMAND …              sfumato COMMAND --help tells the rest",
        "", "commands:", *lines, "",
        "  --version  print it        --debug  show where in the code an error arose",
    ])  # fmt: skip
