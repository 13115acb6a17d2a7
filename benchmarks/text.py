"""Encoding a prompt and a negative prompt with CLIP-L of true size, beside diffusers on the same weights."""

import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks import folders, peers
from benchmarks.harness import Made, Process, Subject, compare
from benchmarks.options import options
from benchmarks.report import machine, report


def main(arguments: Sequence[str] = ()) -> None:
    flags = options(__doc__, rounds=0, turns=5)
    flags.add_argument("--model", choices=peers.VAES, default="sd15")
    chosen = flags.parse_args(arguments)
    name = chosen.model
    folders.folder(name)
    about = machine()
    subjects: dict[str, Subject] = {"diffusers": Process(diffusers, name), "sfumato": Process(sfumato, name)}
    row = compare("text encoding, CLIP-L, 2 prompts", chosen.of(subjects), chosen.turns, rounds=chosen.rounds)
    report("text", [row], about, chosen.trial)


def diffusers(name: str) -> Made:
    theirs = folders.peer(name, unet=None, vae=None)

    def encode() -> Tensor:
        positive, negative = theirs.encode_prompt(folders.PROMPT, "cpu", 1, True, folders.NEGATIVE)
        return torch.cat([positive, negative])

    return encode, {}


def sfumato(name: str) -> Made:
    import sfumato
    from sfumato.core.request import Request
    from sfumato.engine.allocator import keep_freed_memory

    keep_freed_memory()
    model = sfumato.load(str(folders.folder(name)), device="cpu", optimize=False).model
    request = Request(folders.PROMPT, negative_prompt=folders.NEGATIVE)

    def encode() -> Tensor:
        rows = model.family.condition(model, request, ("positive", "negative")).conditionings
        return torch.cat([c.context for c in rows.values() if c.context is not None])

    return encode, {}


if __name__ == "__main__":
    main(sys.argv[1:])
