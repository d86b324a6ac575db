"""The bottleneck block, and the three forms of its aggregated transform.

    y = x + T_1(x) + ... + T_C(x)           (paper, equation 2)

Each T is 1x1 - 3x3 - 1x1 with its own weights. `branches` computes the sum as
written, `concatenated` joins the paths before the last 1x1, and `grouped`
computes them in one grouped convolution; section 3.3 of the paper shows that
they are the same function. `keras_resnext.names` has the layers' names.
"""

import keras

from keras_resnext.layers import FusedBatchNormalization
from keras_resnext.layers import GroupedConv2D
from keras_resnext.layers import PointwiseConv2D
from keras_resnext.names import path_suffix

# As in torch, where all published weights were trained; its momentum of 0.1
# weights the new value, Keras' 0.9 the old one.
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

    The shortcut is the input itself if shapes agree, else a strided 1x1
    projection (type B).

    Args:
        x: Tensor `(batch, height, width, channels)`, in the order of
            `keras.config.image_data_format()`.
        transform: A function of `TRANSFORMS`.
        cardinality: Number of paths, C.
        width: Channels inside one path, d.
        filters: Channels of the output.
        stride: Stride of the 3x3 convolution and of the projection.
        name: Prefix of the layer names, such as `"conv2_block1"`.
        dilation: Dilation of the 3x3 convolution, in pixels; above 1 the
            stride must be 1. Defaults to 1.
        residual: Whether there is a shortcut. Defaults to `True`.
        drop_path_rate: Probability that training skips the transform of an
            image (stochastic depth, arXiv 1603.09382). Defaults to 0.

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
        # One draw per image, the same for all pixels and channels.
        x = keras.layers.Dropout(
            drop_path_rate, noise_shape=(None, 1, 1, 1), name=f"{name}_drop"
        )(x)
    if residual:
        x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return keras.layers.ReLU(name=f"{name}_out")(x)


def grouped(x, cardinality, width, filters, stride, dilation, name):
    """Fig. 3(c): all paths at once, kept apart by a grouped 3x3 convolution.

    The fastest form, for training and deployment.
    """
    total = cardinality * width
    x = _two_convolutions(
        x, total, stride, dilation, name, groups=cardinality, total=total
    )
    x = convolution(x, filters, 1, name=f"{name}_3_conv")
    return batch_norm(x, name=f"{name}_3_bn")


def concatenated(x, cardinality, width, filters, stride, dilation, name):
    """Fig. 3(b): separate paths, concatenated before the last 1x1.

    For reading, and for runtimes without grouped convolution. ResNeXt-50
    takes 1.7 to 2.1 times as long as grouped (224x224, batches of 8 and 1, in
    a graph on 2 AVX-512 cores) and 14 seconds to build.
    """
    paths = list(_paths(x, cardinality, width, stride, dilation, name))
    x = paths[0]
    if cardinality > 1:
        x = keras.layers.Concatenate(
            axis=channel_axis(), name=f"{name}_2_concat"
        )(paths)
    x = convolution(x, filters, 1, name=f"{name}_3_conv")
    return batch_norm(x, name=f"{name}_3_bn")


def branches(x, cardinality, width, filters, stride, dilation, name):
    """Fig. 3(a): separate paths, each with its own last 1x1, summed.

    For reading: equation 2 as it stands. ResNeXt-50 takes 2.7 to 3.2 times as
    long as grouped, measured as for `concatenated`. Batch norm follows the
    first two convolutions of each path, and the sum.
    """
    paths = [
        convolution(y, filters, 1, name=f"{name}_3_conv{path_suffix(i)}")
        for i, y in enumerate(
            _paths(x, cardinality, width, stride, dilation, name), start=1
        )
    ]
    x = paths[0]
    if cardinality > 1:
        x = keras.layers.Add(name=f"{name}_3_sum")(paths)
    return batch_norm(x, name=f"{name}_3_bn")


def _paths(x, cardinality, width, stride, dilation, name):
    """The first two convolutions of each path, one path after another."""
    total = cardinality * width
    for i in range(1, cardinality + 1):
        yield _two_convolutions(
            x, width, stride, dilation, name, path_suffix(i), total=total
        )


def _two_convolutions(
    x, width, stride, dilation, name, path="", *, groups=1, total
):
    """1x1 and 3x3 convolutions, each with batch norm and ReLU."""
    x = convolution(x, width, 1, name=f"{name}_1_conv{path}", of=total)
    x = batch_norm_relu(x, name=f"{name}_1", path=path)
    x = convolution(
        x,
        width,
        3,
        stride,
        dilation=dilation,
        groups=groups,
        name=f"{name}_2_conv{path}",
        of=total,
    )
    return batch_norm_relu(x, name=f"{name}_2", path=path)


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
    """A convolution without bias, padded equally on all sides.

    Args:
        x: Tensor `(batch, height, width, channels)`.
        filters: Channels of the output.
        kernel_size: Odd side of the kernel, in pixels.
        stride: In pixels. Defaults to 1.
        dilation: Distance of the kernel's taps, in pixels; above 1 the stride
            must be 1. Defaults to 1.
        groups: Defaults to 1.
        name: Name of the layer, with `_conv`; a padding layer before it has
            `_pad` instead.
        of: Channels of all paths together if this is one of several paths,
            so that all forms are initialised alike. Defaults to `filters`.

    Returns:
        Tensor `(batch, height / stride, width / stride, filters)`.
    """
    padding = "same"
    if kernel_size > 1 and stride > 1:
        # "same" would pad the end only; published weights were trained with
        # padding on both sides.
        x = keras.layers.ZeroPadding2D(
            kernel_size // 2, name=name.replace("_conv", "_pad")
        )(x)
        padding = "valid"
    # He et al. 2015, fan-out, as in the paper's released code.
    stddev = (2 / (kernel_size**2 * (of or filters))) ** 0.5
    layer = keras.layers.Conv2D
    if groups > 1:
        layer = GroupedConv2D
    elif kernel_size == 1:
        layer = PointwiseConv2D
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
