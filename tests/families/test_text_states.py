"""Text states: pieces, weights, clip-skip, against the formulas and against the peers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.core.errors import RequestError
from sfumato.families.text_states import PromptStates, Tower, encode
from sfumato.models.clip_text import ClipText, ClipTextConfig
from sfumato.text.prompt import Syntax, parse
from sfumato.text.tokenizer import builtin

LONG = "a cat, " * 40  # 120 tokens


class Counting(ClipText):
    """Remembers how many sequences it was told."""

    told = 0

    def forward(self, ids: Tensor, layers_skipped: int = 0, seen: Tensor | None = None) -> Any:
        self.told += len(ids)
        return super().forward(ids, layers_skipped, seen)


@pytest.fixture(scope="module")
def clip() -> Counting:
    torch.manual_seed(0)
    model = Counting(ClipTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, projection_dim=24,
        with_projection=True,
    ))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.requires_grad_(False).eval()


def ids(*texts: str) -> Tensor:
    return torch.tensor([builtin().frame(builtin().encode(text)) for text in texts])


def run(clip: ClipText, *prompts: str, **options: Any) -> PromptStates:
    return encode([Tower(builtin(), clip)], prompts, **options)


def test_without_weights_it_is_plain_encoding(clip: Counting) -> None:
    for weighting in ("a1111", "comfy", "compel"):
        found = run(clip, "a red cat", "", weighting=weighting)
        assert torch.equal(found.states, clip(ids("a red cat", "")).last)
        assert found.tokens == (3, 0)
        assert found.pooled is None
        assert found.warnings == ()


def test_long_prompts_are_encoded_piece_by_piece(clip: Counting) -> None:
    found = run(clip, LONG, "blurry")
    tokens = builtin().encode(LONG)
    cut = 75  # 75 tokens end with a comma
    first, second = (torch.tensor([builtin().frame(part)]) for part in (tokens[:cut], tokens[cut:]))
    empty = clip(ids("")).last
    assert found.states.shape == (2, 154, 32)
    assert found.tokens == (120, 1)
    expected = torch.cat([torch.cat([clip(first).last, clip(second).last], 1),
                          torch.cat([clip(ids("blurry")).last, empty], 1)])
    torch.testing.assert_close(found.states, expected)


def test_break_starts_a_piece(clip: Counting) -> None:
    found = run(clip, "a cat BREAK a dog")
    torch.testing.assert_close(found.states, clip(ids("a cat", "a dog")).last.reshape(1, 154, 32))


def test_nothing_is_encoded_twice(clip: Counting) -> None:
    clip.told = 0
    run(clip, "a cat BREAK a cat BREAK BREAK a dog", "a cat", "", weighting="comfy")
    assert clip.told == 3


def test_truncation_warns(clip: Counting) -> None:
    found = run(clip, "cat " * 75 + "on a Mat", "", long_prompts="truncate")
    assert found.states.shape == (2, 77, 32)
    assert found.tokens == (75, 0)
    assert found.warnings == ("The prompt was cut after 75 tokens. Dropped: 'on a Mat'.",)


def test_a1111_weights(clip: Counting) -> None:
    found = run(clip, "a (red:1.5) [cat]").states[0]
    plain = clip(ids("a red cat")).last[0]
    weights = torch.ones(77, 1)
    weights[2], weights[3] = 1.5, 1 / 1.1
    scaled = plain * weights
    torch.testing.assert_close(found, scaled * (plain.mean() / scaled.mean()))
    torch.testing.assert_close(found.mean(), plain.mean())


def test_comfy_weights(clip: Counting) -> None:
    found = run(clip, "a (red:1.5) (cat:0.5)", weighting="comfy").states[0]
    plain, empty = clip(ids("a red cat", "")).last
    weights = torch.ones(77, 1)
    weights[2], weights[3] = 1.5, 0.5
    torch.testing.assert_close(found, empty + weights * (plain - empty))


@pytest.mark.parametrize(("text", "weights", "down"), [
    ("a red+ cat", [1.1, 1.0], []),
    ("a (red)0.5 cat", [0.5, 1.0], [(2, 0.5)]),
    ("a (red)0.3 cat--", [0.3, 0.81], [(2, 0.3), (3, 0.81)]),
    ("a (red)0 cat++", [0.0, 1.21], [(2, 0.0)]),
])
def test_compel_weights(clip: Counting, text: str, weights: list[float], down: list[tuple[int, float]]) -> None:
    found = run(clip, text, weighting="compel").states[0]
    row = torch.ones(77, 1)
    row[2, 0], row[3, 0] = weights
    sequence = ids("a red cat")
    empty: Tensor = clip(ids("")).last[0]

    def weighted(hidden: int | None) -> Tensor:
        seen = torch.ones(1, 77, dtype=torch.bool)
        if hidden is not None:
            seen[0, hidden] = False
        states: Tensor = clip(sequence, seen=seen).last[0]
        return empty + row * (states - empty)

    shares = [1.0, *(math.tan((1 - max(w, 1e-5)) * math.pi / 2) for _, w in down)]
    parts = [weighted(None), *(weighted(place) for place, _ in down)]
    expected = torch.stack([s / sum(shares) * part for s, part in zip(shares, parts, strict=True)]).sum(0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_compel_weight_zero_is_the_prompt_that_lacks_the_word(clip: Counting) -> None:
    found = run(clip, "a cat (on a mat)0", weighting="compel").states[0, :3]
    torch.testing.assert_close(found, clip(ids("a cat")).last[0, :3], rtol=1e-3, atol=1e-4)


def test_hidden_tokens_are_the_peers_attention_mask(clip: Counting) -> None:
    transformers = pytest.importorskip("transformers")
    peer = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(
        vocab_size=49408, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        projection_dim=24, bos_token_id=49406, eos_token_id=49407,
    )).eval()
    state = peer.state_dict()
    assert len(state) == len(clip.state_dict())
    ours = {name.removeprefix("text_model."): tensor for name, tensor in clip.state_dict().items()}
    peer.load_state_dict({name: ours[name.removeprefix("text_model.")] for name in state if "position_ids" not in name})
    sequence, mask = ids("a red cat on a mat"), torch.ones(1, 77, dtype=torch.int64)
    mask[0, 2:4] = 0
    with torch.no_grad():
        expected = peer(sequence, attention_mask=mask, output_hidden_states=True).hidden_states
    for theirs, mine in zip(expected, clip(sequence, seen=mask.bool()).hidden, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("skipped", "normalised", "clip_skip", "layer"), [
    (0, True, None, 3), (0, True, 1, 3), (0, True, 2, 2), (1, True, None, 2), (1, False, 1, 2), (1, False, 2, 1),
])
def test_clip_skip(clip: Counting, skipped: int, normalised: bool, clip_skip: int | None, layer: int) -> None:
    found = encode([Tower(builtin(), clip, skipped, normalised)], ["a cat"], clip_skip=clip_skip).states
    hidden = clip(ids("a cat")).hidden[layer]
    expected = clip.text_model.final_layer_norm(hidden) if normalised else hidden
    assert torch.equal(found, expected)


def test_too_much_clip_skip_is_refused(clip: Counting) -> None:
    with pytest.raises(RequestError, match="has 3"):
        run(clip, "a", clip_skip=4)


def test_two_towers_stand_side_by_side(clip: Counting) -> None:
    """As SDXL has it: two widths, two paddings, pooled text of the second tower's first piece, never weighted."""
    towers = [Tower(builtin(), clip, 1, False), Tower(builtin("!"), clip, 1, False, "projected")]
    found = encode(towers, ["(a cat:1.4) BREAK a dog", ""])
    padded = torch.tensor([builtin("!").frame(builtin().encode(text)) for text in ("a cat", "")])
    assert found.states.shape == (2, 154, 64)
    assert found.pooled is not None
    torch.testing.assert_close(found.pooled, clip(padded).projected)
    torch.testing.assert_close(found.states[1, :77, 32:], clip(padded).hidden[2][1])
    torch.testing.assert_close(found.states[1, :77, :32], clip(ids("")).hidden[2][0])


def test_half_precision_keeps_its_type(clip: Counting) -> None:
    half = Counting(clip.config).requires_grad_(False).to(torch.bfloat16)
    half.load_state_dict(clip.state_dict())
    for weighting, text in (("a1111", "(a:1.5)"), ("comfy", "(a:1.5)"), ("compel", "a- b")):
        assert run(half, text, weighting=weighting).states.dtype is torch.bfloat16


@pytest.mark.parametrize(("text", "weighting", "message"), [
    ("a <lora:x:1>", "a1111", "asks for <lora:x:1>"),
    ("[a:b:0.5]", "a1111", "holds '[a:b:0.5]'"),
    ("a AND b", "a1111", "holds 'AND'"),
    ("(" * 10_000 + "a", "a1111", "The weight of 'a' is inf"),
    ("(" * 8_000 + "a:0)", "a1111", "The weight of 'a' is nan"),
    ("a- b " * 65, "compel", "65 places are below weight 1"),
])
def test_what_cannot_be_encoded_is_named(clip: Counting, text: str, weighting: Syntax, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        run(clip, text, weighting=weighting)
    assert message in str(caught.value)


def test_tags_of_a_parsed_prompt_are_its_parsers_business(clip: Counting) -> None:
    found = encode([Tower(builtin(), clip)], [parse("a <lora:x:1>cat")])
    assert torch.equal(found.states, clip(ids("a cat")).last)
