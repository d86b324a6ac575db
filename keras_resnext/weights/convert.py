"""Names and layouts in which weights are published; arrays in, arrays out."""

import collections
import re
from collections.abc import Iterable
from collections.abc import Mapping

import numpy as np

_STEM = {"conv1": "conv1_conv", "bn1": "conv1_bn", "fc": "predictions"}
_BLOCK = re.compile(
    r"layer(?P<stage>\d+)\.(?P<block>\d+)\."
    r"(?:(?P<kind>conv|bn)(?P<part>[123])|downsample\.(?P<shortcut>[01]))"
)
_IN_BLOCK = re.compile(r"conv\d+_block\d+_")
# Layers of paths in the explicit forms.
_PATH = re.compile(r"_path(\d+)$")
# In the order in which Keras lists a layer's weights.
_VALUES = ("weight", "bias", "running_mean", "running_var")


def from_torch(
    tensors: Mapping[str, np.ndarray],
) -> dict[str, list[np.ndarray]]:
    """A state dict of torchvision's `ResNet`, or timm's, as Keras weights.

    Args:
        tensors: Name to array, such as `"layer1.0.conv2.weight"` to
            `(filters, channels_in / groups, height, width)`. Counters
            (`num_batches_tracked`) are left out.

    Returns:
        For each layer of a grouped model that has weights, by its name, what
        its `set_weights` takes: kernels `(height, width, channels_in /
        groups, filters)`, then biases or batch norm's values.

    Raises:
        ValueError: if a name is not one that `ResNet` uses; it says which.

    Example:

    >>> weights = from_torch(dict(network.state_dict()))
    >>> for name, arrays in weights.items():
    ...     model.get_layer(name).set_weights(arrays)
    """
    weights = {}
    for name, array in tensors.items():
        module, _, value = name.rpartition(".")
        if value == "num_batches_tracked":
            continue
        if value not in _VALUES:
            raise ValueError(f"`tensors` must be a ResNet's; got {name!r}.")
        layer = _keras_layer(module)
        weights.setdefault(layer, {})[value] = _reordered(
            np.asarray(array), "keras"
        )
    return {
        layer: [values[v] for v in _VALUES if v in values]
        for layer, values in weights.items()
    }


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
        ValueError: if a name is not one that a grouped model with bottleneck
            blocks uses; it says which.

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

    Their batch norms add 1.001e-5 to the variance, ours 1e-5; the difference
    goes into the moving variance.

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
        converted["predictions" if layer == "probs" else layer] = arrays
    return converted


def split_paths(
    weights: Mapping[str, list[np.ndarray]], layers: Iterable[str]
) -> dict[str, list[np.ndarray]]:
    """A grouped model's weights, cut for the explicit forms.

    Args:
        weights: Layer name to arrays of a grouped model.
        layers: Names of the layers that are wanted, in any form: those of
            paths end in `_path01` and so on.

    Returns:
        Name to arrays, for those of `layers` that `weights` has.

    Example:

    >>> split_paths({"a_2_bn": [np.arange(4)]}, ["a_2_bn_path02",
    ...                                          "a_2_bn_path01"])
    {'a_2_bn_path02': [array([2, 3])], 'a_2_bn_path01': [array([0, 1])]}
    """
    layers = list(layers)
    paths = collections.Counter(_PATH.sub("", layer) for layer in layers)
    cut = {}
    for layer in layers:
        whole = _PATH.sub("", layer)
        if whole not in weights:
            continue
        if whole == layer:
            cut[layer] = weights[whole]
            continue
        index = _path_number(layer) - 1
        cut[layer] = [
            np.split(array, paths[whole], _path_axis(whole))[index]
            for array in weights[whole]
        ]
    return cut


def join_paths(
    weights: Mapping[str, list[np.ndarray]],
) -> dict[str, list[np.ndarray]]:
    """The inverse of `split_paths`.

    Args:
        weights: Layer name to arrays of a model in any form.

    Returns:
        Layer name to arrays of the grouped model.

    Example:

    >>> join_paths({"a_2_bn_path02": [np.ones(2)],
    ...             "a_2_bn_path01": [np.zeros(2)]})
    {'a_2_bn': [array([0., 0., 1., 1.])]}
    """
    paths = {}
    for layer in sorted(weights, key=_path_number):
        paths.setdefault(_PATH.sub("", layer), []).append(weights[layer])
    return {
        whole: [
            np.concatenate(arrays, _path_axis(whole))
            if len(arrays) > 1
            else arrays[0]
            for arrays in zip(*pieces, strict=True)
        ]
        for whole, pieces in paths.items()
    }


def adapt_stem(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first convolution for other images than RGB, as timm adapts it.

    Args:
        kernel: `(height, width, 3, filters)`.
        channels: Channels of the images.

    Returns:
        `(height, width, channels, filters)`: the sum over RGB for one
        channel, else RGB repeated and scaled by 3 / `channels`, so that what
        comes out is about as large as it was.

    Example:

    >>> adapt_stem(np.ones((7, 7, 3, 64)), 1)[0, 0, 0, 0]
    np.float64(3.0)
    """
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    times = -(-channels // kernel.shape[2])
    repeated = np.tile(kernel, (1, 1, times, 1))[:, :, :channels]
    return repeated * kernel.dtype.type(kernel.shape[2] / channels)


def join_shapes(
    shapes: Mapping[str, list[tuple[int, ...]]],
) -> dict[str, list[tuple[int, ...]]]:
    """What `join_paths` would make of arrays of such shapes.

    Args:
        shapes: Layer name to shapes, of a model in any form.

    Returns:
        Layer name to shapes of the grouped model.

    Example:

    >>> join_shapes({"a_2_bn_path02": [(2,)], "a_2_bn_path01": [(2,)]})
    {'a_2_bn': [(4,)]}
    """
    joined = {}
    for layer, of_layer in shapes.items():
        whole = _PATH.sub("", layer)
        if whole not in joined:
            joined[whole] = list(of_layer)
            continue
        axis = _path_axis(whole)
        for i, (so_far, more) in enumerate(
            zip(joined[whole], of_layer, strict=True)
        ):
            sizes = list(so_far)
            sizes[axis] += more[axis]
            joined[whole][i] = tuple(sizes)
    return joined


def infer_architecture(shapes: Mapping[str, list[tuple[int, ...]]]) -> str:
    """The network that a grouped model's weights belong to.

    Args:
        shapes: Layer name to shapes.

    Returns:
        The paper's notation, such as `"resnext50_32x4d"`, or a sentence if
        they are no such network's.

    Example:

    >>> infer_architecture({"conv2_block1_2_conv": [(3, 3, 4, 128)]})
    'resnext5_32x4d'
    """
    blocks = {match[0] for match in map(_IN_BLOCK.match, shapes) if match}
    first = (shapes.get("conv2_block1_2_conv") or [()])[0]
    if len(first) != 4 or 0 in first:
        return "no network with bottleneck blocks"
    _, _, base_width, filters = first
    cardinality = filters // base_width
    return f"resnext{3 * len(blocks) + 2}_{cardinality}x{base_width}d"


def _path_number(layer):
    match = _PATH.search(layer)
    return int(match[1]) if match else 0


def _path_axis(layer):
    """Paths differ in a layer's outputs, where they meet again in inputs."""
    return 2 if layer.endswith("_3_conv") else -1


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
    if module in _STEM:
        return _STEM[module]
    match = _BLOCK.fullmatch(module)
    if not match:
        raise ValueError(f"`tensors` must be a ResNet's; got {module!r}.")
    kind = match["kind"] or ("conv", "bn")[int(match["shortcut"])]
    stage, block = int(match["stage"]) + 1, int(match["block"]) + 1
    return f"conv{stage}_block{block}_{match['part'] or 0}_{kind}"


def _torch_module(layer):
    """`conv2_block1_2_conv` -> `layer1.0.conv2`."""
    for module, name in _STEM.items():
        if layer == name:
            return module
    match = re.fullmatch(r"conv(\d+)_block(\d+)_([0123])_(conv|bn)", layer)
    if not match:
        raise ValueError(f"`weights` must be a grouped model's; got {layer!r}.")
    stage, block, part, kind = match.groups()
    inner = f"{kind}{part}"
    if part == "0":
        inner = f"downsample.{('conv', 'bn').index(kind)}"
    return f"layer{int(stage) - 1}.{int(block) - 1}.{inner}"


def _reordered(array, layout):
    """Torch's axes begin with outputs and inputs, Keras' end with the two."""
    if array.ndim == 4:
        axes = {"keras": (2, 3, 1, 0), "torch": (3, 2, 0, 1)}
        return array.transpose(axes[layout])
    return array.T
