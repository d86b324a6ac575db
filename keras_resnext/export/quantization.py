"""Quantised TFLite files, and the quantisation error of each layer.

ai-edge-quantizer works on the float32 file, so that one conversion serves all
quantisations. Softmax stays in float32: in eight bits it has steps of 1/256.
"""

import dataclasses
import os
import re
from collections.abc import Sequence

import numpy as np

from keras_resnext.export import flatbuffer
from keras_resnext.quiet import silent

QUANTIZATIONS = (None, "float16", "dynamic", "int8")
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


@dataclasses.dataclass(frozen=True)
class LayerError:
    """Quantisation error of one layer, as the ratio of noise to signal (RMS).

    Args:
        name: Name of the layer.
        weights: Error of its weights.
        activations: Error of its exact outputs when they are rounded once;
            `None` where they stay in float32.
        accumulated: Error of its outputs in the quantised network, with that
            of all layers before it.

    Example:

    >>> artifact = to_tflite(model, "m.tflite", quantize="int8",
    ...                      calibration=photos)
    >>> worst = max(artifact.layer_errors, key=lambda e: e.own)
    >>> worst.name, worst.own
    """

    name: str
    weights: float
    activations: float | None
    accumulated: float

    @property
    def own(self) -> float:
        """Error of weights and outputs together, without earlier layers'."""
        return float(np.hypot(self.weights, self.activations or 0))


def quantize_tflite(
    model: bytes,
    quantize: str,
    calibration: np.ndarray | None = None,
    exclude: Sequence[str] = (),
) -> bytes:
    """Quantise a float32 TFLite model.

    Args:
        model: The file's content, with the one signature `serving_default`.
        quantize: `"float16"` for weights, `"dynamic"` for weights in eight
            bits and the inputs of convolutions in eight bits, or `"int8"`
            for weights and activations.
        calibration: With int8, images whose activations set the ranges.
        exclude: Names of layers to leave in float32.

    Returns:
        The quantised file's content.

    Raises:
        ValueError: if no layer has one of the names.
    """
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer import recipe
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.quantizer import Quantizer

    operation = qtyping.TFLOperationName
    quantizer = Quantizer(bytearray(model))
    if quantize == "float16":
        quantizer.update_quantization_recipe(
            ".*",
            operation.ALL_SUPPORTED,
            qtyping.OpQuantizationConfig(
                weight_tensor_config=qtyping.TensorQuantizationConfig(
                    num_bits=16, dtype=qtyping.TensorDataType.FLOAT
                ),
                compute_precision=qtyping.ComputePrecision.FLOAT,
                explicit_dequantize=True,
            ),
            AlgorithmName.FLOAT_CASTING,
        )
    elif quantize == "dynamic":
        quantizer.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    else:
        quantizer.load_quantization_recipe(recipe.static_wi8_ai8())
        # Logits stay in float32: ones beyond those of the calibration images
        # would be clipped.
        quantizer.add_dynamic_config(
            ".*", operation.FULLY_CONNECTED, num_bits=8
        )
        for kept in (operation.INPUT, operation.OUTPUT, operation.SOFTMAX):
            quantizer.update_quantization_recipe(
                ".*", kept, algorithm_key=AlgorithmName.NO_QUANTIZE
            )
    for output in _outputs_of(model, exclude):
        quantizer.update_quantization_recipe(
            re.escape(output),
            operation.ALL_SUPPORTED,
            algorithm_key=AlgorithmName.NO_QUANTIZE,
        )
    ranges = None
    with silent(".*preserve_all_tensors"):
        if quantize == "int8":
            samples = [{"image": image[None]} for image in calibration]
            ranges = quantizer.calibrate(
                {"serving_default": samples}, num_threads=os.cpu_count()
            )
        result = quantizer.quantize(
            ranges, enable_progress_bar=False, enable_progress_report=False
        )
    return bytes(result.quantized_model)


def layer_errors(
    model: bytes, quantized: bytes, images: np.ndarray
) -> list[LayerError]:
    """The quantisation error of each layer that has weights.

    Args:
        model: The float32 file's content.
        quantized: The content of the same model quantised.
        images: A few images, as the files take them.

    Returns:
        A `LayerError` for each layer, in order.
    """
    before, after = _Traced(model), _Traced(quantized)
    signals, own, accumulated = (dict.fromkeys(after.layers, 0) for _ in "abc")
    for image in images:
        before.run(image)
        after.run(image)
        for name, (_, output) in after.layers.items():
            signal = before.output(name)
            signals[name] += _power(signal)
            accumulated[name] += _power(signal - after.tensor(output))
            if after.is_quantized(output):
                own[name] += _power(signal - after.rounded(output, signal))
    errors = []
    for name, (weights, output) in after.layers.items():
        kernel = before.tensor(before.layers[name][0])
        noise = _power(kernel - after.tensor(weights))
        signal = signals[name] or 1.0
        errors.append(
            LayerError(
                name=name,
                weights=(noise / (_power(kernel) or 1.0)) ** 0.5,
                activations=(own[name] / signal) ** 0.5
                if after.is_quantized(output)
                else None,
                accumulated=(accumulated[name] / signal) ** 0.5,
            )
        )
    return errors


def _outputs_of(model, names):
    """Names of the output tensors of layers."""
    layers = _weighted(flatbuffer.parse(model))
    for name in names:
        if name not in layers:
            raise ValueError(
                f"`exclude` must name layers of {', '.join(layers)}; got "
                f"{name!r}."
            )
    return [layers[name][1] for name in names]


def _weighted(model):
    """Names of the weight and output tensors, by name of the layer."""
    (graph,) = model.subgraphs
    layers = {}
    for operator in graph.operators:
        if flatbuffer.operator_name(model, operator) in _WEIGHTED:
            weights, output = (
                graph.tensors[i].name.decode()
                for i in (operator.inputs[1], operator.outputs[0])
            )
            layers[_layer_of(weights, layers)] = weights, output
    return layers


def _layer_of(tensor, taken):
    """The layer in a tensor's name, without TensorFlow's scope number."""
    scope = tensor.split(";")[0].rpartition("/")[0].rpartition("/")[2]
    name = re.sub(r"_\d+$", "", scope) or tensor
    return scope if name in taken else name


class _Traced:
    """A TFLite model that keeps all its tensors."""

    def __init__(self, content):
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_litert.interpreter import OpResolverType

        self.layers = _weighted(flatbuffer.parse(content))
        with silent(".*preserve_all_tensors"):
            self._interpreter = Interpreter(
                model_content=content,
                num_threads=os.cpu_count(),
                experimental_preserve_all_tensors=True,
                # XNNPACK does not keep the tensors inside fused operators.
                experimental_op_resolver_type=(
                    OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
                ),
            )
        self._serve = self._interpreter.get_signature_runner("serving_default")
        image = self._serve.get_input_details()["image"]
        self._dtype = image["dtype"]
        self._details = {
            detail["name"]: detail
            for detail in self._interpreter.get_tensor_details()
        }

    def run(self, image):
        """Compute all tensors for an image."""
        self._serve(image=image[None].astype(self._dtype))

    def output(self, layer):
        """Real values of a layer's output."""
        return self.tensor(self.layers[layer][1])

    def is_quantized(self, tensor):
        """Whether a tensor has a scale."""
        return bool(self._scales(tensor)[0].size)

    def _scales(self, tensor):
        """Scales, zero points, and the axis along which they differ."""
        parameters = self._details[tensor]["quantization_parameters"]
        names = ("scales", "zero_points", "quantized_dimension")
        return tuple(parameters[name] for name in names)

    def tensor(self, tensor):
        """A tensor's real values."""
        values = self._interpreter.get_tensor(self._details[tensor]["index"])
        values = values.astype("float32")
        scales, zeros, axis = self._scales(tensor)
        if not scales.size:
            return values
        shape = [1] * values.ndim
        shape[axis] = -1 if len(scales) > 1 else 1
        return (values - zeros.reshape(shape)) * scales.reshape(shape)

    def rounded(self, tensor, values):
        """Other values, rounded as this tensor's are."""
        (scale,), (zero,), _ = self._scales(tensor)
        steps = np.clip(np.round(values / scale) + zero, -128, 127)
        return (steps - zero) * scale


def _power(values):
    """Mean square."""
    return float(np.square(values, dtype="float64").mean())
