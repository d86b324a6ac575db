"""The named networks: their builders, and `build` by name."""

import os
import re
import typing
from typing import Any

import keras

from keras_resnext.extras import suggest
from keras_resnext.names import DEFAULT_FILTERS
from keras_resnext.names import parse_network
from keras_resnext.resnext import DEFAULT_SIZE
from keras_resnext.resnext import ResNeXt
from keras_resnext.resnext import total_stride

_DEPTHS = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


class Builder(typing.Protocol):
    """What type checkers and editors know of a named network's builder."""

    __name__: str

    def __call__(
        self,
        include_top: bool = ...,
        weights: str | os.PathLike[str] | None = ...,
        input_tensor: keras.KerasTensor | None = ...,
        input_shape: tuple[int | None, ...] | None = ...,
        pooling: str | None = ...,
        classes: int = ...,
        classifier_activation: str | None = ...,
        name: str = ...,
        *,
        form: str = ...,
        cardinality: int = ...,
        base_width: int = ...,
        filters: int = ...,
        residual: bool = ...,
        output_stride: int = ...,
        drop_path_rate: float = ...,
    ) -> keras.Model: ...


def _builder(
    function, title, depths, paths, reference, stem="imagenet"
) -> Builder:
    """A builder with its own name, defaults and docstring."""
    default_cardinality, default_base_width = paths
    cifar = stem == "cifar"
    default_weights = None if cifar else "imagenet"
    default_classes = 10 if cifar else 1000

    def build_variant(
        include_top: bool = True,
        weights: str | os.PathLike[str] | None = default_weights,
        input_tensor: keras.KerasTensor | None = None,
        input_shape: tuple[int | None, ...] | None = None,
        pooling: str | None = None,
        classes: int = default_classes,
        classifier_activation: str | None = "softmax",
        name: str = function.lower(),
        *,
        form: str = "grouped",
        cardinality: int = default_cardinality,
        base_width: int = default_base_width,
        filters: int = DEFAULT_FILTERS,
        residual: bool = True,
        output_stride: int = 32,
        drop_path_rate: float = 0.0,
    ) -> keras.Model:
        return ResNeXt(
            depths,
            cardinality,
            base_width,
            stem=stem,
            form=form,
            include_top=include_top,
            weights=weights,
            input_tensor=input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes,
            classifier_activation=classifier_activation,
            name=name,
            filters=filters,
            residual=residual,
            output_stride=output_stride,
            drop_path_rate=drop_path_rate,
        )

    build_variant.__name__ = build_variant.__qualname__ = function
    build_variant.__doc__ = _BUILDER_DOC.format(
        function=function,
        title=title,
        size=DEFAULT_SIZE[stem],
        smallest=total_stride(stem, depths),
        weights=default_weights,
        classes=default_classes,
        name=function.lower(),
        cardinality=default_cardinality,
        base_width=default_base_width,
        reference=reference,
    )
    return build_variant


_BUILDER_DOC = """{title} by default.

The first eight arguments are those of `keras.applications.ResNet50`, in its
order; see `ResNeXt` for details. Images must go through
`keras_resnext.preprocess_input` first.

Args:
    include_top: Whether to end with the classifier. Defaults to `True`.
    weights: `None` for random weights, `"imagenet"`, another tag of
        `list_weights`, or a path, see `load_weights`. Defaults to
        `{weights!r}`.
    input_tensor: Keras tensor to build on. Defaults to `None`.
    input_shape: `(height, width, channels)`, from {smallest} pixels up.
        Defaults to `({size}, {size}, 3)` with the top, `(None, None, 3)`
        without.
    pooling: `None`, `"avg"` or `"max"`; used without the top. Defaults to
        `None`.
    classes: Outputs of the classifier. Defaults to {classes}.
    classifier_activation: Defaults to `"softmax"`; `None` for logits.
    name: Name of the model. Defaults to `"{name}"`.
    form: `"grouped"`, `"concatenated"` or `"branches"`. Defaults to
        `"grouped"`.
    cardinality: Paths in each block. Defaults to {cardinality}.
    base_width: Channels of a path in the first stage. Defaults to
        {base_width}.
    filters: Channels of the first stage's output, see `ResNeXt`. Defaults to
        256.
    residual: Whether blocks have shortcuts. Defaults to `True`.
    output_stride: 8, 16 or 32, see `ResNeXt`. Defaults to 32.
    drop_path_rate: Stochastic depth, see `ResNeXt`. Defaults to 0.

Returns:
    A `keras.Model` from `(batch, {size}, {size}, 3)` to `(batch, {classes})`.

Raises:
    ValueError: if an argument is not one of the above.
    ConnectionError: if published weights cannot be downloaded.

Example:

>>> model = keras_resnext.{function}(weights=None)

Reference:
    {reference}.
"""


_PAPER = "arXiv 1611.05431"


_WSL = "Mahajan et al., arXiv 1805.00932"


ResNeXt50 = _builder(
    "ResNeXt50", "ResNeXt-50, 32x4d", _DEPTHS[50], (32, 4), f"{_PAPER}, table 1"
)


ResNeXt101 = _builder(
    "ResNeXt101",
    "ResNeXt-101, 32x4d",
    _DEPTHS[101],
    (32, 4),
    f"{_PAPER}, tables 3 and 4",
)


ResNeXt101_64x4d = _builder(
    "ResNeXt101_64x4d",
    "ResNeXt-101, 64x4d",
    _DEPTHS[101],
    (64, 4),
    f"{_PAPER}, tables 4 and 5",
)


ResNeXt101_32x8d = _builder(
    "ResNeXt101_32x8d", "ResNeXt-101, 32x8d", _DEPTHS[101], (32, 8), _WSL
)


ResNeXt101_32x16d = _builder(
    "ResNeXt101_32x16d", "ResNeXt-101, 32x16d", _DEPTHS[101], (32, 16), _WSL
)


ResNeXt101_32x32d = _builder(
    "ResNeXt101_32x32d", "ResNeXt-101, 32x32d", _DEPTHS[101], (32, 32), _WSL
)


ResNeXt101_32x48d = _builder(
    "ResNeXt101_32x48d", "ResNeXt-101, 32x48d", _DEPTHS[101], (32, 48), _WSL
)


ResNeXt152 = _builder(
    "ResNeXt152",
    "ResNeXt-152, 32x4d",
    _DEPTHS[152],
    (32, 4),
    "mmpretrain, configs/resnext (the paper's design at ResNet-152's depths)",
)


ResNeXt29_8x64d = _builder(
    "ResNeXt29_8x64d",
    "ResNeXt-29, 8x64d, for CIFAR",
    (3, 3, 3),
    (8, 64),
    f"{_PAPER}, table 7",
    stem="cifar",
)


ResNeXt29_16x64d = _builder(
    "ResNeXt29_16x64d",
    "ResNeXt-29, 16x64d, for CIFAR",
    (3, 3, 3),
    (16, 64),
    f"{_PAPER}, table 7",
    stem="cifar",
)


ResNet50 = _builder(
    "ResNet50",
    "ResNet-50, the paper's baseline (stride on the 3x3)",
    _DEPTHS[50],
    (1, 64),
    f"{_PAPER}, tables 1 and 3",
)


ResNet101 = _builder(
    "ResNet101",
    "ResNet-101, the paper's baseline (stride on the 3x3)",
    _DEPTHS[101],
    (1, 64),
    f"{_PAPER}, tables 3 and 4",
)


ResNet200 = _builder(
    "ResNet200",
    "ResNet-200, the paper's deeper baseline (stride on the 3x3)",
    _DEPTHS[200],
    (1, 64),
    f"{_PAPER}, table 4",
)


_BUILDERS = {
    builder.__name__.lower(): builder
    for builder in (
        ResNeXt50,
        ResNeXt101,
        ResNeXt101_32x8d,
        ResNeXt101_64x4d,
        ResNeXt101_32x16d,
        ResNeXt101_32x32d,
        ResNeXt101_32x48d,
        ResNeXt152,
        ResNeXt29_8x64d,
        ResNeXt29_16x64d,
        ResNet50,
        ResNet101,
        ResNet200,
    )
}


# Rows of the paper's tables 3, 4 and 7 without a builder of their own name.
_PAPER_ROWS = (
    "resnext50_2x40d",
    "resnext50_4x24d",
    "resnext50_8x14d",
    "resnext101_2x40d",
    "resnext101_4x24d",
    "resnext101_8x14d",
    "resnext101_2x64d",
    "resnext101_1x100d",
    "resnext29_1x64d",
)


def list_models() -> list[str]:
    """Names of the paper's models and of those with published weights.

    `build` and the command line take these names, and any other network in
    the paper's notation.

    Returns:
        A list of names.

    Example:

    >>> keras_resnext.list_models()[:2]
    ['resnext50', 'resnext101']
    """
    return [*_BUILDERS, *_PAPER_ROWS]


def default_image_size(model: str) -> int:
    """Side of the images that a network is usually built for, in pixels.

    Args:
        model: A name, see `build`.

    Returns:
        224 for the ImageNet nets, 32 for the CIFAR nets.

    Example:

    >>> default_image_size("resnext29_8x64d")
    32
    """
    depth = re.search(r"\d+", model)
    imagenet = depth is None or int(depth[0]) in _DEPTHS
    return DEFAULT_SIZE["imagenet" if imagenet else "cifar"]


def build(model: str, **arguments: Any) -> keras.Model:
    """Build a model by its name, as the command line and recipes do.

    A name is one of `list_models`, or the paper's notation
    `resnext<depth>_<cardinality>x<base_width>d`: depth 50, 101, 152 or 200
    for the ImageNet nets, and any other depth of the form 9n + 2 for the
    CIFAR nets with three stages of n blocks. With `_f<filters>` at the end,
    the first stage's output has that many channels instead of 256.

    Args:
        model: The name.
        **arguments: Arguments of the builder. Here `weights` defaults to
            `None`, and `classes` to 10 for the CIFAR nets.

    Returns:
        A `keras.Model`, see `ResNeXt`.

    Raises:
        ValueError: if the name is unknown, or an argument is invalid.

    Example:

    >>> build("resnext29_8x64d", classes=10).output_shape
    (None, 10)
    """
    name, arguments = model.lower(), {"weights": None, **arguments}
    if name in _BUILDERS:
        return _BUILDERS[name](**arguments)
    network = parse_network(name)
    if network:
        depth, cardinality, base_width, filters = network
        if arguments.setdefault("filters", filters) != filters:
            raise ValueError(
                f"`filters` must be left out or agree with `model`, {name}: "
                f"{filters}; got {arguments['filters']!r}."
            )
        arguments.setdefault("name", str(network))
        if depth in _DEPTHS:
            stem, depths = "imagenet", _DEPTHS[depth]
        else:
            stem, depths = "cifar", ((depth - 2) // 9,) * 3
            arguments.setdefault("classes", 10)
        if depths[0] > 0 and 3 * sum(depths) + 2 == depth:
            return ResNeXt(
                depths, cardinality, base_width, stem=stem, **arguments
            )
    raise ValueError(
        f"`model` must be one of {', '.join(list_models())}, or "
        "resnext<depth>_<cardinality>x<base_width>d[_f<filters>] with a depth "
        f"of {', '.join(map(str, _DEPTHS))} (ImageNet nets) or 9n + 2 (CIFAR "
        f"nets); got {model!r}.{suggest(model, list_models())}"
    )
