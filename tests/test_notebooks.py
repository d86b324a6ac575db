"""The notebooks run from top to bottom and keep what they promise."""

import os
import pathlib
import re

import jupytext
import nbclient
import nbformat
import pytest

import keras_resnext
from benchmarks import report
from benchmarks import study
from benchmarks import verdict

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
            timeout=600,  # seconds a cell, for tests side by side
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


@each_notebook
def test_text_and_notebook_have_equal_cells(path):
    text, notebook = (
        [(cell.cell_type, cell.source) for cell in jupytext.read(file).cells]
        for file in (path.with_suffix(".py"), path)
    )
    assert text == notebook


@pytest.mark.slow
@each_notebook
def test_runs(path, execute):
    notebook = execute(path)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    CHECKS[path.stem](notebook)


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


def check_anatomy(notebook):
    text = printed(notebook)
    # Equation 4 of the paper, beside what was counted.
    for count in ("69,632", "69,760", "69,888", "71,456", "70,144"):
        assert re.search(rf"{count} +{count} ", text)
    # The three forms are right on the same images, in both dtypes.
    assert len(re.findall(r"(\d+) of 100 right", text)) == 6
    assert len(set(re.findall(r"(\d+) of 100 right", text))) == 1
    # Paths, different ones, and what Keras' networks cost.
    for line in (
        "VGG16       paths:  1, different ones: 1, shortcut: no",
        "InceptionV3 paths:  4, different ones: 4, shortcut: no",
        "ResNet50    paths:  1, different ones: 1, shortcut: yes",
        "ResNeXt50   paths: 32, different ones: 1, shortcut: yes",
        "Xception    paths:  1, different ones: 1, shortcut: yes",
    ):
        assert line in text
    cost = keras_resnext.count_complexity(keras_resnext.ResNeXt50(weights=None))
    assert re.search(
        rf"ResNeXt50 +224 +{cost.params / 1e6:.1f} "
        rf"+{cost.multiply_adds / 1e9:.2f} +{cost.activations / 1e6:.1f}\n",
        text,
    )
    # Neuron and block, matrices, family, measurements, accuracy.
    assert len(pictures(notebook)) == 5


def check_cardinality(notebook):
    text = printed(notebook)
    records = study.read_records(report.FOLDER / "study.jsonl")
    assert f"{len(records)} trainings of {len(study.NETWORKS)} networks" in text
    for question in verdict.QUESTIONS:
        answer = verdict.compare(question, records)
        low, high = answer["interval"]
        shown = "SHOWN" if answer["shown"] else "not shown"
        assert (
            f": {answer['difference']:+z.2f} points ({low:+.2f} to {high:+.2f})"
            f", {verdict.p_text(answer['p_seeds'])} over seeds, "
            f"{verdict.p_text(answer['p_images'])} over images: {shown}; "
            f"the paper {question.papers_difference:+.1f}\n"
        ) in text
    (needed,) = re.findall(r"0.3 points .* with (\d+) seeds each", text)
    # By the exact distribution; the notebook simulates it.
    assert verdict.detectable(0.2 * 2**0.5, int(needed) + 1) < 0.3
    assert verdict.detectable(0.2 * 2**0.5, int(needed) - 1) > 0.3
    assert re.search(r"^error [\d.]+ % ± 0.\d+ on 10,000 images", text, re.M)
    # The paper's table, runs, answers, power, live training, predictions.
    assert len(pictures(notebook)) == 6


CHECKS = {
    "01_quickstart": check_quickstart,
    "02_anatomy": check_anatomy,
    "04_cardinality": check_cardinality,
}
