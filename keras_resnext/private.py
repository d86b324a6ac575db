"""Private names of other libraries, each with the reason it is needed.

Nothing else in this package reads a private name of Keras, TensorFlow or
tf2onnx. `tests/test_private.py` tries every one, so that a new version without
it is noticed by name.
"""


def keras_history(tensor):
    """The `(operation, node_index, tensor_index)` that made a Keras tensor.

    Keras has no public way from a tensor back to the layer.
    """
    return tensor._keras_history


def onnx_passes():
    """tf2onnx's graph optimisers by name.

    Its public loop repeats all of them until none changes anything, and keeps
    a copy of the weights each time: 9 GB for ResNeXt-50 instead of 2.
    """
    from tf2onnx import optimizer

    return optimizer._get_optimizers()


def use_buffer_offset(converter):
    """Let a `tf.lite.TFLiteConverter` write weights behind the FlatBuffer.

    Otherwise TensorFlow takes a second to write all of them again.
    """
    converter._experimental_use_buffer_offset = True
