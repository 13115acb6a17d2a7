"""Models by name: ``org/name`` from the Hugging Face hub or a mirror of it, through its own library and its cache.

The library reads HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE; nothing here does. Only what drawing
needs is fetched: the files of a folder's parts, one precision of them, safetensors where there is a choice.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sfumato.checkpoints import file_names as names_of
from sfumato.checkpoints.file_names import CONFIG_FILES, SET_ASIDE, STEMS, TOKENIZER_FILES
from sfumato.core.errors import CheckpointError
from sfumato.core.shipped import FOLDERS

T = TypeVar("T")
WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


class Name(NamedTuple):
    """A name on the hub: ``org/name``, ``org/name@revision``, ``org/name/file.safetensors``.

    Attributes:
        repository: ``org/name``.
        file: one file of it; empty: the model folder that it is.
        revision: branch, tag or commit; None: the main branch.
    """

    repository: str
    file: str = ""
    revision: str | None = None


def parse_name(source: str) -> Name | None:
    """What a name says; None where it cannot be a name on the hub."""
    found = re.fullmatch(r"([\w][\w.-]*/[\w][\w.-]*)((?:/[\w][\w .()+-]*)*)(?:@([\w./-]+))?", source)
    if found is None:
        return None
    repository, file, revision = found[1], found[2].removeprefix("/"), found[3]
    if repository.endswith(WEIGHT_SUFFIXES) or (file and not file.endswith(WEIGHT_SUFFIXES)):
        return None
    return Name(repository, file, revision)


def locate(source: str | Path, variant: str | None = None) -> Path:
    """A file or folder on this machine: the path that was given, or what the hub has under that name.

    Nothing is asked of the network where the path exists.

    Args:
        variant: which weights of a folder to fetch, e.g. ``fp16``.

    Raises:
        CheckpointError: neither a path nor a name; or what ``fetch`` raises.
    """
    if source in FOLDERS:
        return FOLDERS[str(source)]
    path = Path(source).expanduser()
    if path.exists():
        return path
    name = parse_name(str(source))
    if name is None or (isinstance(source, Path)):
        raise CheckpointError(
            f"There is no file or folder {source}, and it is no name on the hub (those read org/name, "
            "org/name@revision or org/name/file.safetensors)."
        )
    return fetch(name, variant)


def fetch(name: Name, variant: str | None = None) -> Path:
    """Fetch what is not in the cache yet, and say where it is.

    Raises:
        CheckpointError: no such repository, revision or file, no right to it, no network and not in the cache; one
            paragraph that says what to do.
    """
    import huggingface_hub as hub

    if name.file:
        file = _asked(name, lambda: hub.hf_hub_download(name.repository, name.file, revision=name.revision))
        return Path(file)

    def snapshot(wanted: Sequence[str]) -> Path:
        return Path(hub.snapshot_download(name.repository, revision=name.revision, allow_patterns=list(wanted)))

    small = _asked(name, lambda: snapshot(["model_index.json", "config.json"]))
    try:
        # Not list_repo_files, which asks again and again for half a minute where there is no network.
        siblings = hub.HfApi().model_info(name.repository, revision=name.revision).siblings or []
        files = [sibling.rfilename for sibling in siblings]
    except Exception as problem:  # whatever the library's HTTP client raises without a network
        if not _unreachable(problem):
            raise _explained(name, problem) from problem
        files = [p.relative_to(small).as_posix() for p in small.rglob("*") if p.is_file()]
        try:
            choose(files, _index(small), variant, name.repository)
        except CheckpointError:
            raise _explained(name, problem) from problem
        return small
    wanted = choose(files, _index(small), variant, name.repository)
    return _asked(name, lambda: snapshot(wanted))


NOT_PUSHED = ("training/*/checkpoints/**", "training/cache/**", "**/.*")
"""Of a run folder: what only going on with the run needs."""


def push(folder: Path, repository: str, private: bool = True) -> str:
    """Upload a model folder as one commit; the repository is made where there is none.

    Args:
        repository: ``org/name``.
        private: of a repository that is made now.

    Returns:
        Its address.

    Raises:
        CheckpointError: not a name, no right to write there (HF_TOKEN), or no network.
    """
    import huggingface_hub as hub

    name = parse_name(repository)
    if name is None or name.file or name.revision:
        raise CheckpointError(f"{repository!r} is no name of a repository on the hub; those read org/name.")
    try:
        address = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repository, folder_path=folder, ignore_patterns=list(NOT_PUSHED),
            commit_message="Trained with sfumato",
        )
    except Exception as problem:  # see _asked
        first = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise CheckpointError(
            f"{folder} could not be uploaded to {repository} ({type(problem).__name__}: {first}). Set HF_TOKEN to a "
            "token that may write there; the folder itself is whole, and nothing has to be trained again."
        ) from problem
    return str(address)


def _index(folder: Path) -> Mapping[str, Any] | None:
    path = folder / "model_index.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise CheckpointError(f"{path} is not JSON.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a table.")
    return content


def choose(files: Sequence[str], index: Mapping[str, Any] | None, variant: str | None, where: str) -> list[str]:
    """Which files of a repository to fetch.

    Args:
        files: all there are.
        index: its model_index.json; None where it has none: the repository is one part alone.

    Raises:
        CheckpointError: a part without weights of that variant, or a repository that is no model folder.
    """
    if index is None and "config.json" not in files:
        singles = [f for f in files if f.endswith(WEIGHT_SUFFIXES)]
        offer = f" Its weight files are {', '.join(singles[:8])}: name one, as {where}/{singles[0]}." if singles else ""
        raise CheckpointError(f"{where} is no model folder: it has no model_index.json and no config.json.{offer}")
    if index is None:
        return ["config.json", *_weights("", files, variant, where)]
    wanted = ["model_index.json"]
    for part, entry in index.items():
        if part.startswith("_") or not isinstance(entry, list) or len(entry) != 2 or entry[1] is None:
            continue
        if part in SET_ASIDE:
            continue
        known = [f"{part}/{f}" for f in CONFIG_FILES + TOKENIZER_FILES if f"{part}/{f}" in files]
        wanted += known
        if f"{part}/config.json" in known:
            wanted += _weights(f"{part}/", files, variant, where)
    return wanted


def _weights(folder: str, files: Sequence[str], variant: str | None, where: str) -> Iterator[str]:
    names = [f.removeprefix(folder) for f in files if f.startswith(folder) and "/" not in f.removeprefix(folder)]
    candidates = [n for pair in STEMS.items() for n in names_of.weight_names(*pair, variant)]
    found = next((n for n in sorted(candidates, key=lambda n: ".bin" in n) if n in names), None)
    if found is None:
        others = names_of.variants(names)
        offer = f"say which variant: {', '.join(others)}" if others and variant is None else "leave the variant out"
        advice = offer if names and (others or variant) else "it has none that are read here"
        raise CheckpointError(f"{where}: {folder or 'the repository'} holds no weights of that kind; {advice}.")
    yield folder + found
    if found.endswith(".json"):
        yield from (folder + shard for shard in names_of.shards_of(found, names))


def _asked(name: Name, question: Callable[[], T]) -> T:
    """The answer of the hub's library, its many exceptions made one paragraph."""
    try:
        return question()
    except Exception as problem:  # the library and its HTTP client share no base class, and change with versions
        raise _explained(name, problem) from problem


def _unreachable(problem: BaseException) -> bool:
    kinds = {kind.__name__ for kind in type(problem).__mro__}
    return bool(kinds & {"OfflineModeIsEnabled", "ConnectionError", "TimeoutException", "Timeout", "TransportError"})


def _explained(name: Name, problem: BaseException) -> CheckpointError:
    from huggingface_hub import constants, errors

    place = name.repository + (f"/{name.file}" if name.file else "") + (f"@{name.revision}" if name.revision else "")
    first = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    if isinstance(problem, errors.GatedRepoError):
        reason = "is gated: accept its terms on its page, and set HF_TOKEN to a token of that account"
    elif isinstance(problem, errors.RepositoryNotFoundError):
        reason = "does not exist there, or is private: check the name, or set HF_TOKEN to a token that may read it"
    elif isinstance(problem, errors.RevisionNotFoundError):
        reason = "has no such revision"
    elif isinstance(problem, errors.LocalEntryNotFoundError) or _unreachable(problem):
        asked = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} was not reached"
        reason = (
            f"is not (or not wholly) in the cache {constants.HF_HUB_CACHE}, and {asked}: run once with a network, set "
            "HF_ENDPOINT to a mirror, or give the path of a copy"
        )
    elif isinstance(problem, errors.EntryNotFoundError):
        reason = "has no such file"
    else:
        reason = f"could not be fetched ({type(problem).__name__}: {first})"
    return CheckpointError(f"{place} on the hub {reason}.")
