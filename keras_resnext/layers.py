"""Layers that keep ResNeXt fast: grouped convolution, fused batch norm."""

import contextlib
import functools
from collections.abc import Iterator

import keras

PATHS = ("native", "split")

_forced_path = None  # set by `use_conv_implementation`, read by every layer


@keras.saving.register_keras_serializable(package="keras_resnext")
class GroupedConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose groups run on TensorFlow's own convolution.

    Keras compiles every grouped convolution with XLA on the TensorFlow
    backend. On a CPU that doubles the time of inference, multiplies the time
    of training by 25 or more, and leaves functions in the graph that no ONNX
    runtime can load (keras 3.15, `keras/src/backend/tensorflow/nn.py`, `conv`).
    This layer calls `tf.nn.conv2d` instead, and where that cannot be
    differentiated it convolves each group on its own, which always can.
    `conv_implementation` tells which of the two a dtype gets here.

    Arguments, kernel `(height, width, channels_in / groups, filters)`, bias
    and config are those of `keras.layers.Conv2D`: weights move between the
    two, and `keras.layers.Conv2D.from_config(layer.get_config())` is the same
    layer on Keras' path. On other backends than TensorFlow, and with
    `groups=1`, it is Keras' own convolution.

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
        if channels_first:  # TensorFlow has no such kernel on CPUs.
            inputs = keras.ops.transpose(inputs, (0, 2, 3, 1))
        path = conv_implementation(inputs.dtype.name)
        convolve = _native_conv2d if path == "native" else _split_conv2d
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
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` that trains in one kernel.

    In training Keras spells batch norm out as a dozen operations that each
    pass over the activations, in float32 whatever the policy. This layer
    calls TensorFlow's fused kernel, which reads and writes them in the
    layer's own dtype and keeps statistics in float32. Arguments, variables,
    config and results are those of `keras.layers.BatchNormalization`, to
    rounding: the moving variance averages the *biased* variance of each
    batch, as Keras defines it, so the kernel's unbiased one is multiplied by
    (n - 1) / n, n being the values a channel has in a batch.

    Keras' own computation is used in inference and while frozen, on other
    backends than TensorFlow, and for what the kernel does not know: inputs
    that are not `(batch, height, width, channels)`, float64, a mask,
    `renorm=True`, and `synchronized=True`, where replicas share statistics.

    Call arguments:
        inputs: Tensor `(batch, height, width, channels)`, or of any rank.
        training: Whether to normalise by this batch's statistics and update
            the moving ones.
        mask: Which positions count, see Keras.

    Returns:
        Tensor of the inputs' shape.

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
    """How grouped convolutions of this dtype run in this process.

    The answer is found once for each dtype, by differentiating a tiny grouped
    convolution where TensorFlow would place it. `"native"` is one
    `tf.nn.conv2d`; `"split"` is one convolution a group, for places where the
    native one has no gradient: without oneDNN (`TF_ENABLE_ONEDNN_OPTS=0`),
    where inference fused with batch norm and ReLU fails too, and with float16
    or float64 on CPUs.

    Args:
        dtype: Name of the compute dtype. Defaults to `"float32"`.

    Returns:
        `"native"` or `"split"`.

    Example:

    >>> keras_resnext.layers.conv_implementation("float16")  # on a CPU
    'split'
    """
    return _forced_path or _probed_path(dtype)


@contextlib.contextmanager
def use_conv_implementation(path: str) -> Iterator[None]:
    """Force the path of every `GroupedConv2D` called inside the context.

    For tests, and for exporters: a graph traced under `"native"` holds one
    grouped convolution a layer whatever this machine can differentiate. It
    holds for all threads, because `tf.distribute` traces replicas in threads.

    Args:
        path: `"native"` or `"split"`, see `conv_implementation`.

    Raises:
        ValueError: if `path` is neither.

    Example:

    >>> with use_conv_implementation("split"):
    ...     outputs = model(images)
    """
    global _forced_path
    if path not in PATHS:
        raise ValueError(f'`path` must be "native" or "split"; got {path!r}.')
    before, _forced_path = _forced_path, path
    try:
        yield
    finally:
        _forced_path = before


@functools.cache
def _probed_path(dtype):
    import tensorflow as tf

    # Layers are mostly called while a graph is being traced; the probe must
    # run, not become part of that graph. Gradient tapes do not record in this
    # scope, so it calls what they would.
    with tf.init_scope():
        inputs = outputs = tf.ones((1, 3, 3, 4), dtype)
        kernel = tf.ones((3, 3, 2, 4), dtype)
        how = {"strides": [1, 1, 1, 1], "padding": "SAME"}
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
        except (
            tf.errors.InvalidArgumentError,
            tf.errors.UnimplementedError,
        ):
            return "split"
    return "native"


def _native_conv2d(inputs, kernel, *, groups, strides, padding, dilations):
    """One op: TensorFlow reads the groups off the kernel's shape."""
    import tensorflow as tf

    del groups
    return tf.nn.conv2d(inputs, kernel, strides, padding, dilations=dilations)


def _split_conv2d(inputs, kernel, *, groups, strides, padding, dilations):
    """One convolution a group: output block g sees input block g only."""
    import tensorflow as tf

    # `convolution`, because `conv2d` has no dilated gradient on every CPU.
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
