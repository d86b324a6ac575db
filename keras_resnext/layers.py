"""Fast layers: grouped and 1x1 convolutions, and fused batch norm."""

import contextlib
import functools

import keras

from keras_resnext.cpu import instruction_sets
from keras_resnext.cpu import warn_without_onednn
from keras_resnext.private import onednn_is_on
from keras_resnext.quiet import hidden_stderr

IMPLEMENTATIONS = ("native", "split")
POINTWISE_IMPLEMENTATIONS = ("product", "convolution")

# Of grouped and of pointwise convolutions; set by the `use_` functions, read
# by every layer.
_forced = {}


@keras.saving.register_keras_serializable(package="keras_resnext")
class GroupedConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose groups run on TensorFlow's own convolution.

    Keras compiles every grouped convolution with XLA on the TensorFlow
    backend. On a CPU that takes twice the time for inference and 25 times or
    more for training, and leaves functions in the graph that no ONNX runtime
    can load (Keras 3.15, `keras/src/backend/tensorflow/nn.py`, `conv`). This
    layer calls `tf.nn.conv2d` instead or, where that has no gradient,
    convolves each group separately. `conv_implementation` tells which of the
    two is used for a dtype on this machine.

    Arguments, kernel `(height, width, channels_in / groups, filters)`, bias
    and config are those of `keras.layers.Conv2D`: weights fit both, and
    `keras.layers.Conv2D.from_config(layer.get_config())` is the same layer
    with Keras' implementation. On other backends, and with `groups=1`, this
    layer uses Keras' implementation too.

    Call arguments:
        inputs: Tensor `(batch, height, width, channels)`, or
            `(batch, channels, height, width)` with
            `data_format="channels_first"`.

    Returns:
        Tensor `(batch, new_height, new_width, filters)`, or `filters` second
        with `"channels_first"`.

    Raises:
        ValueError: if `groups` does not divide the channels or `filters`.

    Example:

    >>> layer = GroupedConv2D(128, 3, groups=32, padding="same")
    >>> layer(keras.random.normal((1, 56, 56, 128))).shape
    TensorShape([1, 56, 56, 128])

    Reference:
        Xie et al., arXiv 1611.05431, section 3.3, "Relation to Grouped
        Convolutions".
    """

    def convolution_op(self, inputs, kernel):
        if self.groups == 1 or keras.backend.backend() != "tensorflow":
            return super().convolution_op(inputs, kernel)

        channels_first = self.data_format == "channels_first"
        if channels_first:  # TensorFlow has no kernel for it on CPUs
            inputs = keras.ops.transpose(inputs, (0, 2, 3, 1))
        native = conv_implementation(inputs.dtype.name) == "native"
        convolve = _native_conv2d if native else _split_conv2d
        outputs = convolve(
            inputs,
            kernel,
            groups=self.groups,
            strides=self.strides,
            padding=self.padding.upper(),
            dilations=self.dilation_rate,
        )
        if channels_first:
            outputs = keras.ops.transpose(outputs, (0, 3, 1, 2))
        return outputs


@keras.saving.register_keras_serializable(package="keras_resnext")
class PointwiseConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` with 1x1 kernels that train as matrix products.

    Nearly all of ResNeXt's multiply-adds are in such convolutions. oneDNN's
    kernels for the gradient of their weights reach half the rate of a matrix
    product on CPUs with AVX2 only; with AVX-512 they are as fast.
    `pointwise_implementation` tells what is used on this machine. In
    inference it is always a convolution, which is fused with batch norm and
    ReLU.

    Arguments, weights, config and, up to rounding, results are those of
    `keras.layers.Conv2D`. Kernels of other sizes, strides, groups and
    `"channels_first"` use Keras' implementation, as other backends do.

    Call arguments:
        inputs: Tensor `(batch, height, width, channels)`.
        training: Whether gradients will be asked for.

    Returns:
        Tensor `(batch, height, width, filters)`.

    Example:

    >>> layer = PointwiseConv2D(256, 1, use_bias=False)
    >>> layer(keras.random.normal((8, 56, 56, 64)), training=True).shape
    TensorShape([8, 56, 56, 256])
    """

    def call(self, inputs, training=None):
        if not (training and self._is_product(inputs)):
            return super().call(inputs)

        import tensorflow as tf

        pixels = tf.reshape(inputs, (-1, inputs.shape[-1]))
        outputs = tf.matmul(pixels, self.kernel[0, 0])
        if self.bias is not None:
            outputs += self.bias
        outputs = tf.reshape(outputs, (*tf.unstack(tf.shape(inputs))[:-1], -1))
        outputs = tf.ensure_shape(outputs, (*inputs.shape[:-1], self.filters))
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs

    def _is_product(self, inputs):
        """Whether a call in training is a matrix product."""
        return (
            keras.backend.backend() == "tensorflow"
            and self.kernel_size == self.strides == (1, 1)
            and self.groups == 1
            and self.data_format == "channels_last"
            and pointwise_implementation(inputs.dtype.name) == "product"
        )


@keras.saving.register_keras_serializable(package="keras_resnext")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` that trains in one kernel.

    In training, Keras computes batch norm with a dozen operations that each
    pass over the activations, in float32 whatever the dtype policy. This
    layer calls TensorFlow's fused kernel, which reads and writes them in the
    layer's dtype and keeps statistics in float32. Arguments, variables,
    config and, up to rounding, results are those of
    `keras.layers.BatchNormalization`: its moving variance averages the
    *biased* variance of each batch, so the kernel's unbiased one is
    multiplied by (n - 1) / n, where n is the number of values of a channel in
    a batch.

    Keras' implementation is used in inference, while the layer is frozen, on
    other backends, and for what the kernel does not support: inputs that are
    not `(batch, height, width, channels)`, float64, a mask, `renorm=True`,
    and `synchronized=True`, where replicas share statistics.

    Call arguments:
        inputs: Tensor `(batch, height, width, channels)`, or of any rank.
        training: Whether to normalise by this batch's statistics and update
            the moving ones.
        mask: Which positions count, see Keras.

    Returns:
        Tensor of the same shape as the inputs.

    Example:

    >>> layer = FusedBatchNormalization(momentum=0.9, epsilon=1e-5)
    >>> layer(keras.random.normal((8, 56, 56, 128)), training=True).shape
    TensorShape([8, 56, 56, 128])

    Reference:
        Ioffe and Szegedy, arXiv 1502.03167, algorithm 1.
    """

    def call(self, inputs, training=None, mask=None):
        if not (
            training and self.trainable and mask is None and self._fits(inputs)
        ):
            return super().call(inputs, training=training, mask=mask)

        import tensorflow as tf

        channels = inputs.shape[-1]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma if self.scale else tf.ones(channels),
            offset=self.beta if self.center else tf.zeros(channels),
            mean=tf.zeros(0),  # empty: taken from the batch
            variance=tf.zeros(0),
            epsilon=self.epsilon,
            is_training=True,
        )
        n = tf.cast(tf.size(inputs) // channels, "float32")
        self._move(self.moving_mean, mean)
        self._move(self.moving_variance, variance * ((n - 1) / n))
        return outputs

    def _fits(self, inputs):
        """Whether TensorFlow's kernel computes what Keras would."""
        return (
            keras.backend.backend() == "tensorflow"
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            # Keras before 3.14 has no `renorm`.
            and not (self.synchronized or getattr(self, "renorm", False))
            and inputs.dtype.name == self.compute_dtype
            and self.compute_dtype in ("float16", "bfloat16", "float32")
            and self.variable_dtype == "float32"
        )

    def _move(self, moving, value):
        moving.assign(moving * self.momentum + value * (1 - self.momentum))


def conv_implementation(dtype: str = "float32") -> str:
    """How grouped convolutions of a dtype are computed in this process.

    Tested once for each dtype, by differentiating a tiny grouped convolution
    on the device that TensorFlow places it on. `"native"` is one
    `tf.nn.conv2d`. `"split"` is one convolution per group, for where the
    native one has no gradient: without oneDNN, where inference fused with
    batch norm and ReLU fails too, and with float16 or float64 on CPUs.
    `keras-resnext list --devices` shows who decided about oneDNN.

    Args:
        dtype: Name of the compute dtype. Defaults to `"float32"`.

    Returns:
        `"native"` or `"split"`.

    Example:

    >>> keras_resnext.layers.conv_implementation("float16")  # on a CPU
    'split'
    """
    return _forced.get("grouped") or _supported(dtype)


def use_conv_implementation(
    implementation: str,
) -> contextlib.AbstractContextManager[None]:
    """Set the implementation of every `GroupedConv2D` called in the context.

    For tests and exporters: a graph traced with `"native"` has one grouped
    convolution per layer, whatever this machine can differentiate. All
    threads are affected, because `tf.distribute` traces replicas in threads.

    Args:
        implementation: `"native"` or `"split"`, see `conv_implementation`.

    Raises:
        ValueError: if `implementation` is neither.

    Example:

    >>> with use_conv_implementation("split"):
    ...     outputs = model(images)
    """
    return _use("grouped", IMPLEMENTATIONS, implementation)


def pointwise_implementation(dtype: str = "float32") -> str:
    """How 1x1 convolutions of a dtype are computed in training.

    Args:
        dtype: Name of the compute dtype. Defaults to `"float32"`.

    Returns:
        `"product"`, a matrix product, in float32 on a CPU with AVX2 and no
        AVX-512 where TensorFlow uses oneDNN and has no other device: a
        training step of ResNeXt-50 takes 0.96 of the time there
        (`benchmarks/NOTES.md`). Elsewhere `"convolution"`.

    Example:

    >>> keras_resnext.layers.pointwise_implementation("bfloat16")
    'convolution'
    """
    if "pointwise" in _forced:
        return _forced["pointwise"]
    faster = dtype == "float32" and _products_are_faster()
    return "product" if faster else "convolution"


def use_pointwise_implementation(
    implementation: str,
) -> contextlib.AbstractContextManager[None]:
    """Set the implementation of every `PointwiseConv2D` in the context.

    Args:
        implementation: `"product"` or `"convolution"`, see
            `pointwise_implementation`.

    Raises:
        ValueError: if `implementation` is neither.

    Example:

    >>> with use_pointwise_implementation("convolution"):
    ...     outputs = model(images, training=True)
    """
    return _use("pointwise", POINTWISE_IMPLEMENTATIONS, implementation)


@contextlib.contextmanager
def _use(kind, choices, implementation):
    """Set the implementation of one kind of layer for a while."""
    if implementation not in choices:
        raise ValueError(
            f"`implementation` must be {' or '.join(choices)}; got "
            f"{implementation!r}."
        )
    before = _forced.copy()
    _forced[kind] = implementation
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


@functools.cache
def _products_are_faster():
    """Whether this is a machine on which that was measured."""
    import tensorflow as tf

    kinds = {device.device_type for device in tf.config.list_physical_devices()}
    sets = instruction_sets()
    is_avx2 = "avx2" in sets and "avx512f" not in sets
    return is_avx2 and kinds == {"CPU"} and onednn_is_on()


@functools.cache
def _supported(dtype):
    """The fastest implementation that has a gradient, by trying it."""
    import tensorflow as tf

    # Layers are mostly called while a graph is traced; the test must run, not
    # become part of the graph. Gradient tapes do not record in this scope, so
    # it calls the gradient's operations itself.
    with tf.init_scope():
        how = {"strides": [1, 1, 1, 1], "padding": "SAME"}
        with hidden_stderr():  # TensorFlow warns of what is tried here
            inputs = outputs = tf.ones((1, 3, 3, 4), dtype)
            kernel = tf.ones((3, 3, 2, 4), dtype)
            try:
                tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=inputs.shape,
                    filter=kernel,
                    out_backprop=outputs,
                    **how,
                )
                tf.raw_ops.Conv2DBackpropFilter(
                    input=inputs,
                    filter_sizes=kernel.shape,
                    out_backprop=outputs,
                    **how,
                )
                return "native"
            except (
                tf.errors.InvalidArgumentError,
                tf.errors.UnimplementedError,
            ):
                pass
    warn_without_onednn()
    return "split"


def _native_conv2d(inputs, kernel, *, groups, strides, padding, dilations):
    """One operation: the kernel's shape tells TensorFlow the groups."""
    import tensorflow as tf

    del groups
    return tf.nn.conv2d(inputs, kernel, strides, padding, dilations=dilations)


def _split_conv2d(inputs, kernel, *, groups, strides, padding, dilations):
    """One convolution per group."""
    import tensorflow as tf

    # Not `conv2d`, whose dilated gradient some CPUs lack.
    return tf.concat(
        [
            tf.nn.convolution(x, k, strides, padding, dilations=dilations)
            for x, k in zip(
                tf.split(inputs, groups, axis=-1),
                tf.split(kernel, groups, axis=-1),
                strict=True,
            )
        ],
        axis=-1,
    )
