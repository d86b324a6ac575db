"""Watch a layer of a built model, and take gradients, on any backend."""

import contextlib
import operator
from collections.abc import Callable

import keras
import numpy as np

from keras_resnext.extras import suggest
from keras_resnext.inspection import layers_of
from keras_resnext.inspection import output_layer


def check_model(model):
    """Refuse what is no Keras model with one output."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"`model` must be a keras.Model or a Classifier; got {model!r}."
        )
    outputs = getattr(model, "outputs", None) or ()
    if len(outputs) > 1:
        raise ValueError(
            f"`model` must have one output; {model.name} has {len(outputs)}."
        )


def is_index(value):
    """Whether a value is an integer, of Python or NumPy."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, (bool, np.ndarray))


def are_probabilities(scores):
    """Whether all rows are from 0 to 1 and sum to 1, in 8 bits or more."""
    sums = scores.astype("float64").sum(axis=-1)
    return bool((scores >= 0).all() and np.allclose(sums, 1, atol=2**-7))


def find_layer(model, layer):
    """The layer asked for, or the last one with a feature map."""
    layers = list(
        dict.fromkeys(
            x for x in layers_of(model) if not isinstance(x, keras.Model)
        )
    )
    if layer is None:
        for candidate in reversed(layers):
            if _has_map(candidate):
                return candidate
        raise ValueError(
            f"`layer` must be given: no layer of {model.name} is known to have "
            "a feature map, (batch, height, width, channels)."
        )
    if layer in layers:
        return layer
    named = [x for x in layers if x.name == layer]
    if len(named) == 1:
        return named[0]
    if named:
        raise ValueError(
            f"`layer` must be a layer, or a name that only one has; {layer!r} "
            f"is the name of {len(named)} in {model.name}."
        )
    names = [x.name for x in layers]
    raise ValueError(
        f"`layer` must be a layer of {model.name}, or the name of one; got "
        f"{layer!r}.{suggest(layer, names) if isinstance(layer, str) else ''}"
    )


def _has_map(layer):
    """Whether a layer is known to have a feature map of several pixels."""
    try:
        shape = layer.output.shape
    except (AttributeError, ValueError):
        return False  # it is called several times, or in no graph
    first = keras.config.image_data_format() == "channels_first"
    return len(shape) == 4 and (shape[2:] if first else shape[1:3]) != (1, 1)


def watch(model, layer=None):
    """A function that runs a model, without a softmax or sigmoid at its end.

    It returns logits and the layer's output, and adds its second argument to
    that output: a gradient with respect to what is added is one with respect
    to the output, in any framework.
    """
    last = output_layer(model)
    seen, ends = [], []

    def run(inputs, shift=None):
        def see(call, *args, **kwargs):
            outputs = call(*args, **kwargs)
            seen.append(outputs)
            if shift is None:
                return outputs
            return outputs + keras.ops.cast(shift, outputs.dtype)

        def end(call, *args, **kwargs):
            ends.append(last)
            return _call_without_activation(last, call, *args, **kwargs)

        seen.clear()
        ends.clear()
        with contextlib.ExitStack() as stack:
            if isinstance(last, keras.layers.Layer) and last is not model:
                stack.enter_context(intercepted(last, end))
            if layer is not None:
                stack.enter_context(intercepted(layer, see))
            scores = model(keras.ops.convert_to_tensor(inputs), training=False)
        for watched, calls in ((layer, seen), (last, ends)):
            if len(calls) > 1:
                raise ValueError(
                    f"`model` must call {watched.name} once; {model.name} "
                    f"calls it {len(calls)} times."
                )
        if layer is not None and not seen:
            raise ValueError(
                f"`layer` must be called by {model.name}; {layer.name} is not."
            )
        return keras.ops.cast(scores, "float32"), seen[0] if seen else None

    return run


def _call_without_activation(layer, call, *args, **kwargs):
    """The logits of a layer that ends in a softmax or a sigmoid."""
    if isinstance(layer, keras.layers.Softmax):
        return args[0]
    activation = getattr(layer, "activation", None)
    if activation not in (keras.activations.softmax, keras.activations.sigmoid):
        return call(*args, **kwargs)
    layer.activation = keras.activations.linear
    try:
        return call(*args, **kwargs)
    finally:
        layer.activation = activation


@contextlib.contextmanager
def intercepted(layer, around: Callable):
    """Call `around(call, ...)` where a layer would be called."""
    quantized = getattr(layer, "quantization_mode", None) is not None
    name = "quantized_call" if quantized else "call"
    call, own = getattr(layer, name), name in vars(layer)
    setattr(layer, name, lambda *args, **kwargs: around(call, *args, **kwargs))
    try:
        yield
    finally:
        if own:
            setattr(layer, name, call)
        else:
            delattr(layer, name)  # the class' own shows again


def gradient_of(function, x):
    """Gradient of a number with respect to an array, on any backend."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        gradient = tape.gradient(y, x)
        if gradient is None:
            raise ValueError(
                "`model` must be differentiable; its scores have no gradient."
            )
        return gradient.numpy()
    if backend == "jax":
        import jax

        return np.asarray(jax.grad(function)(x))
    if backend == "torch":
        import torch

        x = keras.ops.convert_to_tensor(x).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(function(x), x)
        return keras.ops.convert_to_numpy(gradient)
    raise NotImplementedError(
        f"Gradients need the backend tensorflow, jax or torch; got {backend}."
    )
