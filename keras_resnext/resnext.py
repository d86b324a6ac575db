"""The builders: any ResNeXt of the paper as a Keras functional model."""

import os
import re
from collections.abc import Sequence

import keras

from keras_resnext import blocks
from keras_resnext.weights.load import check_source
from keras_resnext.weights.load import load_weights

# Stem -> the input's side where none is given, and the total stride of the
# stages after it.
_DEFAULT_SIZE = {"imagenet": 224, "cifar": 32}
_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def ResNeXt(
    depths: Sequence[int],
    cardinality: int,
    base_width: int,
    *,
    stem: str = "imagenet",
    form: str = "grouped",
    include_top: bool = True,
    weights: str | os.PathLike | None = None,
    input_tensor: keras.KerasTensor | None = None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    name: str | None = None,
) -> keras.Model:
    """Any ResNeXt: stages of bottlenecks, each a sum of `cardinality` paths.

    Stage i holds `depths[i]` blocks. Its paths are `base_width * 2**i`
    channels wide and its output has `256 * 2**i` channels; every stage after
    the first halves height and width, with the stride on the 3x3 convolution
    (the paper's and torchvision's place; the original ResNet strides the
    first 1x1). With `cardinality=1, base_width=64` it is a ResNet.

    The network expects pixels that went through
    `keras_resnext.preprocess_input`.

    Args:
        depths: Blocks in each stage, such as `(3, 4, 6, 3)`.
        cardinality: Paths in each block, the paper's C.
        base_width: Channels of a path in the first stage, the paper's d.
        stem: `"imagenet"` (7x7 convolution and max pool, both of stride 2)
            or `"cifar"` (3x3 convolution of stride 1). Defaults to
            `"imagenet"`.
        form: How a block is computed: `"grouped"` (Fig. 3c) or `"branches"`
            (Fig. 3a). The function is the same. Defaults to `"grouped"`.
        include_top: Whether to end with global average pooling and a dense
            classifier. Defaults to `True`.
        weights: `None` for random weights, or the path of a `.weights.h5`
            file. Defaults to `None`.
        input_tensor: Keras tensor to build the network on, instead of a new
            input. Defaults to `None`.
        input_shape: `(height, width, channels)`, or channels first if
            `keras.config.image_data_format()` says so. Height and width may
            be `None` and are at least the network's total stride: 32 pixels
            with four stages on the ImageNet stem, 4 with three stages on the
            CIFAR stem. Defaults to 224x224 (ImageNet stem) or 32x32 (CIFAR
            stem) RGB with the top and to any size of RGB without it.
        pooling: What follows the last stage without the top: `None` for the
            feature map, `"avg"` or `"max"` for one vector an image. Defaults
            to `None`.
        classes: Outputs of the classifier. Defaults to 1000.
        classifier_activation: Activation of the classifier; `None` for
            logits. Defaults to `"softmax"`.
        name: Name of the model. Defaults to the paper's notation, such as
            `"resnext50_32x4d"`.

    Returns:
        A `keras.Model` from `(batch, height, width, channels)` to
        `(batch, classes)` with the top; without it to
        `(batch, height / stride, width / stride, features)`, or to
        `(batch, features)` if `pooling` is set.

    Raises:
        ValueError: if an argument is not one of the above; nothing has been
            built then.

    Example:

    >>> model = ResNeXt((1, 1, 1), 8, 4, stem="cifar", classes=10)
    >>> model.name, model.output_shape
    ('resnext11_8x4d', (None, 10))

    Reference:
        Xie et al., "Aggregated Residual Transformations for Deep Neural
        Networks", arXiv 1611.05431, table 1 (ImageNet) and section 5.3
        (CIFAR).
    """
    depths = _check_depths(depths)
    _check_positive(cardinality=cardinality, base_width=base_width)
    _check_choice(stem=stem, among=tuple(_DEFAULT_SIZE))
    _check_choice(form=form, among=tuple(blocks.TRANSFORMS))
    _check_choice(pooling=pooling, among=(None, "avg", "max"))
    _check_positive(classes=classes)
    if weights is not None:
        check_source(weights)
    inputs = x = _input(input_tensor, input_shape, stem, depths, include_top)

    x = _STEMS[stem](x)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            x = blocks.bottleneck(
                x,
                blocks.TRANSFORMS[form],
                cardinality=cardinality,
                width=base_width * 2**stage,
                filters=256 * 2**stage,
                stride=2 if stage > 0 and block == 0 else 1,
                name=f"conv{stage + 2}_block{block + 1}",
            )

    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = keras.layers.Dense(
            classes, activation=classifier_activation, name="predictions"
        )(x)
    elif pooling == "avg":
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif pooling == "max":
        x = keras.layers.GlobalMaxPooling2D(name="max_pool")(x)

    if input_tensor is not None:
        # The model starts where the tensor does, not at the tensor.
        inputs = keras.utils.get_source_inputs(input_tensor)
        if len(inputs) == 1:
            (inputs,) = inputs  # or calls would have to pass a list
    if name is None:
        name = f"resnext{3 * sum(depths) + 2}_{cardinality}x{base_width}d"
    model = keras.Model(inputs, x, name=name)
    if weights is not None:
        load_weights(model, weights)
    return model


def ResNeXt50(
    include_top: bool = True,
    weights: str | os.PathLike | None = "imagenet",
    input_tensor: keras.KerasTensor | None = None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    name: str = "resnext50",
    *,
    form: str = "grouped",
    cardinality: int = 32,
    base_width: int = 4,
) -> keras.Model:
    """ResNeXt-50, 32x4d unless told otherwise: 25,028,904 trainable weights.

    The first eight arguments are those of `keras.applications.ResNet50`, in
    its order; all are described at `ResNeXt`. Images must go through
    `keras_resnext.preprocess_input` first.

    Args:
        include_top: Whether to end with the classifier. Defaults to `True`.
        weights: `None`, or the path of a `.weights.h5` file. `"imagenet"`,
            the default, is not there yet in this version and says so.
        input_tensor: Keras tensor to build on. Defaults to `None`.
        input_shape: `(height, width, channels)`, from 32 pixels up. Defaults
            to `(224, 224, 3)` with the top, `(None, None, 3)` without.
        pooling: `None`, `"avg"` or `"max"`; used without the top. Defaults
            to `None`.
        classes: Outputs of the classifier. Defaults to 1000.
        classifier_activation: Defaults to `"softmax"`; `None` for logits.
        name: Name of the model. Defaults to `"resnext50"`.
        form: `"grouped"` or `"branches"`. Defaults to `"grouped"`.
        cardinality: Defaults to 32.
        base_width: Defaults to 4.

    Returns:
        A `keras.Model` from `(batch, 224, 224, 3)` to `(batch, 1000)`.

    Raises:
        ValueError: if an argument is not one of the above.

    Example:

    >>> model = keras_resnext.ResNeXt50(weights=None)
    >>> model.predict(keras_resnext.preprocess_input(images)).shape
    (1, 1000)

    Reference:
        arXiv 1611.05431, table 1.
    """
    return ResNeXt(depths=_DEPTHS[50], **locals())


def ResNeXt101(
    include_top: bool = True,
    weights: str | os.PathLike | None = "imagenet",
    input_tensor: keras.KerasTensor | None = None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    name: str = "resnext101",
    *,
    form: str = "grouped",
    cardinality: int = 32,
    base_width: int = 4,
) -> keras.Model:
    """ResNeXt-101, 32x4d unless told otherwise: 44,177,704 trainable weights.

    Arguments, result, errors and use are those of `ResNeXt50`.

    Example:

    >>> model = keras_resnext.ResNeXt101(weights=None, input_shape=(64, 64, 3))

    Reference:
        arXiv 1611.05431, table 4.
    """
    return ResNeXt(depths=_DEPTHS[101], **locals())


_BUILDERS = {"resnext50": ResNeXt50, "resnext101": ResNeXt101}


def list_models() -> list[str]:
    """The names that `build` and the command line know without a pattern.

    Returns:
        A list of names, each a builder's in lower case.

    Example:

    >>> keras_resnext.list_models()
    ['resnext50', 'resnext101']
    """
    return list(_BUILDERS)


def build(model: str, **arguments) -> keras.Model:
    """Build a model from its name, as the command line and recipes do.

    A name is one of `list_models`, or the paper's notation
    `resnext<depth>_<cardinality>x<base_width>d`: depth 50 or 101 for the
    ImageNet nets, and any other depth of the form 9n + 2 for the CIFAR nets
    with three stages of n blocks.

    Args:
        model: The name.
        **arguments: The builder's. `weights` defaults to `None` here.

    Returns:
        A `keras.Model`, see `ResNeXt`.

    Raises:
        ValueError: if the name is not known, or as the builder does.

    Example:

    >>> build("resnext29_8x64d", classes=10).count_params()
    34449994
    """
    name, arguments = model.lower(), {"weights": None, **arguments}
    if name in _BUILDERS:
        return _BUILDERS[name](**arguments)
    match = re.fullmatch(r"resnext(\d+)_(\d+)x(\d+)d", name)
    if match:
        depth, cardinality, base_width = map(int, match.groups())
        arguments.setdefault("name", name)
        if depth in _DEPTHS:
            stem, depths = "imagenet", _DEPTHS[depth]
        else:
            stem, depths = "cifar", ((depth - 2) // 9,) * 3
        if 3 * sum(depths) + 2 == depth:
            return ResNeXt(
                depths, cardinality, base_width, stem=stem, **arguments
            )
    raise ValueError(
        f"`model` must be one of {', '.join(_BUILDERS)}, or "
        "resnext<depth>_<cardinality>x<base_width>d with a depth of "
        f"{', '.join(map(str, _DEPTHS))} (ImageNet nets) or 9n + 2 (CIFAR "
        f"nets); got {model!r}."
    )


def _imagenet_stem(x):
    """To a quarter of height and width, 64 channels."""
    x = blocks.convolution(x, 64, 7, 2, name="conv1_conv")
    x = blocks.batch_norm_relu(x, name="conv1")
    # Zeros are as good as -inf here: every value is behind a ReLU.
    x = keras.layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return keras.layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)


def _cifar_stem(x):
    """At full height and width, 64 channels."""
    x = blocks.convolution(x, 64, 3, name="conv1_conv")
    return blocks.batch_norm_relu(x, name="conv1")


_STEMS = {"imagenet": _imagenet_stem, "cifar": _cifar_stem}


def _input(input_tensor, input_shape, stem, depths, include_top):
    """The tensor to build on, once its shape is known to work."""
    channels_last = keras.config.image_data_format() == "channels_last"
    size = _DEFAULT_SIZE[stem] if include_top else None
    if input_tensor is not None:
        if not keras.utils.is_keras_tensor(input_tensor):
            raise ValueError(
                "`input_tensor` must be a Keras tensor, such as "
                f"`keras.Input((224, 224, 3))`; got {type(input_tensor)}."
            )
        shape = tuple(input_tensor.shape[1:])
        if input_shape is not None and tuple(input_shape) != shape:
            raise ValueError(
                "`input_shape` must be left out or agree with "
                f"`input_tensor`, {shape}; got {input_shape}."
            )
    elif input_shape is not None:
        shape = tuple(input_shape) if _is_sequence(input_shape) else ()
    else:
        shape = (size, size, 3) if channels_last else (3, size, size)

    smallest = 2 ** (len(depths) - 1) * (4 if stem == "imagenet" else 1)
    if len(shape) == 3:
        sides = shape[:2] if channels_last else shape[1:]
        channels = shape[2] if channels_last else shape[0]
        if _is_positive(channels) and all(
            side is None or (_is_positive(side) and side >= smallest)
            for side in sides
        ):
            return keras.Input(shape) if input_tensor is None else input_tensor
    axes = "height, width, channels"
    if not channels_last:
        axes = "channels, height, width"
    raise ValueError(
        f"`input_shape` must be ({axes}) with height and width None or at "
        f"least {smallest} and channels at least 1; got {input_shape or shape}."
    )


def _check_depths(depths):
    if _is_sequence(depths) and depths and all(map(_is_positive, depths)):
        return tuple(depths)
    raise ValueError(
        "`depths` must hold the number of blocks of each stage, such as "
        f"(3, 4, 6, 3); got {depths}."
    )


def _check_positive(**arguments):
    for name, value in arguments.items():
        if not _is_positive(value):
            raise ValueError(
                f"`{name}` must be a positive integer; got {value!r}."
            )


def _check_choice(*, among, **arguments):
    for name, value in arguments.items():
        if value not in among:
            raise ValueError(
                f"`{name}` must be one of {', '.join(map(repr, among))}; "
                f"got {value!r}."
            )


def _is_positive(value):
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_sequence(value):
    return isinstance(value, (list, tuple))
