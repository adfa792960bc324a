"""What README and the documents say of Python exists: attributes of a model's views, imports, files that are linked."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from depthdial.core.route import Route
from depthdial.models.converted import Converted

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
VIEWS = {"route": Route, "converted": Converted}
OF_BEFORE = {"log.md", "results.md"}
"""They tell of code as it was."""


def _names(view: type) -> set[str]:
    assigned = re.findall(
        r"self\.(\w+)\b[^=\n]* = ", Path(importlib.import_module(view.__module__).__file__ or "").read_text()
    )
    return {*dir(view), *assigned}


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.name not in OF_BEFORE], ids=lambda path: path.name)
def test_views_have_what_the_documents_name(document: Path):
    for view, name in re.findall(r"\bmodel\.(route|converted)\.(\w+)", document.read_text()):
        assert name in _names(VIEWS[view]), f"{document.name} names model.{view}.{name}"


def test_the_views_are_named_at_all():
    assert "model.route.cost()" in (ROOT / "README.md").read_text()
    assert "read" not in _names(Route), "a name that is gone must be seen as gone"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_imports_in_python_blocks_work(document: Path):
    for block in re.findall(r"^```python\n(.*?)^```", document.read_text(), re.S | re.M):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("depthdial"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_linked_files_exist(document: Path):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (document.parent / target).exists(), f"{document.name} links {target}"
