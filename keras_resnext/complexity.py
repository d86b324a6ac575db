"""Parameters, multiply-adds and activations of a model, per layer."""

import dataclasses
import math

import keras

from keras_resnext.fake_quantization import FakeQuantization
from keras_resnext.inspection import check_graph


@dataclasses.dataclass(frozen=True)
class Complexity:
    """What a model, or one of its layers, costs for one image.

    Args:
        params: Number of weights without what is only observed: the moving
            statistics of batch norms and the ranges of activations. Frozen
            layers count.
        multiply_adds: Multiply-adds of convolutions and dense layers; the
            "FLOPs" of the paper and of torchvision.
        activations: Number of values in the outputs of convolutions
            (Radosavovic et al., arXiv 2003.13678), a measure of memory
            traffic.
        by_layer: A `Complexity` for each layer with weights, by name, in the
            model's order; layers of nested models are named
            `"<model>/<layer>"`.

    Example:

    >>> cost = count_complexity(keras_resnext.ResNeXt50(weights=None))
    >>> cost
    Complexity(params=25028904, multiply_adds=4230479872, activations=14400512)
    >>> cost.by_layer["conv1_conv"].multiply_adds
    118013952
    """

    params: int
    multiply_adds: int
    activations: int
    by_layer: dict[str, "Complexity"] = dataclasses.field(
        default_factory=dict, repr=False
    )


def count_complexity(model: keras.Model) -> Complexity:
    """Count a model's parameters, multiply-adds and activations.

    Args:
        model: A functional or sequential `keras.Model` with inputs of fixed
            size.

    Returns:
        A `Complexity` for a batch of one.

    Raises:
        ValueError: if the size of a layer's output is not fixed, a layer is
            used more than once or is of an unknown kind, or the model is
            neither functional nor sequential.

    Example:

    >>> count_complexity(keras_resnext.ResNeXt50(weights=None)).multiply_adds
    4230479872

    Reference:
        arXiv 1611.05431, table 1 (4.2 billion for ResNeXt-50).
    """
    check_graph(model)
    graph = keras.Model(model.inputs, model.outputs)  # whatever its class
    for entry in graph.get_config()["layers"]:
        if len(entry.get("inbound_nodes", [])) > 1:
            raise ValueError(
                "`model` must use each layer once; "
                f"{entry['config']['name']} is used "
                f"{len(entry['inbound_nodes'])} times."
            )
    by_layer = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            inside = count_complexity(layer).by_layer
            by_layer |= {f"{layer.name}/{n}": c for n, c in inside.items()}
        elif layer.weights:
            by_layer[layer.name] = _count_layer(layer)
    return total(by_layer)


def total(by_layer: dict[str, Complexity]) -> Complexity:
    """Add up layers.

    Args:
        by_layer: A `Complexity` for each layer.

    Returns:
        A `Complexity` with this `by_layer`.
    """
    counts = by_layer.values()
    return Complexity(
        params=sum(c.params for c in counts),
        multiply_adds=sum(c.multiply_adds for c in counts),
        activations=sum(c.activations for c in counts),
        by_layer=by_layer,
    )


# Each weight of the kernel is used once at each position of the output.
_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)
# A depthwise convolution, and a pointwise one at each place of its output.
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
# Elementwise operations are not counted, as usual.
_ELEMENTWISE = (
    FakeQuantization,
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Normalization,
    keras.layers.PReLU,
)
_STATISTICS = {
    *("moving_mean", "moving_variance", "mean", "variance", "count"),
    *("minimum", "maximum", "steps"),
}


def _count_layer(layer):
    """The cost of one layer, or an error if it is of an unknown kind."""
    params = sum(
        math.prod(weight.shape)
        for weight in layer.weights
        if weight.name not in _STATISTICS
    )
    if isinstance(layer, _ELEMENTWISE):
        return Complexity(params, 0, 0)
    separable = isinstance(layer, _SEPARABLE)
    convolution = separable or isinstance(layer, _CONVOLUTIONS)
    if not convolution and not isinstance(layer, keras.layers.Dense):
        raise ValueError(
            "`model` must have convolutions, dense layers and batch norms "
            f"only; {layer.name} is a {type(layer).__name__}."
        )
    outputs = layer.output.shape[1:]
    if None in outputs:
        raise ValueError(
            "`model` must have inputs of fixed size (build it with "
            f"`input_shape`); {layer.name} puts out {layer.output.shape}."
        )
    axis = 0 if getattr(layer, "data_format", "") == "channels_first" else -1
    positions = math.prod(outputs) // outputs[axis]
    channels = outputs[axis]
    if separable:
        kernels = [layer.depthwise_kernel, layer.pointwise_kernel]
        channels += layer.pointwise_kernel.shape[-2]  # depthwise outputs
    else:
        kernels = [layer.kernel]
    return Complexity(
        params=params,
        multiply_adds=positions * sum(math.prod(k.shape) for k in kernels),
        activations=positions * channels if convolution else 0,
    )
