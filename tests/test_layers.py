"""The house plan, enforced: who may import whom, what may be imported at all, and what stays light."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "sfumato"
ORDER = (
    "core", "nn", "noise", "models", "text", "sampling", "guidance", "objectives", "checkpoints", "adapters",
    "families", "engine", "tasks", "training", "serving", "cli",
)
"""A room imports from itself and from rooms that stand before it."""
LIGHT = ("core", "cli")
"""Rooms that are read before any work is known to be wanted."""
PEERS = {"diffusers", "transformers"}


class Import(NamedTuple):
    """One import statement, resolved to a module of the package or a foreign root."""

    module: str  # who imports, e.g. "sfumato.noise.schedule"
    target: str  # what, e.g. "sfumato.core.errors" or "torch.nn"
    line: int
    top: bool  # runs when the module is imported

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def statements(tree: ast.AST, top: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, top
        else:
            lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
                isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            )
            yield from statements(node, top and not lazy)


def imports_of(module: str, source: str, is_package: bool) -> Iterator[Import]:
    for node, top in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, top)
            continue
        base = node.module or ""
        if node.level:
            above = module.split(".")[: len(module.split(".")) - node.level + is_package]
            base = ".".join([*above, base] if base else above)
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            yield Import(module, inner if inner in FILES else base, node.lineno, top)


IMPORTS = [
    found for module, path in FILES.items()
    for found in imports_of(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
]


def room(module: str) -> str | None:
    """The room that a module of the package is in; None for the package itself and for foreign modules."""
    parts = module.split(".")
    return parts[1] if parts[0] == "sfumato" and len(parts) > 1 and parts[1] not in ("__main__",) else None


def upward(found: Import) -> bool:
    mine, theirs = room(found.module), room(found.target)
    return mine is not None and theirs is not None and ORDER.index(theirs) > ORDER.index(mine)


def test_every_room_is_in_the_plan() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == set(ORDER)


def test_rooms_import_only_from_rooms_before_them() -> None:
    assert not [str(found) for found in IMPORTS if upward(found)]


def test_rooms_ask_the_package_for_nothing_but_its_version() -> None:
    wrong = [
        f"{module}:{node.lineno}" for module, path in FILES.items() if room(module)
        for node, _ in statements(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "sfumato" and not node.level
        and any(a.name != "__version__" and f"sfumato.{a.name}" not in FILES for a in node.names)
    ]
    assert not wrong


def test_no_circle_of_imports() -> None:
    graph: dict[str, set[str]] = {module: set() for module in FILES}
    for found in IMPORTS:
        if room(found.module) and found.target in FILES and room(found.target) and found.target != found.module:
            graph[found.module].add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(" -> ".join(circle.args[1]))


def test_peers_are_for_tests_alone() -> None:
    assert not [str(found) for found in IMPORTS if found.target.split(".")[0] in PEERS]


KERNELS = "sfumato.nn.gpu_kernels"


def test_foreign_imports_are_declared_and_those_of_extras_are_lazy() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        modules = {"pillow": "PIL"}
        found = [re.split(r"[<>=\[;~! ]", r)[0].replace("-", "_") for r in requirements]
        return {modules.get(name.lower(), name) for name in found}

    core = names(project["dependencies"]) | {"sfumato"} | sys.stdlib_module_names
    optional = project["optional-dependencies"].items()
    extras = names([r for key, rs in optional if key not in ("dev", "bench") for r in rs])
    # PyTorch brings Triton along where there are GPUs, so one module may ask for it, which is itself asked for late.
    assert [f.top for f in IMPORTS if f.target == KERNELS] == [False]
    foreign = [
        found for found in IMPORTS if found.target.split(".")[0] not in core
        and (found.module, found.target.split(".")[0]) != (KERNELS, "triton")
    ]
    assert not [str(f) for f in foreign if f.target.split(".")[0] not in extras], "not a dependency"
    assert not [str(f) for f in foreign if f.top], "an extra, imported at the top"


def test_light_rooms_do_not_import_torch_at_the_top() -> None:
    heavy = {"torch", "tokenizers", "rich", "huggingface_hub", "PIL"}
    found = [f for f in IMPORTS if f.top and (room(f.module) in LIGHT or room(f.module) is None)]
    assert not [str(f) for f in found if f.target.split(".")[0] in heavy]


@pytest.mark.parametrize("arguments", [["-c", "import sfumato"], ["-m", "sfumato", "--help"]], ids=["import", "help"])
def test_start_up_is_light(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, cwd=ROOT, check=True
    )
    loaded = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "sfumato" in loaded
    heavy = {"torch", "numpy", "rich", "PIL", "tokenizers", "huggingface_hub", "safetensors", *PEERS}
    assert not loaded & heavy


def targets() -> Iterator[tuple[str, str]]:
    """(module, "package.module:attribute") of every entry of every table."""
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):  # noqa: SIM102
                if re.fullmatch(r"sfumato(\.\w+)+:\w+", node.value):
                    yield module, node.value


def test_table_entries_exist_and_keep_the_order() -> None:
    for module, target in targets():
        home, attribute = target.split(":")
        assert not upward(Import(module, home, 0, False)), f"{module} names {target}"
        assert hasattr(import_module(home), attribute), f"{module} names {target}"


def test_everything_that_is_installed_is_pinned() -> None:
    """A new dependency without a line in constraints.txt would make the tests depend on the day they run."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(r for rs in project["optional-dependencies"].values() for r in rs)]
    names = {re.split(r"[<>=\[;~! ]", r)[0].replace("_", "-").lower() for r in wanted} - {"sfumato"}
    assert not names - pinned
