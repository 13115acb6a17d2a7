"""What the documents say is true: their Python runs, their links lead somewhere, the README's tree is the tree."""

import re
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
RUN = [page for page in PAGES if "is run by the tests" in page.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path) -> None:
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    exec(compile("\n".join(blocks), str(page), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_that_exist(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_tree_in_the_readme_is_the_tree() -> None:
    """Each folder at the top, and each room of the package, has its line; each line has its folder."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.split("```text\nsfumato/")[1].split("```")[0]
    listed = {m[2]: len(m[1]) for m in re.finditer(r"^( *)(\w+)/  +\S", tree, re.MULTILINE)}
    rooms = {p.name for p in (ROOT / "sfumato").iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert {name for name, depth in listed.items() if depth} == rooms
    made = {"data", "out", "runs", "build", "dist"}
    tops = {p.name for p in ROOT.iterdir() if p.is_dir() and not p.name.startswith((".", "__")) and any(p.iterdir())}
    assert {name for name, depth in listed.items() if not depth} == {
        t for t in tops - made - {"sfumato"} if not t.endswith(".egg-info")
    }
