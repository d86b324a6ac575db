"""The command line, end to end on real digits, and its one-line errors."""

import csv
import dataclasses
import importlib.util
import io
import json
import logging
import re
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

import keras_resnext
from keras_resnext import cpu
from keras_resnext import paper
from keras_resnext.cli import train
from keras_resnext.cli.console import epoch_line
from keras_resnext.cli.console import training_progress
from keras_resnext.cli.console import warnings_as_lines
from keras_resnext.imagenet import MEAN
from keras_resnext.imagenet import STD
from keras_resnext.layers import conv_implementation
from keras_resnext.layers import pointwise_implementation
from keras_resnext.training import RECIPES
from keras_resnext.training import Recipe
from keras_resnext.training import Run
from keras_resnext.training.trainer import Progress
from keras_resnext.variants import list_models


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """One epoch on small digits through the real command, not a good one."""
    return train_on_digits(
        tmp_path_factory.mktemp("runs") / "short",
        *("--data-dir", str(tmp_path_factory.mktemp("data"))),
        *("--model", "resnext11_1x4d", "--image-size", "8"),
        *("--epochs", "1", "--warmup-epochs", "0"),
    )


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """The default recipe, shortened, through the real command."""
    return train_on_digits(
        tmp_path_factory.mktemp("runs") / "digits",
        *("--model", "resnext11_4x4d", "--epochs", "5", "warmup_epochs=1"),
    )


def train_on_digits(workdir, *options):
    command = [sys.executable, "-m", "keras_resnext", "train"]
    command += ["--dataset", "digits", "--workdir", str(workdir), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d epochs? done, val_accuracy", done.stdout)
    assert "Traceback" not in done.stderr
    return workdir


def test_help_loads_nothing_heavy():
    code = """
import sys
from keras_resnext import cli
sys.argv = ["keras-resnext", "--help"]
try:
    cli.main()
finally:
    heavy = {"tensorflow", "keras", "numpy", "jax", "torch"} & set(sys.modules)
    assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for command in ("train", "evaluate", "predict", "export", "summary"):
        assert command in done.stdout


def test_list_and_summary(run_cli):
    status, output, _ = run_cli("list")
    assert status == 0
    rows = [line.replace("│", " ").split() for line in output.splitlines()]
    names = [row[0] for row in rows if row and row[0] in list_models()]
    assert names == list_models()
    first = "resnext50 25.03 M 4.23 G 100 a1h_in1k 82.02"
    assert first.split() in rows
    assert ["resnext101_32x16d", "194.03", "M", "36.16", "G", "777"] in rows
    status, output, _ = run_cli("list", "101_32X")
    assert status == 0
    assert output.count("resnext101_32x") == 4
    assert "resnext50 " not in output
    status, output, _ = run_cli("summary", "resnext50")
    assert status == 0
    rows = [line.replace("│", " ").split() for line in output.splitlines()]
    assert ["conv5", "7x7x2048", "14,544,896", "865,435,648", "852,992"] in rows
    assert ["total", "25,028,904", "4,230,479,872", "14,400,512"] in rows
    assert "100.4 MB in float32" in output
    assert "a1h_in1k (apache-2.0), top-1 82.02 %" in output


def test_list_devices(run_cli):
    status, output, _ = run_cli("list", "--devices")
    assert status == 0
    first, *_, float16, float64, _, pointwise = output.splitlines()
    assert first.startswith("CPU")
    assert f"Instruction sets: {', '.join(cpu.instruction_sets())}" in output
    assert f"oneDNN: {cpu.onednn_decision()}" in output
    for line in (float16, float64):
        dtype, path = line.split()
        assert path == conv_implementation(dtype)
    assert pointwise.split() == ["float32", pointwise_implementation()]


def test_summary_of_the_paper(run_cli, monkeypatch):
    """Counted columns beside the published ones; all of it takes a minute."""
    tables = {
        t: rows[-1:] for t, rows in paper.TABLES.items() if "Table 1" in t
    }
    monkeypatch.setattr(paper, "TABLES", tables)
    status, output, _ = run_cli("summary", "--paper")
    assert status == 0
    assert "ResNeXt-50" in output
    assert "25.03 M" in output
    assert "4.230 G" in output
    assert "22.2 %" in output
    assert "were not measured here" in output


def test_training_command_keeps_its_recipe(short_run):
    found = json.loads((short_run / "recipe.json").read_text())
    changed = {"model": "resnext11_1x4d", "image_size": 8}
    changed |= {"epochs": 1, "warmup_epochs": 0.0}
    assert Recipe(**found) == dataclasses.replace(Recipe(), **changed)


def test_run_remembers_where_its_data_are(short_run, tmp_path):
    run = Run(short_run)
    with_default = tfds.builder("digits").data_path
    assert run.open_dataset().builder.data_path != with_default
    elsewhere = run.open_dataset(data_dir=tmp_path)
    assert str(elsewhere.builder.data_path).startswith(str(tmp_path))
    moved = Run(shutil.copytree(short_run, tmp_path / "run"))
    (moved.path / "data_dir.txt").write_text(f"{tmp_path}/gone\n")
    assert moved.open_dataset().builder.data_path == with_default


def test_images_of_another_data_set_have_their_size(run_cli, tmp_path):
    """Said before anything else; but not where it was chosen."""
    options = ("--recipe", "cifar_paper", "--dataset", "digits")
    options += ("--model", "resnext11_1x4d", "--batch-size", 9999)
    options += ("--workdir", tmp_path / "new")
    said = "image_size is 8 instead of the recipe's 32."
    status, output, error = run_cli("train", *options)
    assert status == 1
    assert "at most the number of training images, 1437" in error
    assert output.startswith("The images of digits have 8 pixels a side: ")
    assert said in output
    status, output, _ = run_cli("train", *options, "--image-size", 16)
    assert said not in output
    assert "image_size" in output


@pytest.mark.parametrize(
    ("recipe", "assignments", "sizes"),
    [
        ("imagenet_modern", [], (176, 224)),  # small images are enlarged
        ("cifar_paper", [], (28, 0)),
        ("cifar_paper", ["eval_image_size=40"], (32, 40)),
        ("cifar_paper", ["model=resnext50"], (32, 0)),
    ],
)
def test_images_fit_the_network(recipe, assignments, sizes, tmp_path):
    assignments = ["dataset=fashion_mnist", *assignments]
    plan = train._fit_image_size(
        RECIPES[recipe].override(assignments),
        recipe,
        assignments,
        tmp_path,
        None,
    )
    assert (plan.image_size, plan.eval_image_size) == sizes


@pytest.mark.integration
def test_evaluate_counts_and_draws(digits_run, run_cli):
    status, output, _ = run_cli("evaluate", digits_run)
    assert status == 0
    assert "digits, split test: 360 images" in output
    right, accuracy = re.search(
        r"(\d+) correct. Accuracy ([\d.]+)", output
    ).groups()
    assert float(accuracy) == pytest.approx(int(right) / 360, abs=1e-4)
    assert float(accuracy) > 0.9
    with Image.open(digits_run / "predictions.png") as picture:
        assert min(picture.size) > 400
    before = (digits_run / "predictions.png").read_bytes()
    status, output, _ = run_cli("evaluate", digits_run, "--split", "train")
    assert "split train: 1437 images" in output
    assert (digits_run / "predictions.png").read_bytes() == before
    status, output, error = run_cli(
        "evaluate", digits_run, "--at-least", 0.9999
    )
    assert status == 1
    assert "accuracy must be at least 0.9999; it is 0.9" in error


@pytest.fixture
def scans(tmp_path):
    """A folder with 20 held-out scans as PNG files, and their digits."""
    folder = tmp_path / "scans"
    folder.mkdir()
    labels = {}
    test = tfds.load("digits", split="test[:20]", as_supervised=True)
    for i, (image, label) in enumerate(test.as_numpy_iterator()):
        path = folder / f"{i:02d}.png"
        Image.fromarray(image[..., 0]).save(path)
        labels[str(path)] = str(label)
    return folder, labels


@pytest.mark.integration
def test_predict_names_the_digits(digits_run, run_cli, scans):
    _, labels = scans
    files = sorted(labels)
    status, output, _ = run_cli("predict", digits_run, *files, "--top", 1)
    assert status == 0
    rows = re.findall(r"│ (\d) +│ +([\d.]+) │", output)
    assert len(rows) == 20
    assert all(0.1 < float(p) <= 1 for _, p in rows)
    right = [d == labels[f] for (d, _), f in zip(rows, files, strict=True)]
    assert np.mean(right) > 0.8


def test_predict_goes_on_after_a_bad_image(short_run, run_cli, scans):
    """In every format, with status 1, and the same numbers in all."""
    folder, labels = scans
    (folder / "10_bad.png").write_bytes(b"no picture")
    (folder / ".hidden.png").write_bytes(b"neither")
    (folder / "notes.txt").write_text("not an image")
    status, output, error = run_cli("predict", short_run, folder, "--json")
    assert status == 1
    assert error.count("\n") == 1
    assert "10_bad.png" in error
    records = json.loads(output)
    names = [*labels, str(folder / "10_bad.png")]
    assert [r["image"] for r in records] == sorted(names)
    bad = [r for r in records if "error" in r]
    assert [r["image"] for r in bad] == [names[-1]]
    status, output, _ = run_cli(
        "predict", short_run, folder, "--csv", "--top", 2, "--batch-size", 3
    )
    assert status == 1
    rows = list(csv.DictReader(io.StringIO(output)))
    assert len(rows) == 2 * 20 + 1
    best = {r["image"]: r for r in rows if r["rank"] == "1"}
    for record in records:
        if "classes" in record:
            row = best[record["image"]]
            assert row["label"] == record["classes"][0]["label"]
            # Another batch size, another order of sums.
            assert float(row["probability"]) == pytest.approx(
                record["classes"][0]["probability"], abs=2e-5
            )


def test_predict_reads_standard_input(short_run, run_cli, scans, monkeypatch):
    """Beside files, which it answers too if the bytes are no picture."""
    _, labels = scans
    first, second = sorted(labels)[:2]
    arguments = ("predict", short_run, "-", second, "--json")

    def run(content):
        stdin = io.TextIOWrapper(io.BytesIO(content))
        monkeypatch.setattr("sys.stdin", stdin)
        status, output, error = run_cli(*arguments)
        return status, json.loads(output), error

    with open(first, "rb") as file:
        status, (piped, beside), _ = run(file.read())
    _, output, _ = run_cli("predict", short_run, first, second, "--json")
    assert status == 0
    assert (piped["image"], beside["image"]) == ("-", second)
    assert [piped["classes"], beside["classes"]] == [
        record["classes"] for record in json.loads(output)
    ]
    status, (piped, again), error = run(b"no picture")
    assert status == 1
    assert "must be an image file; -: unknown" in piped["error"]
    assert "-: unknown" in error
    assert again["classes"][0]["label"] == beside["classes"][0]["label"]


@pytest.fixture
def brightness(tmp_path):
    """A Keras model of pixels that knows dark from bright, in two files."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    outputs = keras.layers.Dense(2, activation="softmax", name="is")(x)
    outer = keras.Input((8, 8, 3))
    # Above and below half of 255.
    head = keras.Model(inputs, outputs)
    head.get_layer("is").set_weights(
        [np.float32([[-3, 3]] * 3), np.float32([4.5, -4.5])]
    )
    scaled = head(keras.layers.Rescaling(1 / 255)(outer))
    keras.Model(outer, scaled).save(tmp_path / "own.keras")
    head.save(tmp_path / "bare.keras")
    for name, grey in (("dark", 100), ("bright", 160)):
        Image.new("L", (20, 9), grey).save(tmp_path / f"{name}.png")
    return tmp_path


def test_predict_normalises_as_the_model_says(brightness, run_cli):
    images = [brightness / "dark.png", brightness / "bright.png"]

    def run(name, *options):
        model = brightness / f"{name}.keras"
        return run_cli("predict", model, *images, "--top", 1, *options)

    status, output, _ = run("own")
    assert status == 0
    levels = np.float64([100, 160]) / 255
    answers = re.findall(r"│ (\d) +│ +([\d.]+) │", output)
    assert [label for label, _ in answers] == ["0", "1"]
    for (_, probability), level in zip(answers, levels, strict=True):
        logit = abs(2 * (9 * level - 4.5))
        wanted = 1 / (1 + np.exp(-logit))
        assert float(probability) == pytest.approx(wanted, abs=2e-4)
    assert "Input: RGB pixels, 8x8; the model normalizes them itself." in output
    status, _, error = run("own", "--preprocessing", "imagenet")
    assert status == 1
    assert "they would be normalised twice" in error
    status, _, error = run("bare")
    assert status == 1
    assert "the layers of" in error
    status, output, _ = run("bare", "--preprocessing", "none")
    assert status == 0
    assert "Input: RGB pixels, 8x8, not normalized." in output
    status, output, _ = run("bare", "--preprocessing", "imagenet")
    assert "Input: RGB pixels, 8x8, normalized (imagenet)." in output


@pytest.mark.integration
def test_evaluate_normalises_as_it_is_told(brightness, run_cli):
    """135 is above half of 255, and below half once it is normalised."""
    data = brightness / "data"
    for name, grey in (("a_dark", 100), ("bright", 135)):
        (data / "test" / name).mkdir(parents=True)
        Image.new("L", (8, 8), grey).save(data / "test" / name / "0.png")

    def run(name, *options):
        model = brightness / f"{name}.keras"
        return run_cli("evaluate", model, "--dataset", data, *options)

    greys = np.float64([[100], [135]])
    imagenet = (greys / 255 - MEAN) / STD
    for name, options, taken in (
        ("own", [], np.repeat(greys, 3, 1) / 255),
        ("bare", ["--preprocessing", "none"], np.repeat(greys, 3, 1)),
        ("bare", ["--preprocessing", "imagenet"], imagenet),
    ):
        dark, bright = 2 * (3 * taken.sum(1) - 4.5)
        loss = np.mean([np.logaddexp(0, dark), np.logaddexp(0, -bright)])
        accuracy = np.mean([dark < 0, bright > 0])
        status, output, error = run(name, *options)
        assert status == 0, error
        found = re.search(r"Accuracy ([\d.]+), loss ([\d.]+)\.", output)
        assert float(found[1]) == accuracy
        assert float(found[2]) == pytest.approx(loss, rel=1e-4)
    status, _, error = run("bare")
    assert status == 1
    assert "the layers of" in error


def test_warnings_are_lines(capsys):
    log = logging.getLogger("keras_resnext")
    with warnings_as_lines():
        log.warning("the [files] of %s differ", "a run")
    assert capsys.readouterr().err == "Warning: the [files] of a run differ\n"


def test_progress_is_shown_in_files_too(capsys, monkeypatch):
    """A line a minute, and one an epoch."""
    minutes = iter([0, 0, 0.5, 1.1, 1.2, 2.0, 2.15])
    monkeypatch.setattr("time.monotonic", lambda: 60 * next(minutes))
    entry = {"loss": 0.5, "accuracy": 0.25, "val_loss": 1, "val_accuracy": 0.2}
    entry |= {"epoch": 1, "images_per_second": 8.0, "input_wait": 0.01}
    with training_progress() as (on_step, on_epoch):
        for step in (1, 2, 3, 4):
            on_step(Progress(1, step, 6, 0.6, 0.5, 0.25, 8.0, 0.01))
        on_epoch(entry)
        on_step(Progress(2, 5, 6, 0.6, 0.5, 0.25, 8.0, 0.01))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "epoch   1, step 3 of 6: loss 0.500 accuracy 0.250 8 images/s",
        epoch_line(entry),
    ]


def test_a_resumed_run_says_where_it_goes_on(capsys):
    with training_progress() as (on_step, _):
        for step in (5, 6):
            on_step(Progress(2, step, 6, 0.6, 0.5, 0.25, 8.0, 0.01, 4))
    assert capsys.readouterr().out == "Resumed after step 4 of 6.\n"


def test_version_and_completion(run_cli):
    status, output, _ = run_cli("--version")
    assert (status, output) == (
        0,
        f"keras-resnext {keras_resnext.__version__}\n",
    )
    status, output, _ = run_cli("--help")
    assert "--install-completion" in output


@pytest.mark.integration
def test_export_compares_on_the_held_out_images(digits_run, run_cli, tmp_path):
    """In every format and quantisation; verdicts as the issue of it asks."""
    options = ["--quantize", "none,float16,dynamic,int8", "--overwrite"]
    status, output, error = run_cli(
        "export", digits_run, "--output", tmp_path, *options
    )
    assert status == 0, error
    assert "360 images" in output
    names = {
        "savedmodel": "saved_model",
        "tflite": "model.tflite",
        "tflite float16": "model_float16.tflite",
        "tflite dynamic": "model_dynamic.tflite",
        "tflite int8": "model_int8.tflite",
        "onnx": "model.onnx",
        "onnx int8": "model_int8.onnx",
    }
    assert {p.name for p in tmp_path.iterdir()} == {
        *names.values(),
        *("report.json", "report.png"),
    }
    rows = {
        match[1]: match[2].split()
        for line in output.splitlines()
        if (match := re.match(r" (\w+(?: [a-z]\w+)?) +(\S.*)", line))
    }
    report = json.loads((tmp_path / "report.json").read_text())
    lines = {
        " ".join(filter(None, (line["format"], line["quantize"]))): line
        for line in report["files"]
    }
    assert rows["keras"][4] == f"{report['keras_accuracy']:.4f}"
    for name, file in names.items():
        line = lines[name]
        assert line["passed"]
        assert line["path"] == str(tmp_path / file)
        assert rows[name][0] == f"{line['bytes'] / 1e6:.2f}"
        assert line["latency_ms"] > 0
        assert line["peak_bytes"] > line["bytes"]
        if line["quantize"] is None:
            assert line["max_logit_difference"] < 1e-4
            assert line["accuracy"] == report["keras_accuracy"]
        # One, or in int8 three, of the 360 may change.
        changes = {"int8": 3, "float16": 1, "dynamic": 1}
        most = changes.get(line["quantize"], 0) / 360
        assert line["top1_agreement"] >= 1 - most - 1e-9, name
        assert bool(line["layer_errors"]) == (
            line["format"] == "tflite"
            and line["quantize"] in ("dynamic", "int8")
        )
    with zipfile.ZipFile(tmp_path / "model.tflite") as archive:
        labels = archive.read("labels.txt").decode().split()
    assert labels == list("0123456789")

    status, _, error = run_cli("export", digits_run, "--output", tmp_path)
    assert status == 1
    assert "saved_model exists" in error


def test_export_of_a_keras_file(short_run, run_cli, tmp_path):
    model = short_run / "model.keras"
    status, output, _ = run_cli(
        "export", model, "--format", "onnx", "--output", tmp_path
    )
    assert status == 0
    assert "8 images" in output
    assert "Input: RGB pixels in [0, 255]; normalization (imagenet)" in output
    assert {p.name for p in tmp_path.iterdir()} == {
        *("model.onnx", "report.json", "report.png")
    }
    # It knows its classes, wherever it was copied to.
    (properties,) = [
        p.value
        for p in onnx.load(tmp_path / "model.onnx").metadata_props
        if p.key == "labels"
    ]
    assert json.loads(properties) == list("0123456789")


@pytest.mark.integration
def test_export_with_a_limit_of_pixels(short_run, run_cli, tmp_path):
    status, _, error = run_cli(
        *("export", short_run / "model.keras", "--format", "savedmodel"),
        *("--output", tmp_path, "--max-pixels", 100),
    )
    assert status == 0, error
    files = []
    for side in (10, 11):
        file = io.BytesIO()
        Image.new("L", (side, 10)).save(file, "PNG")
        files.append(file.getvalue())
    served = tf.saved_model.load(tmp_path / "saved_model")
    answers = served.signatures["image_bytes"](image_bytes=tf.constant(files))
    assert answers["valid"].numpy().tolist() == [True, False]


@pytest.mark.integration
def test_export_that_misses_its_limits(digits_run, run_cli, tmp_path):
    """The others are there, the one that failed is not, nor is its place."""
    status, output, error = run_cli(
        *("export", digits_run, "--output", tmp_path, "--max-images", 20),
        *("--format", "tflite", "--quantize", "none,int8"),
        *("--min-correlation", 0.999999999),
    )
    assert status == 1
    assert "FAILED" in output
    assert re.search("model_int8.tflite was not written: on 20 .*corr", error)
    assert {p.name for p in tmp_path.iterdir()} == {
        *("model.tflite", "report.json", "report.png")
    }
    report = json.loads((tmp_path / "report.json").read_text())
    assert [line["passed"] for line in report["files"]] == [True, False]
    failed = report["files"][1]
    assert 0.99 < failed["correlation"] < failed["limits"]["correlation"]
    assert f"{failed['bytes'] / 1e6:.2f}" in output


@pytest.mark.integration
def test_export_to_a_folder_with_brackets(digits_run, run_cli, tmp_path):
    """Which are no markup; and a folder is no report to replace."""
    folder = tmp_path / "a [red] b[/c]"
    arguments = ("export", digits_run, "--output", folder, "--max-images", 20)
    status, output, error = run_cli(*arguments, "--format", "onnx")
    assert status == 0, error
    assert f"Wrote {folder / 'model.onnx'} (difference at most" in output
    (folder / "report.json").unlink()
    (folder / "report.json").mkdir()
    status, _, error = run_cli(*arguments, "--format", "onnx", "--overwrite")
    assert status == 1
    assert "report.json is a folder" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("list resnet5O", "`name` must be a part of a model's name"),
        ("list resnet50 --devices", "`list` takes one of --weights"),
        ("summary resnet50x", "`model` must be one of resnext50"),
        ("summary resnext50 --form c", "`form` must be one of 'grouped'"),
        ("train --workdir {new} --model x", "`model` must be one of"),
        (
            "train --workdir {new} --recipe digit",
            "got 'digit'. Did you mean digits?",
        ),
        ("train --workdir {new} --dataset x", "`dataset` must be"),
        ("train --workdir {new} form=x", "`form` must be one of"),
        ("train --workdir {new} image_size=2", "`input_shape` must be"),
        ("train --workdir {new} epoch=2", "A recipe field must be set as"),
        ("train --workdir {new} --strategy x", "`strategy` must be one of"),
        ("train --workdir {run}", "differs: model 'resnext11_8x4d' (there 'r"),
        ("summary", "`summary` takes the name of a model or --paper"),
        ("train --workdir {run}/recipe.json", "`workdir` must be a folder"),
        (
            "evaluate {run} --dataset {other}",
            "must have the model's 10 classes",
        ),
        ("export {run} --data {other}", "must have the model's 10 classes"),
        ("export {run} --output {run}/recipe.json", "must be in a folder"),
        (
            "export {run}/model.keras --data {other} --output {new}",
            "must have the model's 10 classes",
        ),
        ("evaluate {new}", "`dataset` must be given"),
        ("evaluate {new} --dataset digits", "`source` must be the folder of"),
        ("evaluate {run} --dataset x", "`dataset` must be"),
        ("evaluate {run} --split dev", "`split` must be one of"),
        ("evaluate {run}/model.keras", "`dataset` must be given"),
        ("predict {run} setup.cfg", "must be an image file; setup.cfg"),
        ("predict {run} no.png", "must be an image file; no.png"),
        ("predict no no.png", "`model` must be one of resnext50"),
        ("predict resnext5 no.png", "Did you mean resnext50"),
        ("predict {other} no.png", "has no recipe.json"),
        ("predict {run} {other}/none", "must be an image file"),
        ("predict no.keras no.png", "a model's name; there is no no.keras"),
        ("predict {run} x.png --json --csv", "--json or --csv; got both"),
        ("predict {run} no.png --weights x", "`weights` must be None unless"),
        ("export {run} --format tfx", "`formats` must be some of savedmodel"),
        (
            "export {run} --quantize int4",
            "`quantize` must be some of none, float",
        ),
        (
            "export {run} --format onnx --quantize dynamic",
            "`quantize` dynamic needs one of the formats tflite; got onnx",
        ),
        (
            "export {run}/model.keras --quantize int8 --output {new}",
            "`data` must be given for the calibration of int8",
        ),
        ("export {run} --min-agreement 2", "`top1_agreement` must be from 0"),
        (
            "export {run} --data-format CHW",
            "`data_format` must be NHWC or NCHW",
        ),
        (
            "export {run} --format tflite,onnx --max-pixels 9",
            "`max_pixels` must be 178956970 unless `formats` has savedmodel",
        ),
        ("export {new}", "`source` must be the folder of"),
    ],
)
def test_errors_are_one_line(short_run, run_cli, tmp_path, arguments, message):
    new = tmp_path / "new"
    before = {p: p.stat().st_mtime_ns for p in short_run.rglob("*")}
    for name in ("cat", "dog"):
        (tmp_path / "other" / "test" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / f"other/test/{name}/0.png")
    filled = arguments.format(
        new=new, run=short_run, other=tmp_path / "other"
    ).split()
    status, output, error = run_cli(*filled)
    assert status == 1
    assert error.count("\n") == 1
    assert error.startswith("Error: ")
    assert message in error
    assert "Recipe" in output or not output
    assert not new.exists()
    assert {p: p.stat().st_mtime_ns for p in short_run.rglob("*")} == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("history.jsonl", "{}\n", "history.jsonl must have the metrics of an"),
        ("history.jsonl", None, "must have the metrics of its epochs in"),
        ("recipe.json", "[]", "recipe.json must be a recipe"),
        ("model.keras", "", "model.keras is damaged, and there is no check"),
    ],
)
def test_damaged_runs_are_one_line(
    name, content, message, short_run, run_cli, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(short_run, run, ignore=shutil.ignore_patterns("step-*"))
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    status, _, error = run_cli(
        *("train", "--recipe", short_run / "recipe.json", "--workdir", run)
    )
    assert status == 1
    assert error.count("\n") == 1
    assert message in error


def test_missing_extras_are_named(short_run, run_cli, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    missing = {"ai_edge_litert", "onnxruntime", "matplotlib"}
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name in missing else find(name, *rest),
    )
    for arguments, extra in (
        (
            f"export {short_run} --format tflite --output {tmp_path}/a",
            "export",
        ),
        (f"export {short_run} --format onnx --output {tmp_path}/a", "export"),
        (f"export {short_run} --output {tmp_path}/a", "export"),
        (f"evaluate {short_run} --picture {tmp_path}/x.png", "train"),
    ):
        status, _, error = run_cli(*arguments.split())
        assert status == 1
        assert f"pip install 'keras_resnext[{extra}]'" in error
        assert not (tmp_path / "a").exists()
