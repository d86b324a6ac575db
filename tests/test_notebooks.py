"""The notebooks run from top to bottom and keep what they promise."""

import os
import pathlib
import re

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.integration

NOTEBOOKS = sorted(
    (pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb")
)

each_notebook = pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=lambda path: path.stem
)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook, stream="stdout"):
    return "".join(
        output.text
        for cell in code_cells(notebook)
        for output in cell.outputs
        if output.output_type == "stream" and output.name == stream
    )


def pictures(notebook):
    return [
        output.data["image/png"]
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """A function that runs a notebook; all it writes goes to `tmp_path`."""
    for folder in ("TMPDIR", "IPYTHONDIR"):
        monkeypatch.setenv(folder, str(tmp_path))
    data = os.environ.get("TFDS_DATA_DIR", str(tmp_path / "datasets"))
    monkeypatch.setenv("TFDS_DATA_DIR", data)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")

    def execute(path):
        # A cell that raises ends in a CellExecutionError here.
        return nbclient.NotebookClient(
            nbformat.read(path, as_version=4),
            kernel_name="python3",
            resources={"metadata": {"path": str(tmp_path)}},
            timeout=300,  # seconds a cell
        ).execute()

    return execute


def test_notebooks_are_found():
    assert NOTEBOOKS


@each_notebook
def test_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in code_cells(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None


@pytest.mark.slow
@each_notebook
def test_runs(path, execute):
    notebook = execute(path)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    if path.stem == "01_quickstart":
        check_quickstart(notebook)


def check_quickstart(notebook):
    text = printed(notebook)
    assert "25,028,904 weights" in text
    assert text.count("972,106 weights") == 2  # both forms
    (accuracy,) = re.findall(r"^accuracy: ([\d.]+) on 360", text, re.M)
    assert float(accuracy) >= 0.95
    # TFLite and ONNX.
    assert text.count("top-1 agreement 100.00%") == 2
    # Learning curves, and the digits.
    assert len(pictures(notebook)) == 2
