"""Names and layouts in which weights are published; arrays in, arrays out."""

import re
from collections.abc import Iterable
from collections.abc import Mapping

import numpy as np

_STEM = {"conv1": "conv1_conv", "bn1": "conv1_bn", "fc": "predictions"}
_BLOCK = re.compile(
    r"layer(?P<stage>\d+)\.(?P<block>\d+)\."
    r"(?:(?P<kind>conv|bn)(?P<part>[123])|downsample\.(?P<shortcut>[01]))"
)
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
