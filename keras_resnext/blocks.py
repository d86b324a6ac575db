"""The bottleneck, and the three spellings of its aggregated transform.

    y = x + T_1(x) + ... + T_C(x)           (paper, equation 2)

Each T is 1x1 - 3x3 - 1x1 with its own weights. `branches` spells the sum out,
`concatenated` lets the paths meet before the last 1x1, and `grouped` folds
them into one grouped convolution; section 3.3 of the paper shows that they
are the same function. They stand side by side with the same skeleton, so that
their difference is the explanation.
"""

import keras

from keras_resnext.layers import FusedBatchNormalization
from keras_resnext.layers import GroupedConv2D
from keras_resnext.names import path_suffix

# torch's batch norm, which all published weights were trained with: its
# momentum of 0.1 weighs the new value, Keras' 0.9 the old one.
BATCH_NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9


def bottleneck(
    x,
    transform,
    *,
    cardinality,
    width,
    filters,
    stride,
    name,
    dilation=1,
    residual=True,
    drop_path_rate=0.0,
):
    """One residual block: `relu(shortcut(x) + transform(x))`.

    The shortcut is the input itself where shapes agree and a strided 1x1
    projection where they do not (type B).

    Args:
        x: Tensor `(batch, height, width, channels)`, in the order of
            `keras.config.image_data_format()`.
        transform: A function of `TRANSFORMS`.
        cardinality: Number of paths, C.
        width: Channels inside one path, d.
        filters: Channels of the output.
        stride: Stride of the 3x3 convolution and of the projection.
        name: Prefix of the layer names, such as `"conv2_block1"`.
        dilation: Of the 3x3 convolution, in pixels; above 1 the stride must
            be 1. Defaults to 1.
        residual: Whether there is a shortcut. Defaults to `True`.
        drop_path_rate: Probability that training leaves an image's transform
            out (stochastic depth, arXiv 1603.09382). Defaults to 0.

    Returns:
        Tensor `(batch, height / stride, width / stride, filters)`.

    Example:

    >>> x = keras.Input((56, 56, 256))
    >>> bottleneck(x, grouped, cardinality=32, width=4, filters=256,
    ...            stride=1, name="conv2_block2").shape
    (None, 56, 56, 256)

    Reference:
        arXiv 1611.05431, section 3.1, table 1 and Fig. 3; without shortcuts,
        the ablation in section 5.1.
    """
    shortcut = x
    if residual and (stride != 1 or x.shape[channel_axis()] != filters):
        shortcut = convolution(x, filters, 1, stride, name=f"{name}_0_conv")
        shortcut = batch_norm(shortcut, name=f"{name}_0_bn")
    x = transform(x, cardinality, width, filters, stride, dilation, name)
    if residual and drop_path_rate:
        # One draw an image, the same for all pixels and channels.
        x = keras.layers.Dropout(
            drop_path_rate, noise_shape=(None, 1, 1, 1), name=f"{name}_drop"
        )(x)
    if residual:
        x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return keras.layers.ReLU(name=f"{name}_out")(x)


def grouped(x, cardinality, width, filters, stride, dilation, name):
    """Fig. 3(c): all paths at once, kept apart by a grouped 3x3.

    The fastest form, and the one to train and to deploy.
    """
    total = cardinality * width
    x = convolution(x, total, 1, name=f"{name}_1_conv")
    x = batch_norm_relu(x, name=f"{name}_1")
    x = convolution(
        x,
        total,
        3,
        stride,
        dilation=dilation,
        groups=cardinality,
        name=f"{name}_2_conv",
    )
    x = batch_norm_relu(x, name=f"{name}_2")
    x = convolution(x, filters, 1, name=f"{name}_3_conv")
    return batch_norm(x, name=f"{name}_3_bn")


def concatenated(x, cardinality, width, filters, stride, dilation, name):
    """Fig. 3(b): one path after another, joined before the last 1x1.

    For reading, and for runtimes that know no grouped convolution: ResNeXt-50
    takes 1.7 to 2.1 times as long as grouped (224x224, batches of 8 and 1, in
    a graph on 2 AVX-512 cores) and 14 seconds to build.
    """
    total = cardinality * width
    paths = []
    for path in map(path_suffix, range(1, cardinality + 1)):
        y = convolution(x, width, 1, name=f"{name}_1_conv{path}", of=total)
        y = batch_norm_relu(y, name=f"{name}_1", path=path)
        y = convolution(
            y,
            width,
            3,
            stride,
            dilation=dilation,
            name=f"{name}_2_conv{path}",
            of=total,
        )
        paths.append(batch_norm_relu(y, name=f"{name}_2", path=path))
    x = paths[0]
    if cardinality > 1:
        x = keras.layers.Concatenate(
            axis=channel_axis(), name=f"{name}_2_concat"
        )(paths)
    x = convolution(x, filters, 1, name=f"{name}_3_conv")
    return batch_norm(x, name=f"{name}_3_bn")


def branches(x, cardinality, width, filters, stride, dilation, name):
    """Fig. 3(a): one path after another, each with a 1x1 of its own, summed.

    For reading: equation 2 as it stands. ResNeXt-50 takes 2.7 to 3.2 times as
    long as grouped, measured as for `concatenated`. Batch norm follows the
    first two convolutions of each path, and the sum.
    """
    total = cardinality * width
    paths = []
    for path in map(path_suffix, range(1, cardinality + 1)):
        y = convolution(x, width, 1, name=f"{name}_1_conv{path}", of=total)
        y = batch_norm_relu(y, name=f"{name}_1", path=path)
        y = convolution(
            y,
            width,
            3,
            stride,
            dilation=dilation,
            name=f"{name}_2_conv{path}",
            of=total,
        )
        y = batch_norm_relu(y, name=f"{name}_2", path=path)
        paths.append(convolution(y, filters, 1, name=f"{name}_3_conv{path}"))
    x = paths[0]
    if cardinality > 1:
        x = keras.layers.Add(name=f"{name}_3_sum")(paths)
    return batch_norm(x, name=f"{name}_3_bn")


TRANSFORMS = {
    "grouped": grouped,
    "concatenated": concatenated,
    "branches": branches,
}


def convolution(
    x,
    filters,
    kernel_size,
    stride=1,
    *,
    dilation=1,
    groups=1,
    name,
    of=None,
):
    """A convolution without bias, padded evenly on all sides.

    Args:
        x: Tensor `(batch, height, width, channels)`.
        filters: Channels of the output.
        kernel_size: Odd side of the kernel, in pixels.
        stride: In pixels. Defaults to 1.
        dilation: Distance of the kernel's taps, in pixels; above 1 the stride
            must be 1. Defaults to 1.
        groups: Defaults to 1.
        name: Name of the layer. A padding layer before it is called the same
            with `_pad` for `_conv`.
        of: Channels of all paths together when this is one path of several,
            so that every form starts from the same distribution. Defaults to
            `filters`.

    Returns:
        Tensor `(batch, height / stride, width / stride, filters)`.
    """
    padding = "same"
    if kernel_size > 1 and stride > 1:
        # "same" would put the odd pixel at the end only; published weights
        # were trained with the same padding on both sides.
        x = keras.layers.ZeroPadding2D(
            kernel_size // 2, name=name.replace("_conv", "_pad")
        )(x)
        padding = "valid"
    # He et al. 2015 over the fan-out, as the paper's released code has it.
    stddev = (2 / (kernel_size**2 * (of or filters))) ** 0.5
    layer = keras.layers.Conv2D if groups == 1 else GroupedConv2D
    return layer(
        filters,
        kernel_size,
        strides=stride,
        padding=padding,
        dilation_rate=dilation,
        groups=groups,
        use_bias=False,
        kernel_initializer=keras.initializers.RandomNormal(stddev=stddev),
        name=name,
    )(x)


def batch_norm(x, *, name):
    """Batch norm over the channels, with the constants of published weights."""
    return FusedBatchNormalization(
        axis=channel_axis(),
        epsilon=BATCH_NORM_EPSILON,
        momentum=BATCH_NORM_MOMENTUM,
        name=name,
    )(x)


def batch_norm_relu(x, *, name, path=""):
    """Batch norm and ReLU, named `{name}_bn{path}` and `{name}_relu{path}`."""
    x = batch_norm(x, name=f"{name}_bn{path}")
    return keras.layers.ReLU(name=f"{name}_relu{path}")(x)


def channel_axis():
    """The channels' axis in `keras.config.image_data_format()`."""
    return -1 if keras.config.image_data_format() == "channels_last" else 1
