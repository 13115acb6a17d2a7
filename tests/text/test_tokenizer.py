"""CLIP's tokenizer against the ecosystem's, and one's own vocabulary."""

import gzip
import json
import re
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.core.errors import CheckpointError, ConfigError
from sfumato.text.tokenizer import END, START, ClipTokenizer, builtin, load, train
from tests.conftest import ROOT, shared

REAL = ["sd14/tokenizer", "sd21/tokenizer", "sdxl/tokenizer", "sdxl/tokenizer_2"]
TEXTS = [
    "a photo of a cat", "Hello!!! WORLD", "it's I'm we'll DON'T", "cafe\u0301 CAFÉ naïve", "🐈‍⬛ 🎨👩‍🚀 ☃",
    "  a\t\nb  ",
    "<|startoftext|>x<|endoftext|>y", "<|ENDOFTEXT|> y", "<|StartOfText|>", "2024年 数字 ٣٤", "a!b ! c",
    "\u00a0x\u3000y", "",
    "İstanbul ß ẞ Ǆ", "\x00\x01\x7f", "...,,,;; --- ???", "'s 's s's", "ﬁne ½ ①", "supercalifragilisticexpialidocious",
    "(a:1.2) [b] \\(c\\)", "</w> a</w>", "\ufeffbom\u200b",
]


@cache
def pair(name: str) -> tuple[Any, ClipTokenizer]:
    transformers = pytest.importorskip("transformers")
    folder = shared("reference/checkpoint_folders") / name
    return transformers.CLIPTokenizer.from_pretrained(folder), load(folder)


def assert_equal(peer: Any, ours: ClipTokenizer, text: str) -> None:
    assert ours.encode(text) == peer(text, add_special_tokens=False)["input_ids"]
    framed = peer(text, padding="max_length", truncation=True, max_length=77)["input_ids"]
    assert ours.frame(ours.encode(text)[:75]) == framed


@pytest.mark.parametrize("name", REAL)
def test_ids_are_the_peers(name: str) -> None:
    peer, ours = pair(name)
    assert (ours.start, ours.end, ours.pad) == (peer.bos_token_id, peer.eos_token_id, peer.pad_token_id)
    assert len(ours) == len(peer)
    for text in TEXTS:
        assert_equal(peer, ours, text)


@pytest.mark.parametrize("name", REAL[:2])
@given(text=st.text(max_size=40))
def test_ids_of_any_text_are_the_peers(name: str, text: str) -> None:
    assert_equal(*pair(name), text)


@pytest.mark.parametrize("name", REAL)
def test_the_builtin_tokenizer_is_the_real_one(name: str, tmp_path: Path) -> None:
    real = shared("reference/checkpoint_folders") / name
    tokenizer = builtin("!" if name in ("sd21/tokenizer", "sdxl/tokenizer_2") else END)
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_text()) == json.loads((real / "vocab.json").read_text())
    assert (tmp_path / "merges.txt").read_text() == (real / "merges.txt").read_text()
    assert tokenizer.pad == load(real).pad


def test_the_builtin_merges_are_small() -> None:
    packed = (ROOT / "sfumato/text/clip_merges.txt.gz").read_bytes()
    assert len(packed) < 250_000
    assert len(gzip.decompress(packed).splitlines()) == len(builtin()) - 514 == 48_894


def test_padding_differs_between_the_encoders_that_were_trained_so() -> None:
    assert builtin().frame([320])[:5] == [49406, 320, 49407, 49407, 49407]
    assert builtin("!").frame([320])[:5] == [49406, 320, 49407, 0, 0]
    with pytest.raises(ValueError, match="76 tokens do not fit into 77 positions"):
        builtin().frame([320] * 76)


def test_tokens_know_their_characters() -> None:
    text = "A  Photo, of Cafes"
    assert [text[t.start : t.stop] for t in builtin().tokens(text)] == ["A", "Photo", ",", "of", "Cafes"]


def test_decoding() -> None:
    tokenizer = builtin()
    assert tokenizer.decode(tokenizer.encode("Café it's 🐈!")) == "café it 's 🐈!"
    assert tokenizer.decode(tokenizer.frame([320])[:3]) == f"{START} a {END}"
    with pytest.raises(ValueError, match="no token with id 50000"):
        tokenizer.decode([50_000])


def test_a_tokenizer_json_alone_is_enough(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    trained = train(["a red apple", "a green apple 🍏", "a red ball!"] * 4, 530)
    trained.save(tmp_path / "ours")
    peer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "ours")
    peer.add_tokens(["<my-cat>"])
    peer.save_pretrained(tmp_path / "theirs")
    assert not (tmp_path / "theirs" / "merges.txt").exists()
    ours = load(tmp_path / "theirs")
    assert ours.id("<my-cat>") == len(trained)
    for text in [*TEXTS, "a <my-cat>, red"]:
        assert_equal(peer, ours, text)


def test_training_learns_words_and_is_deterministic(tmp_path: Path) -> None:
    captions = ["a red apple", "a green apple 🍏", "two red balls", "it's an apple"] * 5
    tokenizer = train(captions, 560)
    assert len(tokenizer) <= 560
    assert len(tokenizer.encode("apple")) == 1
    assert tokenizer.decode(tokenizer.encode("A Red 🍏 unseen!")) == "a red 🍏 unseen !"
    assert tokenizer.end == len(tokenizer) - 1 == tokenizer.start + 1
    tokenizer.save(tmp_path / "here")
    program = (
        "from pathlib import Path; from sfumato.text.tokenizer import train; "
        f"train({captions!r}, 560).save(Path({str(tmp_path / 'there')!r}))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_a_trained_tokenizer_is_saved_and_loaded(tmp_path: Path) -> None:
    tokenizer = train(["a red apple"] * 3, 520)
    tokenizer.save(tmp_path)
    again = load(tmp_path)
    assert all(tokenizer.encode(text) == again.encode(text) for text in TEXTS)
    assert len(tokenizer) == len(again)


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match="take 514"):
        train(["a"], 513)


@pytest.mark.parametrize(("files", "message"), [
    ({}, "neither vocab.json with merges.txt nor tokenizer.json"),
    ({"vocab.json": "{", "merges.txt": ""}, "vocab.json is not JSON"),
    ({"vocab.json": "[]", "merges.txt": ""}, "does not hold a JSON object"),
    ({"vocab.json": "{}", "merges.txt": ""}, "has no token '<|startoftext|>'"),
    ({"vocab.json": f'{{"{START}": 0, "{END}": 1}}', "merges.txt": "a b"}, "merges do not fit"),
    ({"vocab.json": f'{{"{START}": 0, "{END}": 1}}', "merges.txt": "#version\na b c"}, "merge 1: expected two tokens"),
    ({"tokenizer.json": '{"model": {"type": "Unigram"}}'}, "holds a Unigram model"),
])
def test_damaged_files_are_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert message in str(caught.value)


@given(data=st.data())
def test_no_damage_escapes_as_another_error(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A value somewhere in the files is replaced by one of another type, or a file is cut."""
    folder = tmp_path_factory.mktemp("damaged")
    alphabet = {token: i for i, token in enumerate(["a", "b</w>", "ab</w>", "c", START, END])}
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": alphabet, "merges": [["a", "b</w>"]]}
    added = [{"id": 6, "content": "<x>", "normalized": True, "special": False}]
    whole = json.dumps({"model": model, "added_tokens": added})
    config = json.dumps({"pad_token": END, "model_max_length": 77, "added_tokens_decoder": {"4": {"content": START}}})
    for name, text in (("tokenizer.json", whole), ("tokenizer_config.json", config)):
        (folder / name).write_text(text)
    assert load(folder).encode("ab <x>") == [2, 6]
    junk = data.draw(st.sampled_from(["null", "3", '"x"', "[]", "{}", "1e999", "-1", "true", "NaN"]))
    for name, text in (("tokenizer.json", whole), ("tokenizer_config.json", config)):
        values = [m.span() for m in re.finditer(r'(?<=: )("[^"]*"|\d+|\[[^\[\]]*\]|\{[^{}]*\}|true)', text)]
        start, stop = data.draw(st.sampled_from(values))
        text = text[:start] + junk + text[stop:]
        if data.draw(st.integers(0, 9)) == 0:
            text = text[: data.draw(st.integers(0, len(text)))]
        (folder / name).write_text(text)
    with suppress(CheckpointError):
        load(folder).encode("ab <x>")


def test_a_long_text_takes_no_time() -> None:
    for text in ("a" * 20_000, "cat " * 5_000, "🐈" * 10_000, "!" * 20_000, " " * 20_000):
        start = time.process_time()
        builtin().encode(text)
        assert time.process_time() - start < 1.0
