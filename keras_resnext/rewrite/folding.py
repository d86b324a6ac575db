"""Batch norms folded into the convolutions before them."""

import keras
import numpy as np

from keras_resnext.inspection import called_in_training
from keras_resnext.inspection import check_plain_weights
from keras_resnext.inspection import edges
from keras_resnext.layers import GroupedConv2D
from keras_resnext.layers import PointwiseConv2D
from keras_resnext.rewrite.walker import Rules
from keras_resnext.rewrite.walker import rewrite_model


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """The same network for inference, without batch norms.

    In inference a batch norm scales and shifts each channel, which the
    convolution before it can do itself. In the branches form, where the paths
    meet in a sum, the last convolution of every path takes the scale and the
    first one the shift. Outputs agree to float32 rounding.

    Args:
        model: A functional or sequential `keras.Model`.

    Returns:
        A functional `keras.Model` of the same name, inputs and outputs. Do
        not train it: without batch norm it is another network. Under a mixed
        policy the convolutions' weights are stored in the compute dtype, so
        that `"mixed_bfloat16"` halves their size and nothing is cast.

    Raises:
        ValueError: if a batch norm does not follow a `Conv2D`, Keras' or one
            of `keras_resnext.layers`, or a sum of them whose outputs nothing
            else reads; if it is called with `training=True` or is
            channels-first (Keras 3.15 adds a bias to the wrong axis of images
            as wide as they have channels); if a convolution has LoRA enabled;
            or if the model contains a model that is neither functional nor
            sequential. The message names the layer.

    Example:

    >>> fast = fold_batch_norm(keras_resnext.ResNeXt50(weights=None))
    """
    return rewrite_model(model, _rules)


def _rules(model):
    """How one graph is folded."""
    plan = plan_folding(model)
    first = {convs[0]: norm for norm, convs in plan.items()}
    norms = {conv: norm for norm, convs in plan.items() for conv in convs}

    def replace(layer):
        if layer in plan:
            return keras.layers.Identity(name=layer.name)
        if layer in norms:
            config = layer.get_config()
            config["use_bias"] = layer.use_bias or layer in first
            # Nothing will train them, so no wider copy is needed.
            config["dtype"] = layer.compute_dtype
            return type(layer).from_config(config)

    def call(layer, *args, **kwargs):
        return args[0] if layer.name in removed else layer(*args, **kwargs)

    def weights(layer):
        if layer not in norms:
            return layer.get_weights()
        scale, shift = _scale_and_shift(norms[layer])
        kernel, *bias = layer.get_weights()
        bias = [scale * b for b in bias]
        if layer in first:
            bias = [shift + b for b in bias] or [shift]
        return [kernel * scale, *bias]

    removed = {norm.name for norm in plan}
    return Rules(replace, call, weights)


def plan_folding(model):
    """Batch norm -> the convolutions that absorb it."""
    layers = {layer.name: layer for layer in model.layers}
    sources, readers = edges(model)
    in_training = called_in_training(model)
    plan = {}
    for norm in layers.values():
        if not isinstance(norm, keras.layers.BatchNormalization):
            continue
        _check_calls(norm, sources[norm.name], in_training)
        (source,) = convs = sources[norm.name]
        if isinstance(layers[source], keras.layers.Add):
            convs = sources[source]
        for name in convs:
            read_once = len(readers[name]) == len(readers[source]) == 1
            if not (read_once and _absorbs(layers[name], norm)):
                raise ValueError(
                    "`model` must have linear, channels-last convolutions of "
                    "as many filters, read by nothing else, before its batch "
                    f"norms; {norm.name} reads {name} "
                    f"({type(layers[name]).__name__})."
                )
            check_plain_weights(layers[name])
        plan[norm] = [layers[name] for name in convs]
    return plan


def _check_calls(norm, sources, in_training):
    if len(sources) != 1:
        raise ValueError(
            f"`model` must use each batch norm once; {norm.name} is used "
            f"{len(sources)} times."
        )
    if norm.name in in_training:
        raise ValueError(
            "`model` must call its batch norms without `training=True`; "
            f"{norm.name} is called with it."
        )


def _absorbs(conv, norm):
    """Whether a layer is a convolution that can take the batch norm in."""
    return (
        type(conv) in (keras.layers.Conv2D, GroupedConv2D, PointwiseConv2D)
        and conv.activation is keras.activations.linear
        and conv.data_format == "channels_last"
        and conv.filters == norm.moving_mean.shape[0]
        and norm.axis in (-1, 3)
    )


def _scale_and_shift(norm):
    """A batch norm in inference, as `y = scale * x + shift`."""

    def value(variable):
        return keras.ops.convert_to_numpy(variable).astype("float64")

    scale = 1 / np.sqrt(value(norm.moving_variance) + norm.epsilon)
    if norm.scale:
        scale = scale * value(norm.gamma)
    shift = -value(norm.moving_mean) * scale
    if norm.center:
        shift = shift + value(norm.beta)
    return scale, shift
