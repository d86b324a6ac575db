"""The exported graph: pixels in, preprocessing, the network, named outputs."""

import contextlib
import functools
import math

import keras
import numpy as np
import tensorflow as tf

from keras_resnext.imagenet import MEAN
from keras_resnext.imagenet import STD
from keras_resnext.inspection import image_shape
from keras_resnext.inspection import is_quantization_aware
from keras_resnext.inspection import output_names
from keras_resnext.rewrite.folding import fold_batch_norm
from keras_resnext.rewrite.quantization import for_export
from keras_resnext.rewrite.stock import from_stock_layers
from keras_resnext.transforms import EvalTransform

IMAGE = "image"  # the input's name in every format


class ExportGraph:
    """A model for inference behind its preprocessing, as TensorFlow functions.

    Batch norms are folded into convolutions, and Keras' grouped convolutions,
    whose XLA functions no converter supports, are replaced by this package's.
    Models for which `fold_batch_norm` cannot do that are exported as they are.

    Args:
        model: A `keras.Model` with one image input of fixed size.
        preprocessing: `"imagenet"`, an `EvalTransform` to normalise as it
            does, a Keras layer or model from pixels to the model's input, or
            `None` for nothing.

    Example:

    >>> graph = ExportGraph(keras_resnext.ResNeXt50(weights=None), "imagenet")
    >>> graph.function(batch=1)(image)["probabilities"].shape
    TensorShape([1, 1000])
    """

    def __init__(self, model, preprocessing):
        self._preprocess = _preprocessing_function(preprocessing)
        self.shape = image_shape(model)
        if isinstance(self._preprocess, keras.Layer):
            # Its variables must exist before a graph is traced.
            self._preprocess(np.zeros((1, *self.shape), "float32"))
        self.names = output_names(model)
        if is_quantization_aware(model):
            model = for_export(model)
        with contextlib.suppress(ValueError):
            model = from_stock_layers(model)
            model = fold_batch_norm(model)
        self._model = model

    @property
    def variables(self):
        """All `keras.Variable`s that the functions read."""
        layers = [self._model]
        if isinstance(self._preprocess, keras.Layer):
            layers.append(self._preprocess)
        return [v for layer in layers for v in layer.variables]

    @property
    def bytes(self):
        """Size of all weights in float32."""
        return 4 * sum(math.prod(v.shape) for v in self.variables)

    def spec(self, batch, dtype="float32"):
        """`tf.TensorSpec` of images, `(batch, height, width, channels)`."""
        return tf.TensorSpec((batch, *self.shape), dtype, IMAGE)

    def __call__(self, images):
        """Outputs by name for pixels of any numeric dtype, in a graph."""
        return self._named(self._model(self._pixels(images), training=False))

    def function(self, batch, dtype="float32"):
        """A `tf.function` of images that reads the variables."""
        return tf.function(
            self, input_signature=[self.spec(batch, dtype)], autograph=False
        )

    def frozen(self, batch):
        """A `tf.GraphDef` of float32 images that contains the weights.

        Args:
            batch: Batch size, or `None` for any.

        Returns:
            The graph, the name of its input tensor, and a dict from each
            output's name to the name of its tensor.
        """
        # As arrays: TensorFlow makes a captured tensor an input of the graph.
        values = [
            [keras.ops.convert_to_numpy(v) for v in variables]
            for variables in (
                self._model.trainable_variables,
                self._model.non_trainable_variables,
            )
        ]

        @tf.function(autograph=False, input_signature=[self.spec(batch)])
        def serve(images):
            trainable, others = tf.nest.map_structure(tf.constant, values)
            outputs, _ = self._model.stateless_call(
                trainable, others, self._pixels(images), training=False
            )
            return self._named(outputs)

        concrete = serve.get_concrete_function()
        definition = concrete.graph.as_graph_def()
        _freeze_captures(concrete, definition)
        outputs = {
            name: tensor.name
            for name, tensor in concrete.structured_outputs.items()
        }
        return definition, concrete.inputs[0].name, outputs

    def _pixels(self, images):
        with tf.name_scope("preprocessing"):
            return self._preprocess(tf.cast(images, tf.float32))

    def _named(self, outputs):
        return named_outputs(self.names, outputs)


def named_outputs(names, outputs):
    """A model's outputs, a tensor or a list or dict of some, as a dict."""
    if isinstance(outputs, dict):
        return {name: outputs[name] for name in names}
    return dict(zip(names, tf.nest.flatten(outputs), strict=True))


def _preprocessing_function(preprocessing):
    """The function of pixels that goes into the graph."""
    if preprocessing is None:
        return lambda images: images
    if isinstance(preprocessing, keras.Layer):
        return preprocessing
    if isinstance(preprocessing, EvalTransform):
        mean, std = preprocessing.mean, preprocessing.std
    else:
        mean, std = MEAN, STD
    return functools.partial(_normalize, mean=mean, std=std)


def _normalize(images, *, mean, std):
    """A batch of pixels normalised, in a form that converters optimise.

    tf2onnx transposes constants of four dimensions together with the images,
    and multiplications but not divisions.
    """
    mean, std = (
        255 * np.array(values, "float32").reshape(1, 1, 1, 3)
        for values in (mean, std)
    )
    return (images - mean) * (1 / std)


def _freeze_captures(concrete, definition):
    """Make constants of what a preprocessing layer reads: small arrays."""
    captures = {
        inner.op.name: outer for outer, inner in concrete.graph.captures
    }
    nodes = {node.name: node for node in definition.node}
    for node in list(definition.node):
        if node.op == "ReadVariableOp" and node.input[0] in captures:
            handle = captures[node.input[0]]
            value = tf.raw_ops.ReadVariableOp(
                resource=handle, dtype=node.attr["dtype"].type
            )
            _make_constant(node, value)
    for name, value in captures.items():
        if value.dtype == tf.resource:
            definition.node.remove(nodes[name])
        else:
            _make_constant(nodes[name], value)


def _make_constant(node, value):
    name = node.name
    node.Clear()
    node.name, node.op = name, "Const"
    node.attr["dtype"].type = value.dtype.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value.numpy()))
