"""ResNeXt for Keras 3: build, load, train, export.

Every public name is found here and loaded when first used, so that importing
the package, or asking the command line for help, does not load Keras.
"""

import importlib
from typing import TYPE_CHECKING

import wrapt

from keras_resnext.cpu import turn_on_onednn
from keras_resnext.quiet import limit_tensorflow_log

if TYPE_CHECKING:
    from keras_resnext import explain as explain
    from keras_resnext import export as export
    from keras_resnext import layers as layers
    from keras_resnext import training as training
    from keras_resnext.classifier import Classifier as Classifier
    from keras_resnext.classifier import Prediction as Prediction
    from keras_resnext.complexity import Complexity as Complexity
    from keras_resnext.complexity import count_complexity as count_complexity
    from keras_resnext.fake_quantization import Observer as Observer
    from keras_resnext.imagenet import decode_predictions as decode_predictions
    from keras_resnext.inference import inference_function as inference_function
    from keras_resnext.pyramid import feature_pyramid as feature_pyramid
    from keras_resnext.resnext import ResNeXt as ResNeXt
    from keras_resnext.rewrite import convert_form as convert_form
    from keras_resnext.rewrite import fold_batch_norm as fold_batch_norm
    from keras_resnext.rewrite import quantization_aware as quantization_aware
    from keras_resnext.rewrite import to_stock_layers as to_stock_layers
    from keras_resnext.share import push_to_hub as push_to_hub
    from keras_resnext.transforms import EvalTransform as EvalTransform
    from keras_resnext.transforms import preprocess_input as preprocess_input
    from keras_resnext.variants import ResNet50 as ResNet50
    from keras_resnext.variants import ResNet101 as ResNet101
    from keras_resnext.variants import ResNet200 as ResNet200
    from keras_resnext.variants import ResNeXt29_8x64d as ResNeXt29_8x64d
    from keras_resnext.variants import ResNeXt29_16x64d as ResNeXt29_16x64d
    from keras_resnext.variants import ResNeXt50 as ResNeXt50
    from keras_resnext.variants import ResNeXt101 as ResNeXt101
    from keras_resnext.variants import ResNeXt101_32x8d as ResNeXt101_32x8d
    from keras_resnext.variants import ResNeXt101_32x16d as ResNeXt101_32x16d
    from keras_resnext.variants import ResNeXt101_32x32d as ResNeXt101_32x32d
    from keras_resnext.variants import ResNeXt101_32x48d as ResNeXt101_32x48d
    from keras_resnext.variants import ResNeXt101_64x4d as ResNeXt101_64x4d
    from keras_resnext.variants import ResNeXt152 as ResNeXt152
    from keras_resnext.variants import list_models as list_models
    from keras_resnext.weights import export_weights as export_weights
    from keras_resnext.weights import get_weights as get_weights
    from keras_resnext.weights import list_weights as list_weights
    from keras_resnext.weights import load_weights as load_weights

__version__ = "0.1.0"

# Here, because TensorFlow asks when it is imported.
turn_on_onednn()
limit_tensorflow_log("1")

_HOME = {
    "ResNet50": "variants",
    "ResNet101": "variants",
    "ResNet200": "variants",
    "ResNeXt": "resnext",
    "ResNeXt29_8x64d": "variants",
    "ResNeXt29_16x64d": "variants",
    "ResNeXt50": "variants",
    "ResNeXt101": "variants",
    "ResNeXt101_32x8d": "variants",
    "ResNeXt101_32x16d": "variants",
    "ResNeXt101_32x32d": "variants",
    "ResNeXt101_32x48d": "variants",
    "ResNeXt101_64x4d": "variants",
    "ResNeXt152": "variants",
    "feature_pyramid": "pyramid",
    "list_models": "variants",
    "convert_form": "rewrite",
    "fold_batch_norm": "rewrite",
    "Observer": "fake_quantization",
    "quantization_aware": "rewrite",
    "to_stock_layers": "rewrite",
    "Complexity": "complexity",
    "count_complexity": "complexity",
    "inference_function": "inference",
    "Classifier": "classifier",
    "Prediction": "classifier",
    "decode_predictions": "imagenet",
    "EvalTransform": "transforms",
    "preprocess_input": "transforms",
    "push_to_hub": "share",
    "export_weights": "weights",
    "get_weights": "weights",
    "list_weights": "weights",
    "load_weights": "weights",
}
_MODULES = ("explain", "export", "layers", "training")

__all__ = ["__version__", *_HOME, *_MODULES]


# Type checkers would take it that every name exists.
if not TYPE_CHECKING:

    def __getattr__(name):
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name in _HOME:
            module = importlib.import_module(f"{__name__}.{_HOME[name]}")
            globals()[name] = value = getattr(module, name)
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@wrapt.when_imported("keras")
def _register(keras):
    """Let `keras.saving.load_model` know our classes, whoever imports Keras."""
    importlib.import_module(f"{__name__}.layers")
    importlib.import_module(f"{__name__}.fake_quantization")
    importlib.import_module(f"{__name__}.pyramid")
    if keras.backend.backend() == "tensorflow":
        importlib.import_module(f"{__name__}.training.optimizer")


def __dir__():
    return sorted(__all__)
