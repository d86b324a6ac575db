"""Eight bits in ONNX files: pairs of QuantizeLinear and DequantizeLinear.

Runtimes that know them compute in integers between a pair and the next; others
compute the same rounded numbers in floating point.
"""

import os

import numpy as np

from keras_resnext.export.graph import IMAGE
from keras_resnext.fake_quantization import SMALLEST_STEP
from keras_resnext.quiet import quiet

# What eight bits are enough for. Softmax is not among them.
_OPERATORS = [
    *("Conv", "MatMul", "Gemm", "Add", "Relu"),
    *("MaxPool", "GlobalAveragePool", "Concat"),
]
# What moves numbers and computes none: the steps of its input stay.
_EXACT = (
    *("MaxPool", "GlobalMaxPool", "Pad", "Transpose"),
    *("Reshape", "Flatten", "Squeeze", "Identity"),
)
# Of what a 32-bit bias holds: rounding must not go beyond.
_LARGEST_BIAS = 2**30


def calibrate(
    path: str | os.PathLike[str], images: np.ndarray, data_format: str
) -> None:
    """Quantise the weights and activations of a file, in place.

    Args:
        path: The float32 file.
        images: Those whose activations set the ranges, `(images, height,
            width, channels)`.
        data_format: Of the file, `"NHWC"` or `"NCHW"`.
    """
    from onnxruntime import quantization

    if data_format == "NCHW":
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self._images = iter(images)

        def get_next(self):
            image = next(self._images, None)
            return None if image is None else {IMAGE: image[None]}

    with quiet("root"):
        quantization.quantize_static(
            str(path),
            str(path),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=_OPERATORS,
            per_channel=True,
            # Signed activations are fused badly: twice the time.
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            # x86 without VNNI adds two products of unsigned and signed bytes
            # in 16 bits, and clips sums above 2**15. With weights of 7 bits
            # they stay below, 2 * 255 * 64 < 2**15, so that a file verified
            # here computes the same elsewhere. Unsigned weights are as safe
            # and a quarter slower.
            reduce_range=True,
        )


def quantize_weights(proto, *, per_channel: bool) -> None:
    """Round the weights of a graph whose activations are rounded already.

    They are unsigned bytes around 128, with the steps of
    `fake_quantize_weights`: all 255 of them, and safe where `calibrate` takes
    seven bits. Biases become 32-bit integers.

    Args:
        proto: An `onnx.ModelProto` with pairs around what is computed in
            eight bits, changed in place.
        per_channel: Whether each filter has a step of its own.
    """
    graph = _Graph(proto)
    for node in [n for n in proto.graph.node if n.op_type in _EXACT]:
        graph.keep_steps(node)
    for node in list(proto.graph.node):
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            graph.quantize(node, per_channel)
    drop_unused(proto.graph)


def drop_unused(graph) -> None:
    """Remove the arrays of an `onnx.GraphProto` that no operator reads."""
    used = {name for node in graph.node for name in node.input}
    for tensor in list(graph.initializer):
        if tensor.name not in used:
            graph.initializer.remove(tensor)


class _Graph:
    """A graph that gets more pairs."""

    def __init__(self, proto):
        self._graph = proto.graph
        self._arrays = {x.name: x for x in self._graph.initializer}
        self._makers = {
            name: node for node in self._graph.node for name in node.output
        }

    def keep_steps(self, node):
        """Round what an exact operator puts out as its input is."""
        pair = self._pair(node.input[0])
        if pair is None or self._is_rounded_next(node.output[0]):
            return
        import onnx

        _, scale, zero = pair.input
        name = node.output[0]
        exact, rounded = f"{name}_exact", f"{name}_quantized"
        node.output[0] = exact
        position = list(self._graph.node).index(node) + 1
        for kind, source, target in (
            ("DequantizeLinear", rounded, name),
            ("QuantizeLinear", exact, rounded),
        ):
            new = onnx.helper.make_node(
                kind, [source, scale, zero], [target], name=f"{target}_{kind}"
            )
            self._graph.node.insert(position, new)
            self._makers[target] = new
        self._makers[exact] = node

    def quantize(self, node, per_channel):
        """Round the weights and the bias of an operator."""
        pair = self._pair(node.input[0])
        if pair is None or node.input[1] not in self._arrays:
            return
        kernel = self._array(node.input[1])
        axis = _channel_axis(node)
        others = tuple(i for i in range(kernel.ndim) if i != axis)
        limits = np.abs(kernel).max(axis=others if per_channel else None)
        steps = np.maximum(limits / np.float32(127), np.float32(SMALLEST_STEP))
        bias = None
        if len(node.input) > 2 and node.input[2] in self._arrays:
            bias = self._array(node.input[2]).astype("float64")
            step = float(self._array(pair.input[1]))
            # A filter of tiny weights takes a larger step: they become zero.
            least = np.abs(bias) / (step * _LARGEST_BIAS)
            least = least if per_channel else least.max()
            steps = np.maximum(steps, least.astype("float32"))
        shape = [1] * kernel.ndim
        shape[axis] = -1 if per_channel else 1
        rounded = np.rint(kernel / steps.reshape(shape)) + 128
        self._replace(
            node, 1, np.clip(rounded, 1, 255).astype("uint8"), steps, 128, axis
        )
        if bias is not None:
            scale = np.float32(step) * steps
            bias = np.rint(bias / scale).astype("int32")
            self._replace(node, 2, bias, scale, 0, 0)

    def _replace(self, node, index, values, steps, zero, axis):
        """Read an input from integers and their steps."""
        import onnx

        name = f"{node.input[index]}_of_{node.output[0]}"
        arrays = {
            f"{name}_quantized": values,
            f"{name}_scale": steps.astype("float32"),
            f"{name}_zero_point": np.full(steps.shape, zero, values.dtype),
        }
        for key, array in arrays.items():
            tensor = onnx.numpy_helper.from_array(array, key)
            self._graph.initializer.append(tensor)
        new = onnx.helper.make_node(
            "DequantizeLinear", [*arrays], [name], name=name, axis=axis
        )
        position = list(self._graph.node).index(node)
        self._graph.node.insert(position, new)
        node.input[index] = name

    def _array(self, name):
        import onnx

        return onnx.numpy_helper.to_array(self._arrays[name])

    def _pair(self, name):
        """The DequantizeLinear that makes a tensor, or `None`."""
        maker = self._makers.get(name)
        return maker if maker and maker.op_type == "DequantizeLinear" else None

    def _is_rounded_next(self, name):
        readers = [n for n in self._graph.node if name in n.input]
        return bool(readers) and all(
            n.op_type == "QuantizeLinear" for n in readers
        )


def _channel_axis(node):
    """Along which a weight's filters lie."""
    if node.op_type == "Conv":
        return 0
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if transposed else 1
