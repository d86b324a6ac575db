"""Names from strangers, wherever they are shown."""

import csv
import io
import json
import os
import pathlib

import keras
import numpy as np
import pytest
from PIL import Image

from keras_resnext.classifier import Classifier
from keras_resnext.cli.console import printable
from keras_resnext.export import picture
from keras_resnext.export.report import FileReport
from keras_resnext.export.report import Report
from keras_resnext.training.plots import prediction_grid

NAMES = [
    "[/red] and [bold]",  # Rich's markup
    "\x1b[31mred\x1b]0;title\x07",  # a terminal's commands
    ":cat:",  # Rich's emoji
    "=HYPERLINK(0)",
    "+1",
    "-1",
    "@x",
    "a$\\frac{b$c",  # Matplotlib's mathematics, not well formed
    "\u202egpj.exe",  # right to left
    "wide\u3000space, naïve, 猫",
]


@pytest.fixture
def classifier(tmp_path):
    """One output for each of the names, the brighter the later."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(len(NAMES), activation="softmax")(x)
    model = keras.Model(inputs, outputs)
    levels = np.arange(len(NAMES)) / 10
    kernel = np.tile(200 * levels / 3, (3, 1)).astype("float32")
    model.set_weights([kernel, (-100 * levels**2).astype("float32")])
    path = tmp_path / "m.keras"
    Classifier(model, NAMES).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    """An image called by each name, and of its brightness."""
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [name.replace("/", "|") + ".png" for name in NAMES]
    for i, name in enumerate(names):
        Image.new("RGB", (8, 8), (round(25.5 * i),) * 3).save(folder / name)
    return folder


def test_printable():
    assert printable("a\tb\nc é 猫\u3000.") == "a\tb\nc é 猫\u3000."
    assert printable("\x1b[0m \x85 \u202e") == "\\x1b[0m \\x85 \\u202e"
    name = os.fsdecode(b"caf\xe9.jpg")  # Latin-1
    assert printable(name).encode() == b"caf\\udce9.jpg"


def test_in_a_terminal_and_in_files(classifier, photos, run_cli, monkeypatch):
    monkeypatch.chdir(photos)
    latin = os.fsdecode(b"\xe9.png")
    pathlib.Path(latin).write_bytes(b"no picture")
    names = sorted(os.listdir())
    arguments = ("predict", classifier, *(f"./{name}" for name in names))
    status, output, error = run_cli(*arguments, "--top", 1)
    assert status == 1
    assert error.count("\n") == 1
    assert "\\udce9.png: unknown format" in error
    assert "\x1b" not in output
    for name in NAMES:
        # The file's name and, beside it, the class.
        shown = printable(name)
        assert f"│ {shown.replace('/', '|')}.png " in output
        assert f"│ {shown} " in output
    _, output, _ = run_cli(*arguments, "--json", "--top", 1)
    found = {
        record["image"]: record["classes"][0]["label"]
        for record in json.loads(output)
        if "classes" in record
    }
    assert set(found.values()) == set(NAMES)
    for name, label in found.items():
        assert name == label.replace("/", "|") + ".png"
    _, output, _ = run_cli(*arguments, "--csv", "--top", 1)
    rows = list(csv.DictReader(io.StringIO(output)))
    assert len(rows) == len(names)
    labels = {row["label"] for row in rows}
    assert {"'=HYPERLINK(0)", "'+1", "'-1", "'@x", ":cat:"} <= labels
    assert not [
        x for row in rows for x in row.values() if x[:1] in "=+-@" and x
    ]


def test_in_pictures(tmp_path):
    """Dollars are dollars; Matplotlib would fail to parse the formula."""
    images = np.zeros((2, 8, 8, 3))
    prediction_grid(
        images, [7, 7], [7, 0], NAMES, tmp_path / "x.png", title=NAMES[7]
    )
    file = FileReport(
        format="onnx", quantize=None, path="x.onnx", passed=False, error="no"
    )
    report = Report(
        model=NAMES[7],
        fingerprint="",
        input="",
        images=1,
        threads=1,
        keras_accuracy=None,
        files=(file,),
    )
    picture.draw_report(report, tmp_path / "y.png")
    for name in "xy":
        with Image.open(tmp_path / f"{name}.png") as drawn:
            assert drawn.width > 100
