"""Webdataset shards: tar files whose members share a name up to the first dot, as ``0001.jpg`` and ``0001.txt`` do."""

import json
import tarfile
from pathlib import Path
from typing import NamedTuple

from sfumato.core.errors import DataError
from sfumato.training.data import Item, Problem, Said
from sfumato.training.pictures import SUFFIXES
from sfumato.training.readers.walk import files, natural


class Span(NamedTuple):
    """Where a member's bytes lie."""

    path: Path
    start: int
    length: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.length)


class Tar:
    """Members of all shards below the folder, in natural order of the shards and their own order within.

    Opening reads the members' headers, once; after that every item is one read at a known place, so that any order is
    as quick as the stored one. The caption is the ``.txt`` (or ``.caption``), or the caption column of the ``.json``.
    """

    classes: tuple[str, ...] = ()

    def __init__(self, where: str, image: str = "image", caption: str = "text") -> None:
        self.root = Path(where)
        self.caption = caption
        shards = [self.root] if self.root.is_file() else sorted(files(self.root, (".tar",)), key=natural)
        self.samples: list[tuple[str, dict[str, Span]]] = []
        self.found: list[Problem] = []
        for shard in shards:
            samples: dict[str, dict[str, Span]] = {}
            try:
                with tarfile.open(shard, "r:") as archive:  # uncompressed alone can be read in place
                    for member in archive:
                        if member.isfile():
                            folder, slash, name = member.name.rpartition("/")
                            stem, dot, suffix = name.partition(".")
                            parts = samples.setdefault(folder + slash + stem, {})
                            parts[dot + suffix.lower()] = Span(shard, member.offset_data, member.size)
                    end = archive.offset
            except (tarfile.TarError, EOFError) as problem:
                raise DataError(f"{shard} is not an uncompressed tar file: {problem}.") from None
            size = shard.stat().st_size
            if end > size:
                raise DataError(f"{shard} is truncated: {size:,} bytes of {end:,}.")
            if any(Span(shard, end, tarfile.BLOCKSIZE).read()):  # the library takes that for the end
                raise DataError(f"{shard} is truncated or damaged: at byte {end:,} of {size:,} no member begins.")
            for name, parts in samples.items():
                if any(suffix in SUFFIXES for suffix in parts):
                    self.samples.append((f"{shard.name}: {name}", parts))
                else:
                    self.found.append(Problem("missing-picture", f"{shard.name}: {name}", "a sample without a picture"))

    @staticmethod
    def fits(path: Path) -> bool:
        return path.suffix == ".tar" if path.is_file() else next(files(path, (".tar",)), None) is not None

    def __len__(self) -> int:
        return len(self.samples)

    def item(self, index: int) -> Item:
        name, parts = self.samples[index]
        suffix = next(s for s in parts if s in SUFFIXES)
        said = Said(None)
        beside = parts.get(".txt") or parts.get(".caption")
        if beside is not None:
            try:
                said = Said(beside.read().decode("utf-8").strip())
            except UnicodeDecodeError as problem:
                raise DataError(f"{name}.txt is not UTF-8 text ({problem.reason}).") from None
        elif ".json" in parts:
            try:
                said = Said.of(json.loads(parts[".json"].read()).get(self.caption))
            except (ValueError, AttributeError) as problem:
                raise DataError(f"{name}.json is not a JSON object: {problem}.") from None
        return Item(parts[suffix].read(), said.caption, name + suffix, others=said.others)

    def problems(self) -> list[Problem]:
        return self.found
