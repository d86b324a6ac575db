"""`ResNeXt`: any network of the paper as a Keras functional model."""

import numbers
import operator
import os
from collections.abc import Sequence

import keras

from keras_resnext import blocks
from keras_resnext.extras import suggest
from keras_resnext.names import CLASSIFIER
from keras_resnext.names import DEFAULT_FILTERS
from keras_resnext.names import NetworkName
from keras_resnext.names import block_name
from keras_resnext.weights.load import fetch_source
from keras_resnext.weights.load import find_source
from keras_resnext.weights.load import load_weights

# Stem -> default size of images in pixels, and the stem's stride.
DEFAULT_SIZE = {"imagenet": 224, "cifar": 32}
_STEM_STRIDE = {"imagenet": 4, "cifar": 1}
_OUTPUT_STRIDES = (8, 16, 32)


def total_stride(stem, depths):
    """The factor by which height and width shrink by default."""
    stride = _STEM_STRIDE[stem] * 2 ** (len(depths) - 1)
    return min(stride, max(_OUTPUT_STRIDES))


def ResNeXt(
    depths: Sequence[int],
    cardinality: int,
    base_width: int,
    *,
    stem: str = "imagenet",
    form: str = "grouped",
    include_top: bool = True,
    weights: str | os.PathLike[str] | None = None,
    input_tensor: keras.KerasTensor | None = None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: str | None = "softmax",
    name: str | None = None,
    filters: int = DEFAULT_FILTERS,
    residual: bool = True,
    output_stride: int = 32,
    drop_path_rate: float = 0.0,
) -> keras.Model:
    """Any ResNeXt: stages of bottlenecks, each a sum of `cardinality` paths.

    The stem has `filters / 4` channels. Stage i holds `depths[i]` blocks. Its
    paths are `base_width * 2**i` channels wide and its output has
    `filters * 2**i` channels; every stage after the first halves height and
    width, with the stride on the 3x3 convolution (as in the paper and
    torchvision; the original ResNet strides the first 1x1). With
    `cardinality=1, base_width=64` it is a ResNet.

    Images must go through `keras_resnext.preprocess_input` first.

    Args:
        depths: Blocks in each stage, such as `(3, 4, 6, 3)`.
        cardinality: Paths in each block, the paper's C.
        base_width: Channels of a path in the first stage, the paper's d.
        stem: `"imagenet"` (7x7 convolution and max pool, both of stride 2)
            or `"cifar"` (3x3 convolution of stride 1). Defaults to
            `"imagenet"`.
        form: How a block is computed: `"grouped"` (Fig. 3c),
            `"concatenated"` (Fig. 3b) or `"branches"` (Fig. 3a). The function
            is the same; see `keras_resnext.blocks` for what each is for.
            Defaults to `"grouped"`.
        include_top: Whether to end with global average pooling and a dense
            classifier. Defaults to `True`.
        weights: `None` for random weights, `"imagenet"` or another tag of
            `list_weights`, or a path, see `load_weights`. Defaults to `None`.
        input_tensor: Keras tensor to build the network on, instead of a new
            input. Defaults to `None`.
        input_shape: `(height, width, channels)`, or channels first if
            `keras.config.image_data_format()` says so. Height and width may
            be `None` and must be at least the network's total stride: 32
            pixels with four stages on the ImageNet stem, 4 with three stages
            on the CIFAR stem. Defaults to RGB, with the top of 224x224
            (ImageNet stem) or 32x32 pixels (CIFAR stem), without it of any
            size.
        pooling: What follows the last stage without the top: `None` for the
            feature map, `"avg"` or `"max"` for one vector per image. Defaults
            to `None`.
        classes: Outputs of the classifier. Defaults to 1000.
        classifier_activation: Activation of the classifier; `None` for
            logits. Defaults to `"softmax"`.
        name: Name of the model. Defaults to the paper's notation, such as
            `"resnext50_32x4d"`.
        filters: Channels of the first stage's output, a multiple of 4. Fewer
            make networks for small images and devices, such as
            `"resnext20_8x4d_f64"`; published weights for ImageNet have 256.
            Defaults to 256.
        residual: Whether blocks have shortcuts. Defaults to `True`.
        output_stride: The largest factor by which height and width shrink: 8,
            16 or 32. Later stages keep their size and dilate their 3x3
            convolutions instead, so that the same weights have the same
            receptive field (for dense prediction). Defaults to 32, which only
            networks of more than four stages would exceed.
        drop_path_rate: Probability that training skips the transform of the
            last block for an image (stochastic depth). It grows linearly with
            depth, from 0 at the first block. Defaults to 0.

    Returns:
        A `keras.Model` from `(batch, height, width, channels)` to
        `(batch, classes)` with the top; without it to
        `(batch, height / stride, width / stride, features)`, or to
        `(batch, features)` if `pooling` is set.

    Raises:
        ValueError: if an argument is not one of the above, before anything is
            built.
        ConnectionError: if published weights cannot be downloaded, likewise.

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
    cardinality, base_width = int(cardinality), int(base_width)
    filters = _check_filters(filters)
    if not (name is None or (isinstance(name, str) and "/" not in name)):
        raise ValueError(
            f"`name` must be None or a string without a slash; got {name!r}."
        )
    _check_choice(stem=stem, among=tuple(DEFAULT_SIZE))
    _check_choice(form=form, among=tuple(blocks.TRANSFORMS))
    _check_choice(pooling=pooling, among=(None, "avg", "max"))
    _check_positive(classes=classes)
    classes = int(classes)
    try:
        keras.activations.get(classifier_activation)
    except ValueError as error:
        raise ValueError(
            "`classifier_activation` must be None or an activation that Keras "
            f"knows; got {classifier_activation!r}."
        ) from error
    _check_choice(
        include_top=include_top, residual=residual, among=(True, False)
    )
    _check_choice(output_stride=output_stride, among=_OUTPUT_STRIDES)
    _check_drop_path_rate(drop_path_rate, residual)
    notation = str(
        NetworkName(3 * sum(depths) + 2, cardinality, base_width, filters)
    )
    if weights is not None:
        weights = find_source(weights, notation, include_top)
    inputs = x = _input(input_tensor, input_shape, stem, depths, include_top)
    if weights is not None:
        weights = fetch_source(weights)  # before the long work of building

    x = _STEMS[stem](x, filters // 4)
    dilation, total_stride = 1, _STEM_STRIDE[stem]
    blocks_before = 0
    for stage, depth in enumerate(depths):
        stride = 2 if stage > 0 else 1
        # A block that no longer strides still sees its input undilated, as
        # in torchvision's `replace_stride_with_dilation`.
        first_dilation = dilation
        if total_stride * stride > output_stride:
            dilation, stride = dilation * stride, 1
        total_stride *= stride
        for block in range(depth):
            x = blocks.bottleneck(
                x,
                blocks.TRANSFORMS[form],
                cardinality=cardinality,
                width=base_width * 2**stage,
                filters=filters * 2**stage,
                stride=stride if block == 0 else 1,
                dilation=first_dilation if block == 0 else dilation,
                residual=residual,
                drop_path_rate=drop_path_rate
                * blocks_before
                / max(1, sum(depths) - 1),
                name=block_name(stage + 2, block + 1),
            )
            blocks_before += 1

    if include_top:
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = keras.layers.Dense(
            classes,
            activation=classifier_activation,
            dtype=_classifier_dtype(),
            name=CLASSIFIER,
        )(x)
    elif pooling == "avg":
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif pooling == "max":
        x = keras.layers.GlobalMaxPooling2D(name="max_pool")(x)

    if input_tensor is not None:
        # The model starts at the tensor's inputs, not at the tensor.
        inputs = keras.utils.get_source_inputs(input_tensor)
        if len(inputs) == 1:
            (inputs,) = inputs  # a list would have to be called with one
    model = keras.Model(inputs, x, name=name or notation)
    if weights is not None:
        load_weights(model, weights)
    return model


def _classifier_dtype():
    """float32 in mixed precision: 8 or 11 bits are too few here."""
    mixed = keras.config.dtype_policy().name.startswith("mixed_")
    return "float32" if mixed else None


def _imagenet_stem(x, filters):
    """To a quarter of height and width."""
    x = blocks.convolution(x, filters, 7, 2, name="conv1_conv")
    x = blocks.batch_norm_relu(x, name="conv1")
    # Padding with zeros instead of -inf is fine: all values come from a ReLU.
    x = keras.layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return keras.layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)


def _cifar_stem(x, filters):
    """At full height and width."""
    x = blocks.convolution(x, filters, 3, name="conv1_conv")
    return blocks.batch_norm_relu(x, name="conv1")


_STEMS = {"imagenet": _imagenet_stem, "cifar": _cifar_stem}


def _input(input_tensor, input_shape, stem, depths, include_top):
    """The tensor to build on, or an error about its shape."""
    channels_last = keras.config.image_data_format() == "channels_last"
    size = DEFAULT_SIZE[stem] if include_top else None
    if input_tensor is not None:
        if not keras.utils.is_keras_tensor(input_tensor):
            raise ValueError(
                "`input_tensor` must be a Keras tensor, such as "
                f"`keras.Input((224, 224, 3))`; got {type(input_tensor)}."
            )
        shape = tuple(input_tensor.shape[1:])
        if len(shape) != 3 or "float" not in str(input_tensor.dtype):
            raise ValueError(
                "`input_tensor` must hold images of floats, such as "
                f"`keras.Input((224, 224, 3))`; got {input_tensor}."
            )
        if input_shape is not None and not (
            _is_sequence(input_shape) and tuple(input_shape) == shape
        ):
            raise ValueError(
                "`input_shape` must be left out or agree with "
                f"`input_tensor`, {shape}; got {input_shape}."
            )
    elif input_shape is not None:
        shape = tuple(input_shape) if _is_sequence(input_shape) else ()
    else:
        shape = (size, size, 3) if channels_last else (3, size, size)

    smallest = total_stride(stem, depths)
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
        return tuple(int(depth) for depth in depths)
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


def _check_filters(filters):
    if _is_positive(filters) and filters % 4 == 0:
        return int(filters)
    raise ValueError(
        "`filters` must be a positive multiple of 4, because the stem has a "
        f"quarter of it; got {filters!r}."
    )


def _check_drop_path_rate(rate, residual):
    if not isinstance(rate, numbers.Real) or not 0 <= rate < 1:
        raise ValueError(
            f"`drop_path_rate` must be a number in [0, 1); got {rate!r}."
        )
    if rate and not residual:
        raise ValueError(
            "`drop_path_rate` must be 0 without shortcuts (`residual=False`); "
            f"got {rate!r}."
        )


def _check_choice(*, among, **arguments):
    for name, value in arguments.items():
        # By type too: 1 is not True, and an array has no truth.
        if not any(type(value) is type(a) and value == a for a in among):
            raise ValueError(
                f"`{name}` must be one of {', '.join(map(repr, among))}; "
                f"got {value!r}.{suggest(value, filter(_is_text, among))}"
            )


def _is_positive(value):
    """Whether a value is a positive integer, of Python or NumPy."""
    try:
        return not isinstance(value, bool) and operator.index(value) > 0
    except TypeError:
        return False


def _is_text(value):
    return isinstance(value, str)


def _is_sequence(value):
    return isinstance(value, (list, tuple))
