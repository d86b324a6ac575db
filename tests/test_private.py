"""Private names of other libraries that `keras_resnext.private` relies on."""

import ast
import importlib
import inspect
import pathlib
import re

import keras
import pytest
import tensorflow as tf
from tensorflow.python.util import _pywrap_util_port
from tf2onnx import optimizer

from keras_resnext import private

NAMES = [
    ("keras", keras.KerasTensor((1,)), "_keras_history"),
    ("keras", keras.layers.Flatten(), "_inbound_nodes"),
    ("tf2onnx", optimizer, "_get_optimizers"),
    (
        "tensorflow",
        tf.lite.TFLiteConverter([]),
        "_experimental_use_buffer_offset",
    ),
    ("tensorflow", _pywrap_util_port, "IsMklEnabled"),
]


@pytest.mark.parametrize(("library", "owner", "name"), NAMES)
def test_private_name_exists(library, owner, name):
    if name == "_keras_history":
        owner = keras.layers.Flatten()(keras.Input((1,)))
    version = importlib.import_module(library).__version__
    assert hasattr(owner, name), f"{library} {version} has no {name}"


def test_every_private_name_is_tested():
    used = set(re.findall(r"\w\.(_[a-z]\w*)", inspect.getsource(private)))
    tested = {name for _, _, name in NAMES if name.startswith("_")}
    assert used == tested


@pytest.mark.parametrize("name", private.OPTIMIZER_NAMES)
def test_private_name_of_optimizers_exists(name):
    adam = keras.optimizers.Adam()
    adam.build([])
    assert hasattr(adam, name), f"keras {keras.__version__} has no {name}"


def test_no_private_name_stands_elsewhere():
    """Attributes of anything but `self`, in the whole package."""
    # Named tuples' methods are public in spite of their names.
    own = {*private.OPTIMIZER_NAMES, "_asdict", "_replace"}
    used = {}
    for path in pathlib.Path(private.__file__).parent.rglob("*.py"):
        if path.name == "private.py":
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and re.match("_[a-z]", node.attr)
                and ast.unparse(node.value) not in ("self", "cls", "super()")
            ):
                used[node.attr] = path.name
    assert used.keys() <= own, used


def test_onnx_passes_are_known_by_name():
    from keras_resnext.export.onnx import PASSES

    assert set(PASSES) <= set(private.onnx_passes())
