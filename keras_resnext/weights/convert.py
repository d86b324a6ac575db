"""Convert weights between the names and layouts of other libraries."""

import re
from collections.abc import Iterable
from collections.abc import Mapping

import numpy as np

from keras_resnext.names import CLASSIFIER
from keras_resnext.names import DEFAULT_FILTERS
from keras_resnext.names import STEM
from keras_resnext.names import LayerName
from keras_resnext.names import NetworkName
from keras_resnext.names import block_name
from keras_resnext.names import block_numbers
from keras_resnext.names import block_of

# Torch module -> Keras layer.
_OUTSIDE_BLOCKS = {"conv1": STEM, "bn1": "conv1_bn", "fc": CLASSIFIER}
# The same inside blocks.
_PARTS = {
    "downsample.0": "0_conv",
    "downsample.1": "0_bn",
    **{
        f"{kind}{i}": f"{i}_{kind}"
        for kind in ("conv", "bn")
        for i in (1, 2, 3)
    },
}
_BLOCK = re.compile(r"layer(?P<stage>\d+)\.(?P<block>\d+)\.(?P<part>.+)")
# In the order in which Keras lists a layer's weights.
_VALUES = ("weight", "bias", "running_mean", "running_var")
# Torch's axes of a kernel, in Keras' order.
_KERAS_AXES = (2, 3, 1, 0)


def from_torch(
    tensors: Mapping[str, np.ndarray],
) -> dict[str, list[np.ndarray]]:
    """A state dict of torchvision's `ResNet`, or timm's, as Keras weights.

    Args:
        tensors: Name to array, such as `"layer1.0.conv2.weight"` to
            `(filters, channels_in / groups, height, width)`. Counters
            (`num_batches_tracked`) are left out.

    Returns:
        Layer name to the arrays that its `set_weights` takes, of a grouped
        model: kernels `(height, width, channels_in / groups, filters)` and
        biases, or batch norm's values.

    Raises:
        ValueError: if a name is not one of `ResNet`'s.

    Example:

    >>> weights = from_torch(dict(network.state_dict()))
    >>> for name, arrays in weights.items():
    ...     model.get_layer(name).set_weights(arrays)
    """
    return {
        layer: [
            _reordered(np.asarray(tensors[name]), "keras") for name in names
        ]
        for layer, names in torch_layers(tensors).items()
    }


def torch_layers(names: Iterable[str]) -> dict[str, list[str]]:
    """The names in a state dict by Keras layer.

    Args:
        names: Names as `from_torch` takes them.

    Returns:
        Layer name to the names of its tensors, in the order in which Keras
        lists a layer's weights.

    Raises:
        ValueError: if a name is not one of `ResNet`'s.

    Example:

    >>> torch_layers(["fc.bias", "fc.weight"])
    {'predictions': ['fc.weight', 'fc.bias']}
    """
    layers = {}
    for name in names:
        module, _, value = name.rpartition(".")
        if value == "num_batches_tracked":
            continue
        if value not in _VALUES:
            raise ValueError(f"`tensors` must be a ResNet's; got {name!r}.")
        layers.setdefault(_keras_layer(module), {})[value] = name
    return {
        layer: [values[v] for v in _VALUES if v in values]
        for layer, values in layers.items()
    }


def keras_shape(shape: Iterable[int]) -> tuple[int, ...]:
    """The shape that `from_torch` gives to a tensor.

    Args:
        shape: The tensor's shape.

    Returns:
        A tuple of as many numbers.

    Example:

    >>> keras_shape((128, 4, 3, 3))
    (3, 3, 4, 128)
    """
    shape = tuple(shape)
    axes = _KERAS_AXES if len(shape) == 4 else reversed(range(len(shape)))
    return tuple(shape[axis] for axis in axes)


def to_torch(
    weights: Mapping[str, Iterable[np.ndarray]],
) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`.

    Args:
        weights: Layer name to arrays, as `layer.get_weights()` lists them,
            for the layers of a grouped model that have weights.

    Returns:
        Name to array, in torchvision's names and layouts.

    Raises:
        ValueError: if a name is not one of a grouped model's.

    Example:

    >>> tensors = to_torch({layer.name: layer.get_weights()
    ...                     for layer in model.layers if layer.weights})
    """
    return {
        f"{_torch_module(layer)}.{value}": _reordered(
            np.asarray(array), "torch"
        )
        for layer, arrays in weights.items()
        for value, array in zip(_VALUES, arrays, strict=False)
    }


def from_keras_applications(
    weights: Mapping[str, list[np.ndarray]],
) -> dict[str, list[np.ndarray]]:
    """Weights in the layout of keras-applications 1.0.8 and its successors.

    They have no grouped convolutions: a depthwise one computes, for channel
    g * c + i of the input, c outputs q, and what follows sums over i within
    each group g. So depthwise kernel D and grouped kernel K are related by

        K[:, :, i, g * c + q] = D[:, :, g * c + i, q].

    Their batch norms have an epsilon of 1.001e-5, ours 1e-5; the difference
    is added to the moving variance.

    Args:
        weights: Layer name to arrays, in the file's order.

    Returns:
        Layer name to arrays, as `from_torch` does.

    Example:

    >>> kernel = {"conv2_block1_2_conv": [np.zeros((3, 3, 128, 4))]}
    >>> from_keras_applications(kernel)["conv2_block1_2_conv"][0].shape
    (3, 3, 4, 128)
    """
    converted = {}
    for layer, arrays in weights.items():
        if layer.endswith("_2_gconv"):
            continue  # a constant sum over channels in some files
        if layer.endswith("_2_conv"):
            arrays = [_from_depthwise(kernel) for kernel in arrays]
        elif layer.endswith("_bn"):
            gamma, beta, mean, variance = arrays
            arrays = [gamma, beta, mean, variance + np.float32(1e-8)]
        converted[CLASSIFIER if layer == "probs" else layer] = arrays
    return converted


def from_keras_applications_shapes(
    shapes: Mapping[str, list[tuple[int, ...]]],
) -> dict[str, list[tuple[int, ...]]]:
    """The shapes that `from_keras_applications` would give.

    Args:
        shapes: Layer name to shapes, in the file's order.

    Returns:
        Layer name to shapes of a grouped model.

    Example:

    >>> shapes = {"conv2_block1_2_conv": [(3, 3, 128, 4)]}
    >>> from_keras_applications_shapes(shapes)
    {'conv2_block1_2_conv': [(3, 3, 4, 128)]}
    """
    return {
        CLASSIFIER if layer == "probs" else layer: [
            (*shape[:2], *reversed(shape[2:]))
            if layer.endswith("_2_conv")
            else shape
            for shape in theirs
        ]
        for layer, theirs in shapes.items()
        if not layer.endswith("_2_gconv")
    }


def adapt_stem(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapt the first convolution to images that are not RGB, as timm does.

    Args:
        kernel: `(height, width, 3, filters)`.
        channels: Channels of the images.

    Returns:
        `(height, width, channels, filters)`: the sum over RGB for one
        channel, else RGB repeated and scaled by 3 / `channels`, to keep the
        scale of the outputs.

    Example:

    >>> adapt_stem(np.ones((7, 7, 3, 64)), 1)[0, 0, 0, 0]
    np.float64(3.0)
    """
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    times = -(-channels // kernel.shape[2])
    repeated = np.tile(kernel, (1, 1, times, 1))[:, :, :channels]
    return repeated * kernel.dtype.type(kernel.shape[2] / channels)


def infer_architecture(shapes: Mapping[str, list[tuple[int, ...]]]) -> str:
    """The network that a grouped model's weights belong to.

    Args:
        shapes: Layer name to shapes.

    Returns:
        The paper's notation, such as `"resnext50_32x4d"`, or `"no network
        with bottleneck blocks"`.

    Example:

    >>> infer_architecture({"conv2_block1_2_conv": [(3, 3, 4, 128)]})
    'resnext5_32x4d'
    """
    blocks = set(map(block_of, shapes)) - {None}
    first = (shapes.get("conv2_block1_2_conv") or [()])[0]
    if len(first) != 4 or 0 in first:
        return "no network with bottleneck blocks"
    _, _, base_width, width = first
    last = (shapes.get("conv2_block1_3_conv") or [()])[0]
    filters = last[-1] if last else DEFAULT_FILTERS
    depth = 3 * len(blocks) + 2
    return str(NetworkName(depth, width // base_width, base_width, filters))


def _from_depthwise(kernel):
    """See `from_keras_applications`; always 32 groups there."""
    height, width, channels, c = kernel.shape
    groups = channels // c
    return (
        kernel.reshape(height, width, groups, c, c)
        .transpose(0, 1, 3, 2, 4)
        .reshape(height, width, c, channels)
    )


def _keras_layer(module):
    """`layer1.0.conv2` -> `conv2_block1_2_conv`."""
    if module in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[module]
    match = _BLOCK.fullmatch(module)
    if not match or match["part"] not in _PARTS:
        raise ValueError(f"`tensors` must be a ResNet's; got {module!r}.")
    block = block_name(int(match["stage"]) + 1, int(match["block"]) + 1)
    return str(LayerName(block, _PARTS[match["part"]]))


def _torch_module(layer):
    """`conv2_block1_2_conv` -> `layer1.0.conv2`."""
    for module, name in _OUTSIDE_BLOCKS.items():
        if layer == name:
            return module
    for part, ours in _PARTS.items():
        if block_of(layer) and layer == f"{block_of(layer)}_{ours}":
            stage, block = block_numbers(layer)
            return f"layer{stage - 1}.{block - 1}.{part}"
    raise ValueError(f"`weights` must be a grouped model's; got {layer!r}.")


def _reordered(array, layout):
    """Torch's axes begin with outputs and inputs, Keras' end with the two."""
    if array.ndim == 4:
        axes = {"keras": _KERAS_AXES, "torch": (3, 2, 0, 1)}
        return array.transpose(axes[layout])
    return array.T
