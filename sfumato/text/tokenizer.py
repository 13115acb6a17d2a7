"""CLIP's tokenizer: byte-level byte-pair encoding of lower-cased words (Radford et al., 2021, section 2.4).

The vocabulary follows from the merges alone: the 256 bytes, the 256 bytes that end a word, one token a merge, then
the start and the end of a text. So a list of merges is a whole tokenizer, and CLIP's own list comes with the package,
for checkpoints that carry no tokenizer files.
"""

import gzip
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, trainers

from sfumato.core.config import read_json
from sfumato.core.errors import CheckpointError, ConfigError
from sfumato.core.files import atomic_file

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
LENGTH = 77
"""Positions of CLIP's text encoders, the start and the end of the text among them."""
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What counts as one word: a contraction's ending, letters, one digit, or anything else without spaces."""

Merges = Sequence[tuple[str, str]]


class Token(NamedTuple):
    """One token of a text: its id, and the characters ``text[start:stop]`` that it stands for."""

    id: int
    start: int
    stop: int


class ClipTokenizer:
    """Text to token ids, without the start, the end and the padding, which ``frame`` puts around them.

    Attributes:
        start, end, pad: ids of the tokens that open a text, close it, and fill the places after it.
        length: positions of the text encoder, 77 in CLIP.
    """

    def __init__(
        self, vocabulary: Mapping[str, int], merges: Merges, pad: str = END, added: Mapping[str, int] | None = None,
        any_case: Collection[str] | None = None, length: int = LENGTH,
    ) -> None:
        """
        Args:
            vocabulary: token to id, in the byte alphabet, words ending in ``</w>``.
            merges: pairs in the order in which they are to be joined.
            pad: the token that fills the places after the end.
            added: tokens found in a text before it is split into words; their ids follow the vocabulary's.
            any_case: which of these, of start, end and padding are found in any case; the files of Stable Diffusion
                say start and end, but not the token that pads.

        Raises:
            CheckpointError: tokens that are missing or that contradict each other.
        """
        for token in (START, END, pad):
            if token not in vocabulary:
                raise CheckpointError(f"The vocabulary of this CLIP tokenizer has no token {token!r}.")
        try:
            model = models.BPE(
                vocab=dict(vocabulary), merges=list(merges), unk_token=END, end_of_word_suffix=WORD_END,
                continuing_subword_prefix="",
            )
        except Exception as problem:  # the library raises bare Exception
            raise CheckpointError(f"The merges do not fit the vocabulary of this CLIP tokenizer: {problem}.") from None
        self._merges, self._padding, self._added = tuple(merges), pad, dict(added or {})
        self._backend = tokenizers.Tokenizer(model)
        _clean(self._backend)
        # Found in a text before it is split into words, so that SD 2's padding "!" is id 0 there, as its training had.
        self._any_case = frozenset({START, END} - {pad} if any_case is None else any_case)
        self._special = tuple(dict.fromkeys((START, END, pad, *self._added)))
        self._backend.add_special_tokens(
            [AddedToken(t, special=True, normalized=t in self._any_case) for t in self._special]
        )
        for token, number in self._added.items():
            if self._backend.token_to_id(token) != number:
                raise CheckpointError(
                    f"The added token {token!r} should have id {number}, but {self._backend.token_to_id(token)} is "
                    f"the next that is free after the {len(vocabulary):,} of the vocabulary."
                )
        self.start, self.end, self.pad = vocabulary[START], vocabulary[END], vocabulary[pad]
        self.length = length

    def __len__(self) -> int:
        """The number of tokens: the rows that a text encoder's embedding table needs."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def tokens(self, text: str) -> list[Token]:
        """The tokens of a text of any length, each with the characters that it stands for."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return [Token(i, *span) for i, span in zip(encoding.ids, encoding.offsets, strict=True)]

    def encode(self, text: str) -> list[int]:
        """The ids of a text of any length."""
        return [token.id for token in self.tokens(text)]

    def frame(self, ids: Sequence[int]) -> list[int]:
        """``length`` ids: start, the given ones, end, padding.

        Raises:
            ValueError: more than ``length - 2`` ids.
        """
        if len(ids) > self.length - 2:
            raise ValueError(f"{len(ids)} tokens do not fit into {self.length} positions")
        return [self.start, *ids, self.end, *[self.pad] * (self.length - 2 - len(ids))]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: lower-cased, one space after each word; start, end and added tokens as they are written."""
        found = bytearray()
        for number in ids:
            token = self._backend.id_to_token(number)
            if token is None:
                raise ValueError(f"there is no token with id {number}")
            if token in (START, END) or token in self._added:
                found += (token + " ").encode()
                continue
            word = token.removesuffix(WORD_END)
            found += bytes(_bytes()[c] for c in word) + (b" " if word != token else b"")
        return found.decode("utf-8", "replace").strip()

    def id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it, e.g. ``",</w>"``; None where it has none."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def ends_word(self, number: int) -> bool:
        """Whether the token with this id is the last of a word; those that stand for themselves are."""
        token = self._backend.id_to_token(number) or ""
        return token.endswith(WORD_END) or token in self._special

    def save(self, folder: Path) -> None:
        """Write ``vocab.json``, ``merges.txt`` and the two small files that the ecosystem reads beside them."""
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary = self._backend.get_vocab(with_added_tokens=False)
        ordered = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
        names = {"bos_token": START, "eos_token": END, "pad_token": self._padding, "unk_token": END}
        flags = {"lstrip": False, "rstrip": False, "single_word": False, "special": True}
        config: dict[str, Any] = {
            **names, "model_max_length": self.length, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer",
            "added_tokens_decoder": {
                str(self.id(t)): {"content": t, "normalized": t in self._any_case, **flags} for t in self._special
            },
        }
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self._merges), ""]
        contents = {
            "vocab.json": _json(ordered), "merges.txt": "\n".join(lines), "tokenizer_config.json": _json(config),
            "special_tokens_map.json": _json(names),
        }
        for name, content in contents.items():
            with atomic_file(folder / name) as file:
                file.write(content.encode())


def load(folder: Path) -> ClipTokenizer:
    """The tokenizer of a checkpoint's ``tokenizer`` folder: ``vocab.json`` with ``merges.txt``, or ``tokenizer.json``.

    Raises:
        CheckpointError: the files are missing, damaged, or not those of a CLIP tokenizer.
    """
    try:
        return _load(folder)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as problem:
        raise CheckpointError(f"The tokenizer files in {folder} are damaged: {problem!r}.") from None


def _load(folder: Path) -> ClipTokenizer:
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary = _read(folder / "vocab.json")
        merges = _parse_merges((folder / "merges.txt").read_text(encoding="utf-8"), folder / "merges.txt")
        extra: list[dict[str, Any]] = []
    elif (folder / "tokenizer.json").is_file():
        whole = _read(folder / "tokenizer.json")
        model = whole.get("model", {})
        if model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != WORD_END:
            raise CheckpointError(
                f"{folder / 'tokenizer.json'} holds a {model.get('type', 'nameless')} model without CLIP's word "
                "endings: it is not the tokenizer of a CLIP text encoder."
            )
        vocabulary = model["vocab"]
        merges = _pairs(model["merges"], folder / "tokenizer.json")
        extra = whole.get("added_tokens", [])
    else:
        raise CheckpointError(
            f"{folder} has neither vocab.json with merges.txt nor tokenizer.json. Copy the tokenizer files of the "
            "model there; every Stable Diffusion uses CLIP's, which a checkpoint without such a folder gets."
        )
    config, names, by_name = (_read(folder / n) if (folder / n).is_file() else {} for n in SIDE_FILES)
    any_case: dict[str, bool] = {}
    special: dict[str, str] = {}
    for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = names.get(role) or config.get(role) or END  # SD 2.1's two files differ about padding; names is right
        special[role] = token["content"] if isinstance(token, dict) else token
        any_case[special[role]] = isinstance(token, dict) and token.get("normalized", True)
    extra = [*extra, *({"id": int(i), **token} for i, token in config.get("added_tokens_decoder", {}).items())]
    extra += ({"id": i, "content": t, "normalized": True} for t, i in by_name.items())
    any_case |= {t["content"]: t.get("normalized", True) for t in extra}
    added = {t["content"]: t["id"] for t in sorted(extra, key=lambda t: t["id"]) if t["content"] not in vocabulary}
    length = config.get("model_max_length", LENGTH)
    return ClipTokenizer(
        vocabulary, merges, special["pad_token"], added, [t for t, free in any_case.items() if free],
        length if 2 < length <= 10_000 else LENGTH,  # transformers writes 1e30 where nobody has set a limit
    )


SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@cache
def builtin(pad: str = END) -> ClipTokenizer:
    """CLIP's own tokenizer (OpenAI, 2021, MIT licence), for checkpoints of one file, which carry none.

    Args:
        pad: ``<|endoftext|>`` in Stable Diffusion 1 and in the first encoder of XL, ``!`` where OpenCLIP was trained.
    """
    text = gzip.decompress(files("sfumato.text").joinpath("clip_merges.txt.gz").read_bytes()).decode()
    merges = _parse_merges(text, Path("clip_merges.txt"))
    return ClipTokenizer(vocabulary_of(merges), merges, pad)


def train(captions: Iterable[str], vocab_size: int) -> ClipTokenizer:
    """A tokenizer learned from captions: the most frequent pair joined again and again (Sennrich et al., 2016).

    Args:
        vocab_size: tokens at most, the 512 of the byte alphabet, the start and the end among them. Captions that are
            too few give fewer: ``len(tokenizer)`` tells.

    Raises:
        ConfigError: ``vocab_size`` below 514.
    """
    smallest = 2 * len(byte_alphabet()) + 2
    if vocab_size < smallest:
        raise ConfigError(f"vocab_size = {vocab_size}: bytes, word endings, start and end alone take {smallest}.")
    backend = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=WORD_END, continuing_subword_prefix=""))
    _clean(backend)
    # Given their places beforehand, so that ties between equally frequent pairs do not hang on the order of a hash.
    alphabet = [*byte_alphabet(), *(c + WORD_END for c in byte_alphabet())]
    backend.train_from_iterator(
        captions, trainers.BpeTrainer(
            vocab_size=vocab_size - 2, special_tokens=alphabet, end_of_word_suffix=WORD_END, show_progress=False,
            continuing_subword_prefix="",
        ),
    )
    merges = _pairs(json.loads(backend.to_str())["model"]["merges"], Path("trained"))
    return ClipTokenizer(vocabulary_of(merges), merges)


def vocabulary_of(merges: Merges) -> dict[str, int]:
    """The vocabulary that follows from the merges, in CLIP's order."""
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(c + WORD_END for c in alphabet), *("".join(pair) for pair in merges), START, END]
    return {token: i for i, token in enumerate(tokens)}


@cache
def byte_alphabet() -> tuple[str, ...]:
    """A printable character for each byte (Radford et al., 2019): the bytes that have one first, as vocabularies do."""
    return tuple(_bytes())


@cache
def _bytes() -> dict[str, int]:
    """Those characters, and the bytes that they stand for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _clean(backend: tokenizers.Tokenizer) -> None:
    """CLIP's cleaning (composed Unicode, single spaces, lower case) and its splitting into words."""
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])


def _parse_merges(text: str, path: Path) -> list[tuple[str, str]]:
    lines = text.splitlines()
    return _pairs(lines[1:] if lines and lines[0].startswith("#version") else lines, path)


def _pairs(merges: Iterable[str | Sequence[str]], path: Path) -> list[tuple[str, str]]:
    """Merges as lines ``a b`` or as pairs, both of which files have."""
    pairs = [m.split(" ") if isinstance(m, str) else m for m in merges if m]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2:
            raise CheckpointError(f"{path}, merge {number}: expected two tokens, got {' '.join(pair)!r}.")
    return [(a, b) for a, b in pairs]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except ConfigError as problem:
        raise CheckpointError(str(problem)) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return found


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=2) + "\n"
