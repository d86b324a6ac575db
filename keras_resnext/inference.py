"""The fastest way to run a model in TensorFlow."""

from collections.abc import Callable
from typing import Any

import keras

from keras_resnext.extras import require_tensorflow


def inference_function(model: keras.Model) -> Callable[[Any], Any]:
    """A model as a function of images, with its weights as constants.

    For small batches on a CPU: oneDNN converts constant kernels to its own
    layout once instead of in every call. On a CPU with AVX-512 that saves 14 %
    at batch 1 (40 % in mixed bfloat16), nothing at batch 8 in float32
    (`benchmarks/NOTES.md`).
    Pass it the result of `fold_batch_norm`. The first call traces it, which
    takes seconds and the memory of several copies of the weights. So does the
    first call with another batch size, whose graph serves all others, and the
    first with another height or width. Later changes of the model's weights
    have no effect.

    Args:
        model: A `keras.Model` with one input.

    Returns:
        A `tf.function` from images, an array or tensor `(batch, height,
        width, channels)`, to the model's outputs in inference.

    Raises:
        ValueError: if `model` is not a built `keras.Model` with one input.
        ImportError: if Keras runs on another backend than TensorFlow.

    Example:

    >>> model = keras_resnext.ResNeXt50(weights=None)
    >>> infer = inference_function(keras_resnext.fold_batch_norm(model))
    >>> infer(keras.random.normal((1, 224, 224, 3))).shape
    TensorShape([1, 1000])
    """
    require_tensorflow("`inference_function`")
    inputs = getattr(model, "inputs", None) or ()
    if not isinstance(model, keras.Model) or len(inputs) != 1:
        raise ValueError(
            "`model` must be a built keras.Model with one input; got "
            f"{model!r}."
        )

    import tensorflow as tf

    # NumPy arrays become constants of the graph; captured tensors would
    # become inputs.
    trainable = [_array(v) for v in model.trainable_variables]
    others = [_array(v) for v in model.non_trainable_variables]

    # A graph for each shape would hold the weights as often.
    @tf.function(autograph=False, reduce_retracing=True)
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
