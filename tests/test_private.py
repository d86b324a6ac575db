"""Private names of other libraries that `keras_resnext.private` relies on."""

import importlib.metadata
import inspect
import re

import keras
import pytest
import tensorflow as tf
from tf2onnx import optimizer

from keras_resnext import private

NAMES = [
    ("keras", keras.KerasTensor((1,)), "_keras_history"),
    ("tf2onnx", optimizer, "_get_optimizers"),
    (
        "tensorflow",
        tf.lite.TFLiteConverter([]),
        "_experimental_use_buffer_offset",
    ),
]


@pytest.mark.parametrize(("library", "owner", "name"), NAMES)
def test_private_name_exists(library, owner, name):
    if library == "keras":
        owner = keras.layers.Flatten()(keras.Input((1,)))
    version = importlib.metadata.version(library)
    assert hasattr(owner, name), f"{library} {version} has no {name}"


def test_every_private_name_is_tested():
    used = set(re.findall(r"\w\.(_[a-z]\w*)", inspect.getsource(private)))
    assert used == {name for _, _, name in NAMES}


def test_onnx_passes_are_known_by_name():
    from keras_resnext.export.onnx import PASSES

    assert set(PASSES) <= set(private.onnx_passes())
