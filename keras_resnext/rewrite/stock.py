"""Keras' own layers for ours, and ours for Keras'."""

import keras

from keras_resnext.inspection import layers_of
from keras_resnext.layers import GroupedConv2D
from keras_resnext.rewrite.walker import STOCK_LAYERS
from keras_resnext.rewrite.walker import as_functional
from keras_resnext.rewrite.walker import copy_once
from keras_resnext.rewrite.walker import copy_weights


def to_stock_layers(model: keras.Model) -> keras.Model:
    """The same network and weights from layers of Keras alone.

    Its `.keras` file opens where this package is not installed, at the price
    of Keras' slow grouped convolutions; in the explicit forms there are none.

    Args:
        model: A functional or sequential `keras.Model`.

    Returns:
        A functional `keras.Model` of the same name, inputs, outputs and
        weights.

    Raises:
        ValueError: if the model is not made of functional and sequential
            ones; it names the layer.

    Example:

    >>> to_stock_layers(model).save("plain.keras")
    """
    return _to_stock_layers(as_functional(model), {})


def _to_stock_layers(model, done):
    def make(layer):
        for ours, stock in STOCK_LAYERS.items():
            if isinstance(layer, ours) and layer not in done:
                done[layer] = stock.from_config(layer.get_config())
        return copy_once(layer, done, lambda m: _to_stock_layers(m, done))

    new = keras.models.clone_model(model, clone_function=make)
    copy_weights(model, new)
    return new


def from_stock_layers(model: keras.Model) -> keras.Model:
    """The same network with `GroupedConv2D` for Keras' grouped convolutions.

    Args:
        model: A functional or sequential `keras.Model`.

    Returns:
        The model itself if it has none, or a new functional one.

    Raises:
        ValueError: if there are some, and the model is not made of functional
            and sequential ones; it names the layer.

    Example:

    >>> fast = from_stock_layers(keras.models.load_model("plain.keras"))
    """
    if not any(map(_is_stock_grouped, layers_of(model))):
        return model
    return _from_stock_layers(as_functional(model), {})


def _from_stock_layers(model, done):
    def make(layer):
        if _is_stock_grouped(layer) and layer not in done:
            done[layer] = GroupedConv2D.from_config(layer.get_config())
        return copy_once(layer, done, lambda m: _from_stock_layers(m, done))

    new = keras.models.clone_model(model, clone_function=make)
    copy_weights(model, new)
    return new


def _is_stock_grouped(layer):
    return type(layer) is keras.layers.Conv2D and layer.groups > 1
