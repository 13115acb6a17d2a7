"""Prompts become text states: tokens in pieces of 75, encoded, weighted, side by side.

What a weight w does to the state z of a token, with z0 the state of the empty prompt at that place:

* ``a1111``: z is multiplied by w; then each piece is scaled so that its mean is what it was.
* ``comfy``: z0 + w (z - z0).
* ``compel``: as comfy; and for every span with w < 1 the states of the whole prompt are mixed with those of the prompt
  in which nothing attends to that span, in the ratio 1 : tan((1 - w) pi / 2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from sfumato.core.errors import RequestError
from sfumato.text.chunks import Chunk, Chunked, split
from sfumato.text.prompt import Prompt, Syntax, parse
from sfumato.text.tokenizer import ClipTokenizer

AT_ONCE = 8
"""Pieces that are encoded in one forward: bounds the memory that a long prompt takes."""
MOST_DOWNWEIGHTED = 64
"""Spans below weight 1 that compel's rule takes; each costs one more forward of the encoder."""

MOST_WEIGHT = 1_000_000
"""Pictures fall apart above 2 already; this keeps infinities out."""


class Encoded(Protocol):
    """What a text encoder says of B sequences of L tokens."""

    @property
    def last(self) -> Tensor:
        """[B, L, D], after the layers that were asked for and the final norm."""

    @property
    def hidden(self) -> tuple[Tensor, ...]:
        """The embeddings and each layer's output, [B, L, D], not normalised."""

    @property
    def pooled(self) -> Tensor:
        """[B, D]."""

    @property
    def projected(self) -> Tensor | None:
        """[B, P]."""


class TextEncoder(Protocol):
    """A CLIP text encoder."""

    def __call__(self, ids: Tensor, layers_skipped: int = 0, seen: Tensor | None = None) -> Encoded:
        """Encode [B, L] ids; ``seen`` [B, L] is False at tokens that none is to attend to."""


@dataclass(frozen=True)
class Tower:
    """A text encoder, its tokenizer, and what a family reads from it.

    Attributes:
        layers_skipped: layers left out at the end, before any clip-skip of the request: SD 1 has 0, SD 2 has 1 of
            OpenCLIP's 24 (0 of the 23 that its folders keep), SDXL has 1.
        normalised: whether the final layer norm comes after the layers that are left: SD 1 and 2, not SDXL.
        pooled: the one vector of the whole text that the family reads, if any; of the first piece, after all layers.
    """

    tokenizer: ClipTokenizer
    encoder: TextEncoder
    layers_skipped: int = 0
    normalised: bool = True
    pooled: Literal["pooled", "projected"] | None = None


@dataclass(frozen=True)
class PromptStates:
    """Row i is prompt i; all are padded with empty pieces to the length of the longest.

    Attributes:
        states: [B, 77 k, D], k pieces, D the widths of all towers together.
        pooled: [B, P], or None where no tower gives one.
        prompts: each prompt in pieces, as the first tower's tokenizer cut it.
        warnings: what the caller should tell.
    """

    states: Tensor
    pooled: Tensor | None
    prompts: tuple[Chunked, ...]
    warnings: tuple[str, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """How many tokens of each prompt were used, without start, end and padding."""
        return tuple(prompt.tokens for prompt in self.prompts)


def encode(
    towers: Sequence[Tower], prompts: Sequence[str | Prompt], weighting: Syntax = "a1111",
    long_prompts: Literal["chunk", "truncate"] = "chunk", clip_skip: int | None = None,
    device: torch.device | str = "cpu",
) -> PromptStates:
    """Encode prompts, positive and negative together so that they come out equally long.

    Args:
        prompts: strings are read in the syntax that ``weighting`` names. The tags of a prompt that was parsed before
            are its parser's business; those of a string are refused.
        clip_skip: as A1111 counts: 1 or None leaves out what the tower leaves out, 2 one layer more, and so on.
        device: where the encoders are.

    Raises:
        RequestError: signs that ask for what cannot be done, a weight beyond all use, a clip-skip past the first
            layer.
    """
    parsed = [_checked(prompt, weighting) for prompt in prompts]
    states, pooled, warnings = [], [], []
    first: list[Chunked] = []
    for tower in towers:
        pieces = [split(prompt, tower.tokenizer, long_prompts) for prompt in parsed]
        first = first or pieces
        tower_states, tower_pooled = _encode(tower, pieces, weighting, (clip_skip or 1) - 1, device)
        states.append(tower_states)
        if tower_pooled is not None:
            pooled.append(tower_pooled)
    for prompt in dict.fromkeys(first):
        if prompt.dropped:
            shown = prompt.dropped if len(prompt.dropped) <= 300 else prompt.dropped[:300] + " …"
            warnings.append(f"The prompt was cut after {prompt.tokens} tokens. Dropped: {shown!r}.")
    return PromptStates(
        torch.cat(states, -1), torch.cat(pooled, -1) if pooled else None, tuple(first), tuple(warnings),
    )


def _checked(prompt: str | Prompt, syntax: Syntax) -> Prompt:
    parsed = parse(prompt, syntax) if isinstance(prompt, str) else prompt
    if isinstance(prompt, str) and parsed.tags:
        tag = parsed.tags[0]
        raise RequestError(
            f"The prompt asks for <{tag.kind}:{':'.join(tag.arguments)}>, which this cannot load. Take it out, or "
            r"write \< if the sign itself is meant."
        )
    if parsed.reserved:
        raise RequestError(
            f"The prompt holds {parsed.reserved[0]!r}, which asks for more than one text and cannot be drawn yet. "
            r"Put \ before a sign that is meant literally: \[ \] \AND."
        )
    for span in (span for chunk in parsed.chunks for span in chunk):
        if not abs(span.weight) <= MOST_WEIGHT:  # nor NaN
            raise RequestError(f"The weight of {span.text[:40]!r} is {span.weight:g}; the most is {MOST_WEIGHT:,}.")
    return parsed


def _encode(
    tower: Tower, prompts: Sequence[Chunked], weighting: Syntax, extra_skip: int, device: torch.device | str,
) -> tuple[Tensor, Tensor | None]:
    """[B, 77 k, D] states and [B, P] pooled of one tower."""
    count = max(len(prompt.chunks) for prompt in prompts)
    rows = [[*prompt.chunks, *[Chunk()] * (count - len(prompt.chunks))] for prompt in prompts]
    forward = _Forward(tower, extra_skip, device)
    forward.want([(chunk.ids, ()) for row in rows for chunk in row])
    weighted = []
    for row in rows:
        if weighting == "a1111":
            weighted.append([_scale(forward.states(chunk.ids), chunk) for chunk in row])
        elif weighting == "comfy":
            weighted.append([_lerp(forward, chunk) for chunk in row])
        else:
            weighted.append(_mix(forward, row))
    states = torch.stack([torch.cat(row) for row in weighted])  # [B, 77 k, D]
    if tower.pooled is None:
        return states, None
    return states, torch.stack([forward.pooled(row[0].ids) for row in rows])


Key = tuple[tuple[int, ...], tuple[int, ...]]
"""The ids of a piece, and the places (counted from the start token) that nothing is to attend to."""


class _Forward:
    """One tower's encoder, which is told no piece twice."""

    def __init__(self, tower: Tower, extra_skip: int, device: torch.device | str) -> None:
        self.tower, self.skip, self.device = tower, tower.layers_skipped + extra_skip, device
        self._states: dict[Key, Tensor] = {}  # [77, D]
        self._pooled: dict[Key, Tensor] = {}  # [P]

    def states(self, ids: tuple[int, ...], hidden: tuple[int, ...] = ()) -> Tensor:
        """[77, D]."""
        self.want([(ids, hidden)])
        return self._states[ids, hidden]

    def pooled(self, ids: tuple[int, ...]) -> Tensor:
        """[P]."""
        return self._pooled[ids, ()]

    def want(self, keys: Sequence[Key]) -> None:
        """Encode those that are new, a few at a time."""
        new = [key for key in dict.fromkeys(keys) if key not in self._states]
        for masked in (False, True):
            group = [key for key in new if bool(key[1]) is masked]
            for start in range(0, len(group), AT_ONCE):
                self._run(group[start : start + AT_ONCE], masked)

    def _run(self, keys: Sequence[Key], masked: bool) -> None:
        tokenizer = self.tower.tokenizer
        ids = torch.tensor([tokenizer.frame(ids) for ids, _ in keys], device=self.device)  # [B, 77]
        seen = None
        if masked:
            seen = torch.ones_like(ids, dtype=torch.bool)
            for row, (_, places) in enumerate(keys):
                seen[row, list(places)] = False
        encoded = self.tower.encoder(ids, self.skip, seen)
        states = encoded.last if self.tower.normalised else encoded.hidden[-1 - self.skip]
        pooled = encoded.projected if self.tower.pooled == "projected" else encoded.pooled
        if pooled is None:
            raise RequestError("This text encoder has no projection, and its family reads one.")
        for row, key in enumerate(keys):
            self._states[key], self._pooled[key] = states[row], pooled[row]


def _weights(chunk: Chunk, like: Tensor) -> Tensor | None:
    """[77, 1] in float32, 1 at start, end and padding; None where all are 1."""
    if all(weight == 1.0 for weight in chunk.weights):
        return None
    weights = torch.ones(len(like), 1, dtype=torch.float32)
    weights[1 : 1 + len(chunk.weights), 0] = torch.tensor(chunk.weights)
    return weights.to(like.device)


def _scale(states: Tensor, chunk: Chunk) -> Tensor:
    """A1111's rule; a mean of nothing (all weights 0) is left at nothing."""
    weights = _weights(chunk, states)
    if weights is None:
        return states
    scaled = states.float() * weights
    mean = scaled.mean()
    restored = torch.where(mean == 0, scaled, scaled * (states.float().mean() / mean))
    return restored.to(states.dtype)


def _lerp(forward: _Forward, chunk: Chunk, hidden: tuple[int, ...] = ()) -> Tensor:
    """ComfyUI's rule."""
    states = forward.states(chunk.ids, hidden)
    weights = _weights(chunk, states)
    if weights is None:
        return states
    empty = forward.states(()).float()
    return torch.lerp(empty, states.float(), weights).to(states.dtype)


def _mix(forward: _Forward, row: Sequence[Chunk]) -> list[Tensor]:
    """compel's rule, its default "mask" mode, for all pieces of a prompt."""
    weight = {span: w for chunk in row for span, w in zip(chunk.spans, chunk.weights, strict=True) if w < 1.0}
    if len(weight) > MOST_DOWNWEIGHTED:
        raise RequestError(
            f"compel weights: {len(weight)} places are below weight 1, at most {MOST_DOWNWEIGHTED} can be; join "
            "neighbours, or choose prompt_weighting a1111 or comfy."
        )
    share = {span: math.tan((1.0 - max(w, 1e-5)) * math.pi / 2) for span, w in weight.items()}
    total = 1.0 + sum(share.values())
    places = [
        {span: tuple(i for i, s in enumerate(chunk.spans, 1) if s == span) for span in share if span in chunk.spans}
        for chunk in row
    ]
    forward.want([(chunk.ids, hidden) for chunk, by in zip(row, places, strict=True) for hidden in by.values()])
    mixed = []
    for chunk, by in zip(row, places, strict=True):
        whole = _lerp(forward, chunk)
        without = [(share[span], _lerp(forward, chunk, hidden)) for span, hidden in by.items()]
        result = whole.float()
        for part, other in without:
            result = result + (part / total) * (other.float() - whole.float())
        mixed.append(result.to(whole.dtype) if without else whole)
    return mixed
