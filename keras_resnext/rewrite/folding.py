"""Batch norms folded into the convolutions before them."""

import keras
import numpy as np

from keras_resnext.inspection import always_training
from keras_resnext.inspection import edges
from keras_resnext.layers import GroupedConv2D
from keras_resnext.rewrite.walker import as_functional
from keras_resnext.rewrite.walker import copy_once
from keras_resnext.rewrite.walker import copy_weights


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """The same network for inference, without batch norms.

    In inference a batch norm is a scale and a shift of each channel. The
    convolution before it absorbs both; where the paths of the branches form
    meet in a sum, each of their last convolutions takes the scale and the
    first the shift. Outputs agree to float32's rounding.

    Args:
        model: A functional or sequential `keras.Model`.

    Returns:
        A functional `keras.Model` of the same name, inputs and outputs.
        Training it would train another network. Under a mixed policy the
        convolutions' weights are stored as they are computed with, so that
        `"mixed_bfloat16"` halves them and casts nothing.

    Raises:
        ValueError: if a batch norm does not follow a `Conv2D` or
            `GroupedConv2D`, or a sum of them, that nothing else reads, or
            always trains, or is channels-first (Keras 3.15 adds a bias to the
            wrong axis of images as wide as they have channels); it names the
            layer. Or if the model is not made of functional and sequential
            ones.

    Example:

    >>> fast = fold_batch_norm(keras_resnext.ResNeXt50(weights=None))
    """
    return _fold_batch_norm(as_functional(model), {})


def _fold_batch_norm(model, done):
    plan = _folding_plan(model)
    firsts = {convs[0] for convs in plan.values()}
    folded = {conv for convs in plan.values() for conv in convs}

    def make(layer):
        if layer.name in plan:
            return keras.layers.Identity(name=layer.name)
        if layer.name in folded and layer not in done:
            config = layer.get_config()
            config["use_bias"] = layer.use_bias or layer.name in firsts
            # Nothing will train them: no need of wider copies of weights.
            config["dtype"] = layer.compute_dtype
            done[layer] = type(layer).from_config(config)
        return copy_once(layer, done, lambda m: _fold_batch_norm(m, done))

    def call(layer, *args, **kwargs):
        return args[0] if layer.name in plan else layer(*args, **kwargs)

    new = keras.models.clone_model(
        model, clone_function=make, call_function=call
    )
    copy_weights(model, new, without=folded)
    for norm, convs in plan.items():
        scale, shift = _scale_and_shift(model.get_layer(norm))
        for conv in convs:
            kernel, *bias = model.get_layer(conv).get_weights()
            bias = [scale * b for b in bias]
            if conv == convs[0]:
                bias = [shift + b for b in bias] or [shift]
            new.get_layer(conv).set_weights([kernel * scale, *bias])
    return new


def _folding_plan(model):
    """Batch norm -> the convolutions that take it in, by name."""
    layers = {layer.name: layer for layer in model.layers}
    producers, readers = edges(model)
    training = always_training(model)
    plan = {}
    for norm in layers.values():
        if not isinstance(norm, keras.layers.BatchNormalization):
            continue
        if len(producers[norm.name]) != 1:
            raise ValueError(
                f"`model` must use each batch norm once; {norm.name} is used "
                f"{len(producers[norm.name])} times."
            )
        if norm.name in training:
            raise ValueError(
                "`model` must call its batch norms without `training=True`; "
                f"{norm.name} is called with it."
            )
        (source,) = producers[norm.name]
        convs = [source]
        if isinstance(layers.get(source), keras.layers.Add):
            convs = producers[source]
        for name in convs:
            found = layers.get(name)
            if (
                type(found) not in (keras.layers.Conv2D, GroupedConv2D)
                or found.activation is not keras.activations.linear
                or found.data_format != "channels_last"
                or found.filters != norm.moving_mean.shape[0]
                or norm.axis not in (-1, 3)
                or len(readers[name]) > 1
                or len(readers[source]) > 1
            ):
                raise ValueError(
                    "`model` must have linear, channels-last convolutions of "
                    "as many filters, read by nothing else, before its batch "
                    f"norms; {norm.name} reads {name} "
                    f"({type(found).__name__})."
                )
        plan[norm.name] = convs
    return plan


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
