"""Private names of other libraries, each with the reason it is needed.

Private names of Keras, TensorFlow and tf2onnx are read here, but for those of
optimizers, which a subclass has to use (`OPTIMIZER_NAMES`).
`tests/test_private.py` tries every one, so that a new version without it is
noticed by name.
"""

import contextlib
from collections.abc import Iterator

# Keras documents no other way to update a variable in one kernel
# (`training/optimizer.py`).
OPTIMIZER_NAMES = (
    "_get_variable_index",
    "_use_weight_decay",
    "_apply_weight_decay",
    "_momentums",  # Adam's
    "_velocities",
)
# Where Keras lists the variables that are not allocated yet.
UNALLOCATED = "uninitialized_variables"


def keras_history(tensor):
    """The `(operation, node_index, tensor_index)` that made a Keras tensor.

    Keras has no public way from a tensor back to the layer.
    """
    return tensor._keras_history


def read_tensors(tensor):
    """The Keras tensors that the operation behind a Keras tensor read.

    Keras has no public way from a tensor back to those it was made from.
    """
    operation, node_index, _ = keras_history(tensor)
    return operation._inbound_nodes[node_index].input_tensors


@contextlib.contextmanager
def unallocated_variables() -> Iterator[None]:
    """Let models that are built in the context take no memory.

    They cannot be used. Keras has no public way to forget their variables, and
    would allocate them when it next leaves a `StatelessScope`.
    """
    import keras
    from keras.src.backend.common import global_state

    before = list(global_state.get_global_attribute(UNALLOCATED) or ())
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        global_state.set_global_attribute(UNALLOCATED, before)


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


def onednn_is_on():
    """Whether TensorFlow decided, when it was imported, to use oneDNN.

    Its public configuration does not say.
    """
    from tensorflow.python.util import _pywrap_util_port

    return _pywrap_util_port.IsMklEnabled()
