"""ResNeXt for Keras 3: build, load, train, export.

Every public name is found here and loaded when first used, so that importing
the package, or asking the command line for help, does not load Keras.
"""

import importlib
from typing import TYPE_CHECKING

import wrapt

if TYPE_CHECKING:
    from keras_resnext import export as export
    from keras_resnext import layers as layers
    from keras_resnext import training as training
    from keras_resnext.preprocessing import (
        decode_predictions as decode_predictions,
    )
    from keras_resnext.preprocessing import preprocess_input as preprocess_input
    from keras_resnext.resnext import ResNeXt as ResNeXt
    from keras_resnext.resnext import ResNeXt50 as ResNeXt50
    from keras_resnext.resnext import ResNeXt101 as ResNeXt101
    from keras_resnext.resnext import list_models as list_models
    from keras_resnext.weights import load_weights as load_weights

__version__ = "0.1.0"

_HOME = {
    "ResNeXt": "resnext",
    "ResNeXt50": "resnext",
    "ResNeXt101": "resnext",
    "list_models": "resnext",
    "decode_predictions": "preprocessing",
    "preprocess_input": "preprocessing",
    "load_weights": "weights",
}
_MODULES = ("export", "layers", "training")

__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        module = importlib.import_module(f"{__name__}.{_HOME[name]}")
        globals()[name] = value = getattr(module, name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@wrapt.when_imported("keras")
def _register_layers(keras):
    """Let `keras.saving.load_model` know our layers, whoever imports Keras."""
    importlib.import_module(f"{__name__}.layers")


def __dir__():
    return sorted(__all__)
