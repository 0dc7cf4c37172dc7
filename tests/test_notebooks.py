"""Every notebook runs from top to bottom in this interpreter, and was committed as it ran."""

from pathlib import Path
from pkgutil import resolve_name

import nbformat
import pytest
from ipykernel.kernelspec import write_kernel_spec
from nbclient import NotebookClient
from test_architecture import OURS, imports_of

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
LIMIT = 1.5e6  # bytes: a page that loads quickly


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """A kernelspec of the interpreter that runs the tests, before any that is installed."""
    write_kernel_spec(str(tmp_path / "kernels" / "python3"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    return "python3"


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name, kernel):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    folder = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=600, kernel_name=kernel, resources=folder).execute()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_a_notebook_imports_of_ours_is_there(name):
    for imported in imports_of(FOLDER / name):
        if imported.split(".")[0] in OURS:
            resolve_name(imported)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_committed_as_executed_in_order_without_errors(name):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"]
    assert (FOLDER / name).stat().st_size < LIMIT
