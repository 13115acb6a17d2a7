"""What ``sfumato inspect`` says of a file or folder: a report, and the report as text."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sfumato.checkpoints.controlnet import PREFIX, ControlLayout
from sfumato.checkpoints.diffusers import Folder, read_folder, read_part
from sfumato.checkpoints.dit import DiTLayout
from sfumato.checkpoints.fingerprint import Fingerprint, candidates
from sfumato.checkpoints.hashes import CONTENT_KEY, FileHashes, content_hash, file_hashes, verify
from sfumato.checkpoints.kinds import describe
from sfumato.checkpoints.lazy import Lazy, Tensors, under
from sfumato.checkpoints.ldm import EMA_PREFIX, UNET_PREFIX, VAE_PREFIX, Layout
from sfumato.checkpoints.load import check_fit, shapes_of
from sfumato.checkpoints.parts import Part
from sfumato.checkpoints.sniff import sniff
from sfumato.checkpoints.store import File, open_file
from sfumato.core.errors import CheckpointError

AnyLayout = Layout | DiTLayout | ControlLayout
Layouts = Mapping[tuple[str, str], AnyLayout]
"""(family, variant) -> what a single file of it holds."""

Judge = Callable[[Folder], tuple[str, tuple[str, ...]]]
"""What the families say of a model folder: the name of its family, or nothing, and what is wrong with it."""

GROUPS = {
    UNET_PREFIX: "unet",
    VAE_PREFIX: "vae",
    "cond_stage_model.": "text_encoder",
    "conditioner.embedders.0.": "text_encoder",
    "conditioner.embedders.1.": "text_encoder_2",
    EMA_PREFIX: "averaged unet",
    "depth_model.": "depth estimator",
    PREFIX: "controlnet",
}
"""Prefix in a single file -> part."""


@dataclass(frozen=True)
class Size:
    """Of one part: how many numbers, and how many bytes."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class Report:
    """What a file or folder is.

    Attributes:
        path: it.
        format: ``safetensors``, ``torch zip``, ``torch legacy``, ``folder``.
        seems: what its names say, e.g. ``a LoRA (kohya naming)``.
        families: every (family, variant) whose fingerprint it has; more than one: a flag has to decide.
        parts: name -> size.
        precisions: dtype -> number of tensors.
        problems: what is missing, unknown or does not fit.
        left_behind: what is there and no network needs.
        hashes: of the file; of a folder None.
        content: SHA-256 of the tensors' content, part by part in a folder; empty where it was not asked for.
        damaged: names of parts whose content is not what their header says.
        metadata: of the header.
    """

    path: Path
    format: str
    seems: str
    families: tuple[tuple[str, str], ...] = ()
    parts: Mapping[str, Size] = field(default_factory=dict)
    precisions: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()
    hashes: FileHashes | None = None
    content: Mapping[str, str] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The report for people."""
        return "\n".join(f"{label + ':':<12} {value}" for label, value in self._lines())

    def _lines(self) -> Iterable[tuple[str, str]]:
        yield "path", str(self.path)
        yield "format", self.format
        if self.seems:
            yield "seems", self.seems
        if self.families:
            named = [f"{family} {variant}".strip() for family, variant in self.families]
            yield "family", " or ".join(named) + (" (a flag has to decide)" if len(named) > 1 else "")
        yield "precision", ", ".join(f"{name} ({count} tensors)" for name, count in self.precisions.items())
        for name, size in self.parts.items():
            yield name, f"{size.parameters:,} parameters, {size.bytes / 1e6:,.1f} MB"
        for problem in self.problems:
            yield "problem", problem
        if self.left_behind:
            more = ", …" if len(self.left_behind) > 4 else ""
            yield "unused", f"{len(self.left_behind)} ({', '.join(self.left_behind[:4])}{more})"
        if self.hashes is not None:
            yield "sha256", self.hashes.sha256
            yield "short", f"{self.hashes.autov2} (AutoV1 {self.hashes.autov1}, AutoV3 {self.hashes.autov3 or 'none'})"
        for name, digest in self.content.items():
            yield "content", f"{digest}{f' ({name})' if name else ''}"
        for name in self.damaged:
            yield "DAMAGED", f"{name or 'the file'}: its bytes changed since it was written"
        for key, value in self.metadata.items():
            if key not in (CONTENT_KEY, "format"):
                yield "metadata", f"{key} = {value if len(value) <= 200 else value[:200] + '…'}"


def inspect(
    path: Path, table: Iterable[Fingerprint] = (), layouts: Layouts | None = None, hashes: bool = True,
    judge: Judge = lambda folder: ("", ()),
) -> Report:
    """Read the headers, and, for hashes, every byte once or twice.

    Args:
        table: the families' fingerprints.
        layouts: of the families' single files, to tell what is missing.
        hashes: whether to hash file and content.
        judge: of model folders.

    Raises:
        CheckpointError: what cannot be opened at all; see ``open_file`` and ``read_folder``.
    """
    kind, table = sniff(path), list(table)
    if kind == "folder":
        return _folder(path, hashes, judge)
    file = open_file(path)
    rows = candidates(file.tensors, table)
    problems, left = _fits(file, [(layouts or {}).get((r.family, r.variant)) for r in rows])
    content = {"": content_hash(file.tensors)} if hashes else {}
    claimed = file.metadata.get(CONTENT_KEY)
    return Report(
        path,
        kind,
        describe(file.tensors),
        tuple((r.family, r.variant) for r in rows),
        {name: _size(group) for name, group in _groups(file.tensors).items()},
        _precisions(file.tensors),
        problems,
        left,
        file_hashes(path) if hashes else None,
        content,
        ("",) if hashes and claimed is not None and claimed != content[""] else (),
        file.metadata,
    )


def _fits(file: File, layouts: list[AnyLayout | None]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the first layout that is known says of the file: problems, and names left behind."""
    layout = next((found for found in layouts if found is not None), None)
    if layout is None:
        return (), ()
    try:
        single = layout.take_apart(file)
    except CheckpointError as problem:
        return (str(problem),), ()
    return tuple(filter(None, map(_misfit, single.parts.values()))), single.left_behind


def _misfit(part: Part) -> str:
    try:
        check_fit(shapes_of(part.build), part.tensors, part.kind, part.where)
    except CheckpointError as problem:
        return str(problem)
    return ""


def _folder(path: Path, hashes: bool, judge: Judge) -> Report:
    alone = not (path / "model_index.json").exists()
    family = ""
    wrong: tuple[str, ...] = ()
    if alone:
        parts, seems = {"": read_part(path)}, ""
    else:
        folder = read_folder(path)
        parts, seems = dict(folder.parts), folder.pipeline
        family, wrong = judge(folder)
    everything: dict[str, Lazy] = {
        f"{name}.{key}" if name else key: tensor for name, part in parts.items() for key, tensor in part.tensors.items()
    }
    content = {name: content_hash(part.tensors) for name, part in parts.items()} if hashes else {}
    return Report(
        path,
        "folder",
        seems or next(iter(parts.values())).kind,
        ((family, ""),) if family else (),
        {name or part.kind: _size(part.tensors) for name, part in parts.items()},
        _precisions(everything),
        (*filter(None, map(_misfit, parts.values())), *wrong),
        tuple(f"{name}/{key}" if name else key for name, part in parts.items() for key in part.left_behind),
        content=content,
        damaged=tuple(name for name, part in parts.items() if hashes and _is_damaged(part)),
    )


def _is_damaged(part: Part) -> bool:
    try:
        if part.file is not None:
            verify(part.file)
    except CheckpointError:
        return True
    return False


def _groups(tensors: Tensors) -> dict[str, Tensors]:
    groups: dict[str, dict[str, Lazy]] = {}
    for prefix, name in GROUPS.items():
        if found := under(tensors, prefix):
            groups.setdefault(name, {}).update({prefix + key: tensor for key, tensor in found.items()})
    other = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(GROUPS))}
    return {**groups, **({"other" if groups else "weights": other} if other else {})}


def _size(tensors: Tensors) -> Size:
    return Size(sum(t.numel for t in tensors.values()), sum(t.nbytes for t in tensors.values()))


def _precisions(tensors: Tensors) -> dict[str, int]:
    counted = Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values())
    return dict(counted.most_common())
