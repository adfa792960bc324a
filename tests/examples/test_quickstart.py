"""The notebook, run cell by cell in a kernel, on a tiny model in place of the one that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed: pip install nbclient ipykernel")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install nbclient ipykernel")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install nbclient ipykernel")

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
MODEL = '"smollm2-135m-instruct"'


@pytest.mark.slow  # a kernel of its own imports torch again
def test_the_quickstart_runs_from_top_to_bottom(tiny_folder: Path, tiny_plugin: Path, tmp_path: Path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace(MODEL, f'"{tiny_folder}", "{tiny_plugin}"')
    assert sum(str(tiny_plugin) in cell.source for cell in notebook.cells) == 2, "both calls that name a model"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pages = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    assert len(pages) == 4 and all('class="depthdial"' in page and 'class="card"' in page for page in pages)
    said = [
        output["data"]["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "data" in output
    ]
    assert any(text.startswith("LLM(") for text in said) and any("Converted(FlexiDepth" in text for text in said)
    assert max(map(len, said)) < 900, "reprs are short"


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
