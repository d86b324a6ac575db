"""The grammar of names, and weights split and joined by path.

Networks:

resnext50_32x4d                   50 layers, 32 paths of 4 channels
resnext20_8x4d_f64                the same with narrower stages

Layers:

conv1_conv, conv1_bn, ...         the stem
conv2_block1_2_conv               block conv2_block1, part 2_conv
conv2_block1_2_conv_path07        the same of one path, explicit forms
predictions                       the classifier
"""

import collections
import re
import typing
from collections.abc import Iterable
from collections.abc import Mapping

import numpy as np

DEFAULT_FILTERS = 256  # as in all networks of the paper

STEM = "conv1_conv"
CLASSIFIER = "predictions"

_NETWORK = re.compile(
    r"resnext([1-9][0-9]*)_([1-9][0-9]*)x([1-9][0-9]*)d(?:_f([1-9][0-9]*))?"
)
_NAME = re.compile(
    r"(?P<block>.+?)_(?P<part>([0-3]_)?[a-z]+)(_path(?P<path>\d+))?"
)
_IN_BLOCK = re.compile(r"conv(\d+)_block(\d+)_.+")
_STEM_LAYERS = ("conv1_pad", STEM, "conv1_bn", "conv1_relu")


class NetworkName(typing.NamedTuple):
    """The name of a network in the paper's notation; `str` writes it.

    The paper has one width of stages, so that its notation has no place for
    others; they are added as `_f<filters>`.

    Args:
        depth: Number of layers with weights.
        cardinality: Paths in each block, C.
        base_width: Channels of a path in the first stage, d.
        filters: Channels of the first stage's output. Defaults to 256.

    Example:

    >>> str(NetworkName(50, 32, 4)), str(NetworkName(20, 8, 4, 64))
    ('resnext50_32x4d', 'resnext20_8x4d_f64')
    """

    depth: int
    cardinality: int
    base_width: int
    filters: int = DEFAULT_FILTERS

    def __str__(self):
        name = f"resnext{self.depth}_{self.cardinality}x{self.base_width}d"
        narrow = self.filters != DEFAULT_FILTERS
        return f"{name}_f{self.filters}" if narrow else name


def parse_network(name: str) -> NetworkName | None:
    """Take a network's name apart.

    Args:
        name: The name.

    Returns:
        A `NetworkName`, or `None` if the name has no such form.

    Example:

    >>> parse_network("resnext20_8x4d_f64")
    NetworkName(depth=20, cardinality=8, base_width=4, filters=64)
    """
    match = _NETWORK.fullmatch(name)
    if not match:
        return None
    return NetworkName(*(int(number) for number in match.groups() if number))


class LayerName(typing.NamedTuple):
    """The name of a layer, taken apart; `str` puts it together.

    Args:
        block: Such as `"conv2_block1"`; of the stem, `"conv1"`.
        part: Such as `"2_conv"` or `"out"`.
        path: Number of the path, from 1; 0 outside the explicit forms' paths.
            Defaults to 0.

    Example:

    >>> str(LayerName("conv2_block1", "2_conv", 7))
    'conv2_block1_2_conv_path07'
    """

    block: str
    part: str
    path: int = 0

    def __str__(self):
        return f"{self.block}_{self.part}{path_suffix(self.path)}"


def parse_name(layer: str) -> LayerName | None:
    """Take a layer's name apart.

    Args:
        layer: The name.

    Returns:
        A `LayerName`, or `None` if the name has no such form.

    Example:

    >>> parse_name("conv2_block1_2_conv_path07")
    LayerName(block='conv2_block1', part='2_conv', path=7)
    """
    match = _NAME.fullmatch(layer)
    if not match:
        return None
    return LayerName(match["block"], match["part"], int(match["path"] or 0))


def path_suffix(path):
    """The end of the name of a layer on a path; of path 0, nothing."""
    return f"_path{path:02d}" if path else ""


def whole_name(layer):
    """A layer's name without the path."""
    name = parse_name(layer)
    return str(name._replace(path=0)) if name and name.path else layer


def path_of(layer):
    """Number of a layer's path, from 1; 0 if it is on none."""
    name = parse_name(layer)
    return name.path if name else 0


def block_name(stage, block):
    """`"conv2_block1"` of stage 2 (the first after the stem) and block 1."""
    return f"conv{stage}_block{block}"


def block_numbers(layer):
    """Stage and block of a layer, `(2, 1)` for `"conv2_block1_2_conv"`."""
    match = _IN_BLOCK.fullmatch(layer)
    return match and (int(match[1]), int(match[2]))


def block_of(layer):
    """A layer's block, such as `"conv2_block1"`; `None` outside blocks."""
    numbers = block_numbers(layer)
    return numbers and block_name(*numbers)


def stage_of(layer):
    """A layer's stage, `"conv1"` (the stem) or later; `None` elsewhere."""
    if layer in _STEM_LAYERS:
        return "conv1"
    block = block_of(layer)
    return block and block.partition("_")[0]


def split_paths(
    weights: Mapping[str, list[np.ndarray]], layers: Iterable[str]
) -> dict[str, list[np.ndarray]]:
    """Split a grouped model's weights for the explicit forms.

    Args:
        weights: Layer name to arrays of a grouped model.
        layers: Names of the wanted layers, of a model in any form.

    Returns:
        Layer name to arrays, for those of `layers` that `weights` has.

    Example:

    >>> split_paths({"a_2_bn": [np.arange(4)]}, ["a_2_bn_path02",
    ...                                          "a_2_bn_path01"])
    {'a_2_bn_path02': [array([2, 3])], 'a_2_bn_path01': [array([0, 1])]}
    """
    layers = list(layers)
    paths = collections.Counter(map(whole_name, layers))
    parts = {}
    for layer in layers:
        whole = whole_name(layer)
        if whole not in weights:
            continue
        if paths[whole] == 1:
            parts[layer] = weights[whole]
            continue
        axis, index = _path_axis(whole), path_of(layer) - 1
        parts[layer] = [
            np.split(array, paths[whole], axis)[index]
            for array in weights[whole]
        ]
    return parts


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
    return _join(weights, np.concatenate)


def join_shapes(
    shapes: Mapping[str, list[tuple[int, ...]]],
) -> dict[str, list[tuple[int, ...]]]:
    """The shapes that `join_paths` would give.

    Args:
        shapes: Layer name to shapes, of a model in any form.

    Returns:
        Layer name to shapes of the grouped model.

    Example:

    >>> join_shapes({"a_2_bn_path02": [(2,)], "a_2_bn_path01": [(2,)]})
    {'a_2_bn': [(4,)]}
    """
    return _join(shapes, _concatenated_shape)


def _join(layers, concatenate):
    """Layer name to values, those of paths concatenated in their order."""
    paths = collections.defaultdict(list)
    for layer in sorted(layers, key=path_of):
        paths[whole_name(layer)].append(layers[layer])
    return {
        whole: [
            concatenate(values, _path_axis(whole))
            if len(values) > 1
            else values[0]
            for values in zip(*parts, strict=True)
        ]
        for whole, parts in paths.items()
    }


def _concatenated_shape(shapes, axis):
    shape = list(shapes[0])
    shape[axis] = sum(other[axis] for other in shapes)
    return tuple(shape)


def _path_axis(layer):
    """Paths are slices of a layer's outputs; where they meet, of its inputs."""
    return 2 if layer.endswith("_3_conv") else -1
