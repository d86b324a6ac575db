"""What all rewrites share: a model copied layer by layer."""

import dataclasses
from collections.abc import Callable

import keras

from keras_resnext.inspection import check_graph
from keras_resnext.inspection import graph_config
from keras_resnext.inspection import is_graph
from keras_resnext.layers import FusedBatchNormalization
from keras_resnext.layers import GroupedConv2D
from keras_resnext.layers import PointwiseConv2D

STOCK_LAYERS = {
    GroupedConv2D: keras.layers.Conv2D,
    PointwiseConv2D: keras.layers.Conv2D,
    FusedBatchNormalization: keras.layers.BatchNormalization,
}


@dataclasses.dataclass(frozen=True)
class Rules:
    """What changes in one graph.

    Args:
        replace: From a layer to the new one, or to `None` for a copy.
        call: How a new layer is called, see `keras.models.clone_model`.
            Defaults to `None`: as the original is.
        weights: From a layer to the new one's arrays. Defaults to the layer's
            own.
        finish: Called with the new model. Defaults to nothing.
    """

    replace: Callable
    call: Callable | None = None
    weights: Callable = keras.layers.Layer.get_weights
    finish: Callable = lambda model: None


def rewrite_model(model, rules, copies=None):
    """A copy of a graph and of those nested in it, each by `rules(graph)`."""
    model = as_functional(model)
    copies = {} if copies is None else copies
    rule = rules(model)

    def copy(layer):
        # A layer that is used several times is copied once.
        if layer not in copies:
            copies[layer] = rule.replace(layer) or (
                rewrite_model(layer, rules, copies)
                if is_graph(layer)
                else _copy(layer)
            )
        return copies[layer]

    new = keras.models.clone_model(
        model, clone_function=copy, call_function=rule.call
    )
    if not model.trainable:
        new.trainable = False
    for layer in model.layers:
        if layer in copies and not is_graph(layer):
            _fill(copies[layer], rule.weights(layer), layer.trainable)
    rule.finish(new)
    return new


def as_functional(model):
    """The model itself, or a functional one on the same layers."""
    check_graph(model)
    # A subclass may have another config; what is rewritten is the graph.
    if "input_layers" not in graph_config(model):
        trainable = model.trainable
        # The `input` of a sequential one may be where another model calls it.
        ends = (
            (model.inputs[0], model.outputs[0])
            if isinstance(model, keras.Sequential)
            else (model.input, model.output)
        )
        model = keras.Model(*ends, name=model.name)
        if not trainable:
            model.trainable = False
    return model


def _copy(layer):
    """A layer of the same config, or an error that names the layer."""
    if isinstance(layer, keras.Model) or (
        isinstance(layer, keras.layers.Wrapper)
        and isinstance(layer.layer, (keras.Model, *STOCK_LAYERS))
    ):
        raise ValueError(
            "`model` must be made of layers and of functional or built "
            f"sequential models; {layer.name} is a {type(layer).__name__} "
            "with layers of its own."
        )
    try:
        return type(layer).from_config(layer.get_config())
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            "`model` must have layers that can be rebuilt from their config; "
            f"{layer.name} ({type(layer).__name__}) cannot."
        ) from error


def _fill(layer, arrays, trainable):
    layer.trainable = trainable
    if layer.weights:  # a layer that was removed has none
        layer.set_weights(arrays)
    if hasattr(layer, "finalize_state"):
        layer.finalize_state()  # it computes with values derived from them
