"""TensorFlow, JAX and torch compute the same, each in its own process.

TensorFlow's numbers are the second implementation. With the same weights
and images, differences are those of float32's rounding.
"""

import concurrent.futures
import importlib.util
import inspect
import itertools
import json

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

import keras_resnext
from keras_resnext import export
from keras_resnext import training
from keras_resnext.export.runtimes import OPENERS
from keras_resnext.export.runtimes import in_batches
from keras_resnext.export.verify import logits
from tests.backend_process import BACKENDS
from tests.backend_process import LABELS
from tests.backend_process import NETWORKS
from tests.backend_process import SIZE
from tests.backend_process import run
from tests.conftest import randomize

pytestmark = [pytest.mark.integration, pytest.mark.slow]

has_torch = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(
    not has_torch, reason="torch is not installed; `make peers` installs it"
)
OTHERS = ["jax", pytest.param("torch", marks=needs_torch)]
every_other = pytest.mark.parametrize("backend", OTHERS)
every_backend = pytest.mark.parametrize("backend", ["tensorflow", *OTHERS])

# float32 rounds by 6e-8 of a value. A logit of ResNeXt-50 is behind 54 layers
# with a rounded sum each, of up to 2048 terms: 6e-8 * sqrt(2048) * sqrt(54) is
# 2e-5 if all are as long and added one after the other. Most are shorter, and
# all three libraries add them in blocks.
ROUNDING = 1e-5

# What is TensorFlow's, and how the line begins that says so elsewhere.
NAMES = {
    **{
        f"keras_resnext.training.{name}": "Training"
        for name in training.__all__
        if name not in ("RECIPES", "Recipe")
    },
    **{
        f"keras_resnext.export.{name}": "Exporting"
        for name, value in vars(export).items()
        if not (name.startswith("_") or inspect.ismodule(value))
    },
    "inference_function": "`inference_function`",
    "quantization_aware": "`quantization_aware`",
}
COMMANDS = {
    "train --workdir {0}/new": "Training",
    "train --workdir {0}/new --extend-to 5": "Training",
    "finetune {0}/photos --workdir {0}/new": "Training",
    "evaluate {0}/main.keras --dataset {0}/photos": "Training",
    "export {0}/main.keras --output {0}/new": "Exporting",
}
EVERYWHERE = (
    "predict {0}/written/tensorflow.keras {0}/photos --json",
    "summary resnext11_4x4d",
    "list resnext50",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images and weights, that all processes start from."""
    folder = tmp_path_factory.mktemp("backends")
    (folder / "written").mkdir()
    photographs = np.stack(load_sample_images().images)
    cutouts = np.stack(
        [
            photograph[y : y + 64, x : x + 64]
            for photograph in photographs
            for y in range(0, 300, 90)
            for x in range(0, 500, 140)
        ]
    )
    transform = keras_resnext.EvalTransform.from_crop_pct(SIZE)
    pixels = np.stack([transform.pixels(image) for image in cutouts])
    np.save(folder / "photographs.npy", photographs)
    np.save(folder / "cutouts.npy", cutouts)
    np.save(folder / "pixels.npy", pixels)
    np.save(folder / "images.npy", transform.normalize(pixels))
    np.save(folder / "labels.npy", np.arange(len(pixels)) % len(LABELS))
    photo = folder / "photos" / LABELS[0] / "0.png"
    photo.parent.mkdir(parents=True)
    Image.fromarray(pixels[0]).save(photo)

    keras.utils.set_random_seed(0)
    for name, options in NETWORKS.items():
        model = randomize(keras_resnext.ResNeXt(**options))
        model.save_weights(folder / f"{name}.weights.h5")
        if name == "main":
            model.save(folder / "main.keras")
            keras_resnext.export_weights(model, folder / "main.safetensors")
    if has_torch:
        import safetensors.torch
        import torch

        tensors = safetensors.torch.load_file(folder / "main.safetensors")
        torch.save(tensors, folder / "main.pth")
    model = randomize(keras_resnext.ResNeXt50(weights=None))
    keras_resnext.export_weights(model, folder / "resnext50.safetensors")
    entries = {
        "names": [name for name in NAMES if "." in name],
        "commands": [x.format(folder) for x in (*COMMANDS, *EVERYWHERE)],
    }
    (folder / "entries.json").write_text(json.dumps(entries))
    return folder


def on_backends(part, folder):
    """Run a part on every backend, on two at a time."""
    backends = BACKENDS if has_torch else BACKENDS[:2]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda backend: run(backend, part, folder), backends))
    return backends


@pytest.fixture(scope="module")
def numbers(folder):
    """What `compute` wrote, by backend."""
    backends = on_backends("compute", folder)
    return {name: dict(np.load(folder / f"{name}.npz")) for name in backends}


def of(numbers, group):
    """The numbers of a group, by what follows its name."""
    found = {
        name.removeprefix(f"{group}/"): values
        for name, values in numbers.items()
        if name.startswith(f"{group}/")
    }
    assert found
    return found


def assert_agree(found, expected, tolerance=ROUNDING):
    """The largest difference is this share of the largest value at most."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert values.shape == found[name].shape, name
        difference = np.abs(found[name] - values).max()
        assert difference <= tolerance * np.abs(values).max(), name


@every_other
@pytest.mark.parametrize(
    "group",
    [
        "networks",
        "weights",
        "forms",
        "folding",
        "stock",
        "pyramid",
        "convolutions ours",
        "resnext50",
        "published",
    ],
)
def test_outputs_are_tensorflows(group, backend, numbers):
    expected = of(numbers["tensorflow"], group)
    for name, values in expected.items():
        # Of each image its own, or an error might not show.
        change = np.abs(np.diff(values, axis=0)).max()
        assert change > 100 * ROUNDING * np.abs(values).max(), name
    assert_agree(of(numbers[backend], group), expected)


@every_other
def test_channels_first(backend, numbers):
    main = numbers["tensorflow"]["networks/main"]
    assert_agree(of(numbers[backend], "channels first"), {"main": main})


@every_other
def test_convolutions_are_those_of_keras(backend, numbers):
    """Bit by bit, in both data formats."""
    expected = of(numbers[backend], "convolutions keras")
    assert_agree(of(numbers[backend], "convolutions ours"), expected, 0)


@every_backend
def test_files_and_rewrites_are_the_network(backend, numbers):
    """Weights of any file are the same numbers, hence the same outputs."""
    main = numbers[backend]["networks/main"]
    for name, values in of(numbers[backend], "weights").items():
        np.testing.assert_array_equal(values, main, err_msg=name)
    for group in ("forms", "folding", "stock"):
        found = of(numbers[backend], group)
        assert_agree(found, dict.fromkeys(found, main))


@every_other
def test_costs_are_tensorflows(backend, numbers):
    expected = of(numbers["tensorflow"], "complexity")
    assert_agree(of(numbers[backend], "complexity"), expected, 0)
    params, multiply_adds, _ = expected["resnext50"][0]
    assert (params, multiply_adds) == (25028904, 4230479872)


@every_other
def test_predicted_labels_are_tensorflows(backend, numbers):
    ours, theirs = (
        list(numbers[name]["published labels/fashion_mnist"])
        for name in ("tensorflow", backend)
    )
    assert ours == theirs
    assert len(set(ours)) > 1


@every_backend
def test_mixed_bfloat16(backend, numbers):
    """Scores and a step of training, as near to float32 as 8 bits allow.

    Each of seven layers rounds by 2^-9 of a value at most. Noise of
    2^-9 * sqrt(7) = 0.005 of the signal leaves a correlation of
    1 - 0.005^2 / 2 = 0.99999; ten times as much, where sums cancel, 0.9989.
    """
    found, expected = (
        numbers[backend][name]
        for name in ("bfloat16/scores", "networks/one_block")
    )
    assert found.dtype == "float32"
    assert np.isfinite(found).all()
    assert not np.array_equal(found, expected)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9989
    assert np.isfinite(numbers[backend]["bfloat16/loss"])


@every_other
def test_three_steps_of_training(backend, numbers, folder):
    """Losses, then what training changed, batch norm's statistics included.

    In float32, an input of a ReLU within rounding of zero has a gradient on
    one backend and none on another, which one of 2048 positions in a batch
    then adds to a kernel's gradient or not. So weights are held to a
    twentieth of the largest change: momentum left out, or statistics of
    another momentum, would be a third of it or more.
    """
    losses = numbers["tensorflow"]["losses/float32"]
    assert len(set(losses)) == len(losses) == 3
    np.testing.assert_allclose(
        numbers[backend]["losses/float32"], losses, rtol=1e-4
    )
    before = keras_resnext.ResNeXt(
        **NETWORKS["main"], weights=folder / "main.weights.h5"
    )
    expected = of(numbers["tensorflow"], "trained")
    actual = of(numbers[backend], "trained")
    for start, path in zip(before.weights, expected, strict=True):
        change = np.abs(expected[path] - start.numpy()).max()
        assert change > 0, path
        difference = np.abs(actual[path] - expected[path]).max()
        assert difference <= change / 20, path


@pytest.fixture(scope="module")
def opened(folder, numbers):
    """What `open_others` wrote, by the backend that opened the files."""
    backends = on_backends("open_others", folder)
    return {
        name: dict(np.load(folder / f"{name}_opened.npz")) for name in backends
    }


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        pytest.param(*pair, marks=[needs_torch] if "torch" in pair else [])
        for pair in itertools.permutations(BACKENDS, 2)
    ],
)
def test_files_open_on_other_backends(writer, reader, numbers, opened):
    scores = numbers[writer]["scores/trained"]
    endings = ("keras", "weights.h5", "safetensors")
    assert_agree(of(opened[reader], writer), dict.fromkeys(endings, scores))


@every_other
def test_what_another_backend_trained_is_exported(
    backend, numbers, folder, tmp_path, run_cli
):
    """By one line, on TensorFlow; each file against the other backend."""
    path = folder / "written" / f"{backend}.keras"
    status, _, errors = run_cli("export", path, "--output", tmp_path)
    assert not status, errors
    report = json.loads((tmp_path / "report.json").read_text())
    assert [file["format"] for file in report["files"]] == list(OPENERS)
    model = keras.saving.load_model(path)  # whose scores are probabilities
    expected = logits(model, numbers[backend]["scores/trained"])
    pixels = np.load(folder / "pixels.npy").astype("float32")
    for file in report["files"]:
        open_file = in_batches(OPENERS[file["format"]](file["path"]))
        found = logits(model, open_file(pixels)["probabilities"])
        assert_agree({file["format"]: found}, {file["format"]: expected})
    labels = tmp_path / "saved_model" / "assets" / "labels.txt"
    assert labels.read_text().splitlines() == LABELS


@pytest.fixture(scope="module")
def ends(folder, opened):
    """How entries end that are TensorFlow's, on each other backend."""
    return {
        name: json.loads((folder / f"{name}_ends.json").read_text())
        for name in opened
        if name != "tensorflow"
    }


@every_other
def test_what_is_tensorflows_says_so(backend, ends, folder):
    line = (
        "{} needs Keras on TensorFlow (KERAS_BACKEND=tensorflow); it runs on "
        f"{backend}."
    )
    for name, what in NAMES.items():
        assert ends[backend][name] == ["ImportError", line.format(what)], name
    for command, what in COMMANDS.items():
        status, output, errors = ends[backend][command.format(folder)]
        assert (status, output) == (1, ""), command
        assert errors == f"Error: {line.format(what)}\n"
    assert not (folder / "new").exists()


@every_other
@pytest.mark.parametrize("command", EVERYWHERE)
def test_other_commands_run_everywhere(backend, command, ends, folder, run_cli):
    command = command.format(folder)
    status, output, errors = ends[backend][command]
    assert not status, errors
    status, expected, _ = run_cli(*command.split())
    assert not status
    if not command.startswith("predict"):
        assert output == expected
        return
    (ours,), (theirs,) = json.loads(output), json.loads(expected)
    assert ours["image"] == theirs["image"]
    for one, other in zip(ours["classes"], theirs["classes"], strict=True):
        assert one["label"] == other["label"]
        # Printed with six digits, each rounded.
        assert one["probability"] == pytest.approx(
            other["probability"], abs=1.1e-6
        )
