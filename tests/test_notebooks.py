"""The notebooks run from top to bottom and keep what they promise."""

import base64
import io
import os
import pathlib
import re
import resource
import time

import jupytext
import nbclient
import nbformat
import pytest
from PIL import Image

import keras_resnext
from benchmarks import report
from benchmarks import study
from benchmarks import verdict

pytestmark = pytest.mark.integration

# Where `make fashion` puts it; conftest.py gives the tests another folder.
FASHION = pathlib.Path("~/tensorflow_datasets/fashion_mnist").expanduser()
NOTEBOOKS = sorted(
    (pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb")
)

each_notebook = pytest.mark.parametrize(
    "path", NOTEBOOKS, ids=lambda path: path.stem
)


def processor_seconds():
    """Of all processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


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
    """PNG files in base64."""
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
    # Any attempt to download fails.
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")

    def execute(path):
        text = path.read_text()
        if "import keras_hub" in text:
            pytest.importorskip(
                "keras_hub", reason="KerasHub is not installed (make peers)"
            )
        if "fashion_mnist" in text:
            if not FASHION.exists():
                pytest.skip(
                    "Fashion-MNIST is not prepared; `make fashion` does."
                )
            link = pathlib.Path(data, FASHION.name)
            link.parent.mkdir(exist_ok=True)
            if not link.exists():
                link.symlink_to(FASHION)
        # A cell that raises ends in a CellExecutionError here.
        return nbclient.NotebookClient(
            nbformat.read(path, as_version=4),
            kernel_name="python3",
            resources={"metadata": {"path": str(tmp_path)}},
            timeout=600,  # seconds a cell, for tests side by side
        ).execute()

    return execute


def test_each_is_a_pair_and_is_checked():
    texts = {path.stem for path in NOTEBOOKS[0].parent.glob("*.py")}
    assert texts == {path.stem for path in NOTEBOOKS} == CHECKS.keys()


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
    started, used = time.perf_counter(), processor_seconds()
    notebook = execute(path)
    seconds, used = time.perf_counter() - started, processor_seconds() - used
    print(f"{path.stem}: {seconds:.0f} s, of processors {used:.0f} s")
    assert used < 600  # five minutes on two cores, whatever else they do
    assert not re.search(r"\b[A-Z]\w*Warning: ", printed(notebook, "stderr"))
    for picture in pictures(notebook):
        colors = Image.open(io.BytesIO(base64.b64decode(picture))).getcolors(9)
        assert colors is None  # more than nine: not a blank sheet
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    CHECKS[path.stem](notebook)


def check_quickstart(notebook):
    text = printed(notebook)
    record = keras_resnext.get_weights("resnext29_8x4d_f64", "fashion_mnist")
    (accuracy,) = re.findall(r"^accuracy: ([\d.]+) on 10000", text, re.M)
    assert abs(100 * float(accuracy) - record.top1) < 0.05
    assert "25,028,904 weights" in text
    assert text.count("972,106 weights") == 2  # both forms
    (accuracy,) = re.findall(r"^accuracy: ([\d.]+) on 360", text, re.M)
    assert float(accuracy) >= 0.95
    # TFLite and ONNX.
    assert text.count("top-1 agreement 100.00%") == 2
    # Clothes, learning curves, and digits.
    assert len(pictures(notebook)) == 3


def check_bigger(notebook):
    text = printed(notebook)
    model = keras_resnext.ResNeXt50(weights=None)
    cost = keras_resnext.count_complexity(model)
    assert f"{4 * cost.activations / 1e6:6.0f} MB for one image" in text
    pairs = re.findall(r"^(\d+\.\d{6}) (\d+\.\d{6})$", text, re.M)
    assert len(pairs) == 3
    for one, two in pairs:
        assert abs(float(one) - float(two)) < 1e-3 * float(one)
    assert re.search(r"^killed: Resumed after step (15|30) of 44\.", text, re.M)
    assert "exit status: -9" in text
    equal, arrays = re.search(r"(\d+) of (\d+) arrays", text).groups()
    assert equal == arrays
    assert re.search(r"^epoch 1: val_accuracy 0\.\d+$", text, re.M)


def check_out_of_python(notebook):
    text = printed(notebook)
    # Right files agree and get smaller; the wrong one was refused.
    assert text.count("same class 100.00%") >= 4
    assert re.search(r"^\./wrong\.tflite was not written: ", text, re.M)
    sizes = [
        float(re.search(rf"^tflite {name} +([\d.]+) MB, logit", text, re.M)[1])
        for name in ("", "dynamic", "int8")
    ]
    assert max(sizes[1:]) < 0.4 * sizes[0]
    # Eight bits of one layer, by hand, by LiteRT, and by the rule.
    found = re.findall(r"(?:weights|by hand|by the rule) (0\.\d+)%", text)
    rounded, rule, *both = map(float, found)
    assert both == [rounded, rounded]
    assert abs(rounded / rule - 1) < 0.02
    assert "imported of TensorFlow and Keras: []" in text
    # Phone, page and server.
    assert re.search(r"^ankle-boot.png\n +Ankle boot +0\.9", text, re.M)
    assert re.search(r"^golden pictures: .* off", text, re.M)
    assert "(28, 28, 3) -> Ankle boot, 0.9" in text
    # Logits, errors of layers, pictures with both answers, and the report.
    assert len(pictures(notebook)) == 4


def check_share(notebook):
    text = printed(notebook)
    record = keras_resnext.get_weights("resnext29_8x4d_f64", "fashion_mnist")
    (accuracy,) = re.findall(r"^test: accuracy ([\d.]+),", text, re.M)
    assert abs(100 * float(accuracy) - record.top1) < 0.05
    assert f"value: {accuracy}\n      name: Top-1 accuracy" in text
    assert f"license: {record.license}\n" in text
    assert f"{record.parameters:,} trained values" in text
    assert "no paths in 11 files" in text
    assert re.search(r"^this package: .* at most\nplain Keras: ", text, re.M)
    assert "`license` must be None or apache-2.0" in text
    licenses = [weights.license for weights in keras_resnext.list_weights()]
    for name in set(licenses):
        count = licenses.count(name)
        assert re.search(rf"^{name} +{count} files", text, re.M)
    # Classes, and photographs.
    assert len(pictures(notebook)) == 2


def check_finetuning(notebook):
    text = printed(notebook)
    assert "check: no problems" in text
    # Which weights are trained, counted by hand: 256 features, 7 classes.
    assert f"frozen until conv4: {256 * 7 + 7:,} weights trained" in text
    # A learning rate of zero leaves clothes alone only with frozen batch norm.
    own, adapting, frozen = (
        float(re.search(rf"^{re.escape(line)}: ([\d.]+)$", text, re.M)[1])
        for line in (
            "clothes, before",
            "clothes, after epochs at rate 0, batch norm adapts",
            "clothes, after epochs at rate 0, batch norm frozen",
        )
    )
    assert adapting < own == frozen
    transfer, scratch = (
        [float(value) for value in values.split(", ")]
        for values in re.findall(r": test accuracy ([\d., ]+); mean", text)
    )
    assert len(transfer) == len(scratch) == 4
    assert sum(transfer) > sum(scratch)
    # Areas, squares, pairs of runs, and the confusion matrix.
    assert len(pictures(notebook)) == 4


def check_looking_inside(notebook):
    text = printed(notebook)
    record = keras_resnext.get_weights("resnext29_8x4d_f64", "fashion_mnist")
    (accuracy,) = re.findall(r"^accuracy: ([\d.]+) on 10000", text, re.M)
    assert abs(100 * float(accuracy) - record.top1) < 0.05
    by_embedding, by_pixels = re.findall(
        r"^neighbour of the same class, by \w+: ([\d.]+)", text, re.M
    )
    assert float(by_embedding) > float(by_pixels)
    before, after = re.findall(r"calibration error (0\.\d+)$", text, re.M)
    assert float(after) < float(before)
    # Grad-CAM twice, baselines, neighbours, the map, and reliability.
    assert len(pictures(notebook)) == 6


def check_detection_segmentation(notebook):
    text = printed(notebook)
    sizes = [(2, 56, 256), (3, 28, 512), (4, 14, 1024), (5, 7, 2048)]
    for level, size, channels in sizes:
        line = f"P{level}: {size:2} x {size:2} places, {channels:4} channels"
        assert line in text
    for stride in (32, 16, 8):
        network = keras_resnext.ResNeXt(
            *((1, 2, 1, 2), 8, 4),
            include_top=False,
            input_shape=(128, 128, 3),
            output_stride=stride,
        )
        size = 128 // stride
        assert network.output_shape[1:3] == (size, size)
        cost = keras_resnext.count_complexity(network)
        assert (
            f"output_stride={stride:2}: {size:2} x {size:2} places, "
            f"{cost.params:,} parameters, {cost.multiply_adds / 1e6:4.0f} M"
        ) in text
    for measure in ("precision", "recall"):
        found = re.search(
            rf"^{measure}: (\d+) of (\d+) .*, ([\d.]+)$", text, re.M
        )
        right, among, share = map(float, found.groups())
        assert 0.5 < share == round(right / among, 3)
    shares = re.findall(r"IoU ([\d.]+), ([\d.]+)% of the pixels", text)
    assert len(shares) == 4
    assert abs(sum(float(share) for _, share in shares) - 100) < 0.3
    # Boxes, and masks.
    assert len(pictures(notebook)) == 2


def check_anatomy(notebook):
    text = printed(notebook)
    # Equation 4 of the paper, beside what was counted.
    for count in ("69,632", "69,760", "69,888", "71,456", "70,144"):
        assert re.search(rf"{count} +{count} ", text)
    # The three forms are right on the same images, in both dtypes.
    right = re.findall(r"(\d+) of 100 right", text)
    assert len(right) == 6
    assert len({*right}) == 1
    assert int(right[0]) >= 90  # 95 in the mean; deviation 2.2
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
    "03_finetuning": check_finetuning,
    "04_cardinality": check_cardinality,
    "05_looking_inside": check_looking_inside,
    "06_detection_segmentation": check_detection_segmentation,
    "07_bigger": check_bigger,
    "08_out_of_python": check_out_of_python,
    "09_share": check_share,
}
