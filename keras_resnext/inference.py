"""The fastest way to run a model where TensorFlow is."""

from collections.abc import Callable

import keras

from keras_resnext.extras import require_tensorflow


def inference_function(model: keras.Model) -> Callable:
    """A model as a function of images, its weights built in as constants.

    For few images at a time on a CPU: oneDNN brings kernels that cannot
    change into its own order once instead of at every call. For one image
    that was seen to save a seventh of the time, under mixed bfloat16 two
    fifths; for eight in float32 nothing (`benchmarks/NOTES.md`). Give it what
    `fold_batch_norm` returns. Tracing takes seconds, and memory for several
    copies of the weights.

    Each new shape of images is traced once. Weights that the model gets later
    do not count.

    Args:
        model: A `keras.Model` with one input.

    Returns:
        A `tf.function` from images, an array or tensor `(batch, height,
        width, channels)`, to the model's outputs in inference. It holds a
        copy of the weights of its own.

    Raises:
        ValueError: if `model` is not a built `keras.Model`.
        ImportError: if Keras runs on another backend than TensorFlow.

    Example:

    >>> model = keras_resnext.ResNeXt50(weights=None)
    >>> infer = inference_function(keras_resnext.fold_batch_norm(model))
    >>> infer(keras.random.normal((1, 224, 224, 3))).shape
    TensorShape([1, 1000])
    """
    require_tensorflow("`inference_function`")
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(f"`model` must be a built keras.Model; got {model!r}.")

    import tensorflow as tf

    # As NumPy arrays, because TensorFlow makes a captured tensor an input of
    # the graph, and only arrays constants in it.
    trainable = [_array(v) for v in model.trainable_variables]
    others = [_array(v) for v in model.non_trainable_variables]

    @tf.function(autograph=False)
    def infer(images):
        outputs, _ = model.stateless_call(
            [tf.constant(array) for array in trainable],
            [tf.constant(array) for array in others],
            images,
            training=False,
        )
        return outputs

    return infer


def _array(variable):
    return keras.ops.convert_to_numpy(variable)
