"""The deployment kits work where this package is not installed."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from PIL import Image

import keras_resnext
from keras_resnext.classifier import Classifier
from keras_resnext.export import Limits
from keras_resnext.export import to_tflite
from keras_resnext.transforms import EvalTransform

CLASSIFY = pathlib.Path(__file__).parents[1] / "export/mobile/classify.py"
LABELS = ["apple", "a long name", *"cdefghij"]

# Runs a script with its arguments where importing these modules fails.
WITHOUT_KERAS = """
import runpy, sys
for name in ("tensorflow", "tf_keras", "keras", "keras_resnext"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def classify():
    """export/mobile/classify.py as a module."""
    return load(CLASSIFY)


@pytest.fixture(scope="module")
def model():
    """A small network of random weights that is not sure of one class."""
    keras.utils.set_random_seed(0)
    return keras_resnext.ResNeXt(
        (1, 1, 1), 4, 4, stem="cifar", input_shape=(32, 32, 3), classes=10
    )


@pytest.fixture(scope="module")
def tflite(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("kit") / "model.tflite"
    to_tflite(model, path, labels=LABELS)
    return path


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(picture(70, 110)).save(path)
    return path


def picture(height, width):
    """Smooth colours and noise, uint8 `(height, width, 3)`."""
    random = np.random.default_rng(0)
    slope = np.linspace(0, 1, width) * np.linspace(1, 0.2, height)[:, None]
    colours = slope[..., None] * [200, 120, 60]
    noise = random.integers(0, 56, (height, width, 3))
    return (colours + noise).astype("uint8")


@pytest.fixture(scope="module")
def arm():
    """export/mobile/arm.py as a module, and where it has unpacked ARM's."""
    folder = CLASSIFY.parents[2] / ".arm"
    if not (folder / "ready").exists():
        pytest.skip("`make arm` unpacks Python and LiteRT for ARM")
    return load(CLASSIFY.with_name("arm.py")), folder


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_KERAS, CLASSIFY, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


def expected_probabilities(classify, model, path):
    pixels = classify.read_image(path, (32, 32))
    return model.predict(
        keras_resnext.preprocess_input(pixels[None]), verbose=0
    )[0]


def test_prints_the_top_classes(classify, model, tflite, png):
    result = run(png, png, "--model", tflite, "--top", "3")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 8
    assert lines[:4] == lines[4:]
    assert lines[0] == str(png)
    probabilities = expected_probabilities(classify, model, png)
    for line, i in zip(lines[1:4], np.argsort(-probabilities), strict=False):
        name, _, printed = line.strip().rpartition("  ")
        assert name.strip() == LABELS[i]
        # Four decimals are printed.
        assert float(printed) == pytest.approx(probabilities[i], abs=0.6e-4)
    assert len({line.rindex("0.") for line in lines[1:4]}) == 1


def test_agrees_with_keras(classify, model, tflite, png):
    run_file, size = classify.open_model(str(tflite), 1)
    assert size == (32, 32)
    np.testing.assert_allclose(
        run_file(classify.read_image(png, size)),
        expected_probabilities(classify, model, png),
        atol=1e-5,
    )


def test_the_kit_works_as_it_is_copied():
    folder = CLASSIFY.parent
    model = folder / "fashion_mnist.tflite"
    result = run(folder / "ankle-boot.png", "--model", model)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[1].startswith("  Ankle boot  ")


@pytest.mark.integration
@pytest.mark.parametrize(
    "quantize",
    [
        pytest.param("float16", marks=pytest.mark.slow),
        pytest.param("dynamic", marks=pytest.mark.slow),
        "int8",
    ],
)
def test_runs_quantised_files(classify, model, tmp_path, png, quantize):
    path = tmp_path / "model.tflite"
    pixels = picture(32, 32)[None]
    found = to_tflite(
        model,
        path,
        quantize=quantize,
        calibration=pixels if quantize == "int8" else None,
        images=pixels,
        limits=Limits(),
        labels=LABELS,
    )
    run_file, _ = classify.open_model(str(path), 1)
    np.testing.assert_allclose(
        run_file(pixels[0].astype("float32")), found.scores[0], atol=1e-5
    )
    result = run(png, "--model", path, "--threads", "2", "--time")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].endswith("of 50, 2 threads")


def test_prints_indices_without_labels(classify, model, tmp_path, png):
    path = tmp_path / "unlabelled.tflite"
    to_tflite(model, path)
    assert classify.read_labels(path) is None
    assert classify.table(np.array([0.2, 0.8]), None, 5) == (
        "  1  0.8000\n  0  0.2000"
    )


def test_reads_labels_from_the_file(classify, tflite):
    assert classify.read_labels(tflite) == LABELS


@pytest.mark.parametrize(
    "shape",
    [
        *((70, 110), (301, 97), (240, 320), (32, 32), (20, 31), (9, 5)),
        *((3, 900), (900, 3)),
    ],
    ids="{0[0]}x{0[1]}".format,
)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize_size", [32, 36, 37])
def test_pixels_are_those_of_the_package(
    classify, model, tmp_path, shape, interpolation, resize_size
):
    """The file says how it was evaluated, and the kit does the same."""
    transform = EvalTransform(
        image_size=32, resize_size=resize_size, interpolation=interpolation
    )
    path = tmp_path / "m.tflite"
    with zipfile.ZipFile(path, "w") as archive:
        config = json.dumps(transform.to_config())
        archive.writestr("transform.json", config)
    pixels = picture(*shape)
    ours = classify.resize_and_crop(
        Image.fromarray(pixels), (32, 32), **classify.read_transform(path)
    )
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, transform.pixels(pixels))


def test_exported_files_carry_their_transform(classify, model, tmp_path):
    transform = EvalTransform.from_crop_pct(32, 0.875, interpolation="bicubic")
    path = tmp_path / "m.tflite"
    to_tflite(Classifier(model, LABELS, transform), path)
    assert classify.read_labels(path) == LABELS
    assert classify.read_transform(path) == {
        "crop_pct": 32 / 36,
        "interpolation": "bicubic",
    }


def test_crops_to_the_proportions_of_the_input(classify):
    pixels = picture(40, 100)
    found = classify.resize_and_crop(Image.fromarray(pixels), (20, 40))
    whole = Image.fromarray(pixels).resize((50, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, np.asarray(whole)[:, 5:45])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["photo.png", "--model", "no.tflite"], "`--model` must be a .tflite"),
        (["photo.png", "--model", "text"], "`--model` must be a .tflite"),
        (["text", "--model", "model.tflite"], "`images` must be image files"),
        (["no.png", "--model", "model.tflite"], "`images` must be image files"),
        (
            ["photo.png", "--model", "model.tflite", "--top", "0"],
            "`--top` must be 1 or more; got 0",
        ),
        (
            ["photo.png", "--model", "model.tflite", "--threads", "0"],
            "`--threads` must be 1 or more; got 0",
        ),
    ],
    ids=[
        *("no model", "not a model", "not an image", "no image", "top 0"),
        "threads 0",
    ],
)
def test_errors_are_one_line(arguments, expected, tflite, png, tmp_path):
    text = tmp_path / "text"
    text.write_text("This is neither a model nor an image.\n" * 100)
    files = {"photo.png": png, "model.tflite": tflite, "text": text}
    result = run(*(files.get(argument, argument) for argument in arguments))
    assert result.returncode == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {expected}")
    for argument in arguments:
        if argument in ("no.tflite", "no.png"):
            assert f"got {argument}" in line


@pytest.mark.integration
def test_arm_answers_the_same(arm, model, tmp_path):
    """On a core with dot products, as phones have them."""
    module, folder = arm
    python = module.arm_python(folder, "cortex-a76")
    assert module.answer(python) == module.answer([sys.executable])
    files = {name: tmp_path / name for name in ("none", "dynamic", "int8")}
    images = np.stack([picture(32, 32), picture(32, 32)[::-1]])
    for name, path in files.items():
        to_tflite(
            model,
            path,
            quantize=None if name == "none" else name,
            calibration=images if name == "int8" else None,
            images=images,
            limits=Limits(),
        )
    here = module.probabilities(files, images, [sys.executable])
    there = module.probabilities(files, images, python)
    for name in files:
        assert here[name].shape == (2, 10)
        allowed = module.ROUNDING
        allowed += module.distance(here[name], here["none"])
        assert module.distance(there[name], here[name]) < allowed, name
    machine = "import platform; print(platform.machine())"
    assert module.run([*python, "-c", machine]) == "aarch64\n"
