"""Set before anything imports TensorFlow, and what many tests share."""

import importlib.metadata
import os
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Before Keras, as users are told, so that TensorFlow uses oneDNN.
import keras_resnext

# Data sets are prepared anew, and the user's own are left alone. TFDS reads
# this when it is imported.
_data_sets = tempfile.TemporaryDirectory(prefix="tfds-")
os.environ["TFDS_DATA_DIR"] = _data_sets.name

import sys

import keras
import numpy as np
import pytest
from PIL import Image

from keras_resnext import cli


def pytest_report_header():
    """The versions that a result holds for."""
    names = ("keras", "tensorflow", "jax", "torch", "numpy")
    versions = {name: _version(name) for name in names}
    versions["keras"] = keras.__version__  # a nightly has another name
    return ", ".join(f"{k} {v}" for k, v in versions.items() if v)


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def randomize(model, seed=0):
    """Give every variable a value that a mix-up would show.

    Fresh batch norms are the identity, and two swapped ones go unseen.
    """
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        value = rng.normal(size=variable.shape) * 0.2
        if "variance" in variable.path or "gamma" in variable.path:
            value = rng.uniform(0.5, 1.5, size=variable.shape)
        elif len(variable.shape) > 1:  # kernels keep their own scale
            value = variable.numpy() * (1 + 0.2 * value)
        variable.assign(value)
    return model


@pytest.fixture(scope="session")
def small_model():
    """A CIFAR-style net with every kind of layer and random statistics."""
    keras.utils.set_random_seed(0)
    return randomize(
        keras_resnext.ResNeXt(
            (1, 1, 1),
            4,
            4,
            stem="cifar",
            classes=10,
            input_shape=(16, 16, 3),
        )
    )


@pytest.fixture(scope="session")
def pixels():
    """Twelve images of noise, float32 (12, 16, 16, 3) in [0, 255]."""
    noise = np.random.default_rng(1).integers(0, 256, (12, 16, 16, 3))
    return noise.astype("float32")


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """Run the command in this process: exit status, output, errors."""

    def run(*arguments):
        monkeypatch.setattr(
            sys, "argv", ["keras-resnext", *map(str, arguments)]
        )
        with pytest.raises(SystemExit) as stopped:
            sys.exit(cli.main())
        return stopped.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def shades(tmp_path_factory):
    """Three shades with a little noise, 8 images each to train on."""
    root = tmp_path_factory.mktemp("shades")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 5)):
        for shade in (40, 120, 200):
            place = root / split / str(shade)
            place.mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(-20, 20, (8, 8, 3)) + shade
                Image.fromarray(noise.astype("uint8")).save(place / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def toy_recipe(shades):
    """Three epochs of three steps on a toy net."""
    from keras_resnext.training import Recipe

    return Recipe(
        dataset=str(shades),
        model="resnext11_1x4d",
        image_size=8,
        batch_size=8,
        epochs=3,
        warmup_epochs=1.0,
        learning_rate=0.0125,
        crop_padding=1,
    )


@pytest.fixture(scope="session")
def toy_run(toy_recipe, tmp_path_factory):
    """The finished run of `toy_recipe`."""
    from keras_resnext.training import train

    steps = []
    run = train(
        toy_recipe, tmp_path_factory.mktemp("run"), on_step=steps.append
    )
    assert [s.step for s in steps] == list(range(1, 10))
    assert steps[-1].steps == 9
    assert [s.epoch for s in steps] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    return run


@pytest.fixture
def float64():
    """Layers, and what Keras makes of Python's numbers, in float64."""
    policy = keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy(policy)


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's digits, prepared."""
    from keras_resnext.training.datasets import open_dataset

    data = open_dataset("digits")
    data.prepare()
    return data


@pytest.fixture
def image_folder(tmp_path):
    """Three classes of flat colour, sizes of their own, and a stray file."""
    for split, count in (("train", 4), ("val", 2)):
        for shade, name in ((50, "dark"), (120, "grey"), (220, "light")):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for i in range(count):
                size = (20 + 5 * i, 30)
                Image.new("RGB", size, (shade, 0, i)).save(place / f"{i}.png")
            (place / "notes.txt").write_text("not an image")
    return tmp_path
