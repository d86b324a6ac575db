"""Keras' own layers instead of ours, and back."""

import keras

from keras_resnext.inspection import is_quantization_aware
from keras_resnext.inspection import layers_of
from keras_resnext.layers import GroupedConv2D
from keras_resnext.rewrite.walker import STOCK_LAYERS
from keras_resnext.rewrite.walker import Rules
from keras_resnext.rewrite.walker import rewrite_model


def to_stock_layers(model: keras.Model) -> keras.Model:
    """The same network and weights, built from Keras' own layers only.

    Its `.keras` file opens without this package installed, but the grouped
    form then runs on Keras' slow grouped convolutions. The explicit forms
    have none.

    Args:
        model: A functional or sequential `keras.Model`.

    Returns:
        A functional `keras.Model` of the same name, inputs, outputs and
        weights.

    Raises:
        ValueError: if the model contains a model that is neither functional
            nor sequential; it names the layer. Or if the model comes from
            `quantization_aware`, for which Keras has no layers.

    Example:

    >>> to_stock_layers(model).save("plain.keras")
    """
    if is_quantization_aware(model):
        raise ValueError(
            "`model` must not come from `quantization_aware`, for whose "
            "convolutions Keras has no layers."
        )

    def replace(layer):
        for ours, stock in STOCK_LAYERS.items():
            if isinstance(layer, ours):
                return stock.from_config(layer.get_config())

    return rewrite_model(model, lambda graph: Rules(replace))


def from_stock_layers(model: keras.Model) -> keras.Model:
    """The same network, with `GroupedConv2D` for Keras' grouped convolutions.

    Args:
        model: A functional or sequential `keras.Model`.

    Returns:
        A new functional `keras.Model`, or `model` itself if it has no grouped
        convolution of Keras.

    Raises:
        ValueError: if it has, and contains a model that is neither functional
            nor sequential; it names the layer.

    Example:

    >>> fast = from_stock_layers(keras.models.load_model("plain.keras"))
    """

    def replace(layer):
        if _is_stock_grouped(layer):
            return GroupedConv2D.from_config(layer.get_config())

    if not any(map(_is_stock_grouped, layers_of(model))):
        return model
    return rewrite_model(model, lambda graph: Rules(replace))


def _is_stock_grouped(layer):
    return type(layer) is keras.layers.Conv2D and layer.groups > 1
