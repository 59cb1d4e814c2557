"""examples/tour.ipynb: a valid notebook without outputs, which runs from top to bottom."""

import ast
import importlib
import json
import re
import resource
from importlib.util import find_spec

import pytest

from tests.conftest import ROOT

PATH = ROOT / "examples" / "tour.ipynb"
BOOK = json.loads(PATH.read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in BOOK["cells"] if cell["cell_type"] == "code"]
HEADINGS = ["A data row", "Tokens and masks", "SFT, briefly", "Samples", "Rewards"]
HEADINGS += ["Advantages, token by token", "One PPO update", "Search"]


def test_the_notebook_is_stored_without_outputs():
    assert (BOOK["nbformat"], BOOK["nbformat_minor"]) == (4, 5)
    for cell in BOOK["cells"]:
        assert cell["id"] and cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_every_code_cell_compiles_and_follows_an_explanation():
    kinds = [cell["cell_type"] for cell in BOOK["cells"]]
    assert len(CODE) >= 8
    assert all(kinds[i - 1] == "markdown" for i, kind in enumerate(kinds) if kind == "code")
    for source in CODE:
        compile(source, str(PATH), "exec")


def test_what_the_notebook_imports_exists():
    for node in ast.walk(ast.parse("\n".join(CODE))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("pipeline"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or find_spec(name), name


def test_the_notebook_has_every_stage_in_order():
    text = "\n".join("".join(c["source"]) for c in BOOK["cells"] if c["cell_type"] == "markdown")
    assert re.findall(r"^## \d\. (.+)$", text, flags=re.M) == HEADINGS


@pytest.mark.slow  # CI runs it on its own: the start of a kernel imports everything once more
@pytest.mark.skipif(find_spec("nbclient") is None, reason="needs nbclient: make venv")
def test_the_notebook_runs_and_shows_what_it_explains(monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(PATH, as_version=4)
    nbformat.validate(book)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(ROOT)}}).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = "\n".join(
        output.get("text", "") + output.get("data", {}).get("text/html", "")
        for cell in book.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    gaps = [float(gap) for gap in re.findall(r"green - red (-?[\d.]+)", said)]
    assert abs(gaps[0]) < 0.001 and gaps[-1] > 0.05
    assert "background:rgb(" in said and "├─" in said and "of all branches" in said
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
