"""Layers that round in training as int8 kernels do: fake quantisation.

Values stay float32 and become multiples of a step. The gradient passes the
rounding as if it were not there, and is zero where a range clips
(straight-through estimator, Bengio et al., arXiv 1308.3432). TensorFlow only.
"""

import dataclasses
import math

import keras

from keras_resnext.layers import GroupedConv2D

BITS = range(2, 9)
# Instead of a step of zero, for filters whose weights are all zero.
SMALLEST_STEP = 1e-12 / 127
# And for what is always zero.
_SMALLEST_RANGE = 1e-6
# Filters scaled by less are not scaled while statistics are taken, because
# they are divided by it again; trained batch norms have such ones.
_SMALLEST_SCALE = 1e-6


@dataclasses.dataclass(frozen=True)
class Observer:
    """How ranges of activations are learned, and when they are frozen.

    Args:
        momentum: Of the moving averages of the smallest and the largest
            value. Defaults to 0.99.
        freeze_ranges_after: Training steps after which ranges are frozen.
            Defaults to 2000.
        freeze_statistics_after: Training steps after which batch norms use
            their moving statistics in training too, so that what is trained
            is what an exported file computes. Defaults to 1000.

    Raises:
        ValueError: if a number is out of range.

    Example:

    >>> Observer(freeze_statistics_after=0).momentum
    0.99
    """

    momentum: float = 0.99
    freeze_ranges_after: int = 2000
    freeze_statistics_after: int = 1000

    def __post_init__(self):
        if not 0 <= self.momentum < 1:
            raise ValueError(
                "`momentum` must be at least 0 and below 1; got "
                f"{self.momentum!r}."
            )
        for name in ("freeze_ranges_after", "freeze_statistics_after"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`{name}` must be 0 or more; got {value!r}.")


def fake_quantize_weights(kernel, bits=8, per_channel=True):
    """A kernel rounded to a symmetric grid of `2**bits - 1` steps.

    Args:
        kernel: Tensor `(..., filters)`.
        bits: 2 to 8. Defaults to 8.
        per_channel: Whether each filter has a step of its own, the largest
            absolute weight over `2**(bits - 1) - 1`. Defaults to `True`.

    Returns:
        Tensor of the same shape. Its gradient is the kernel's.

    Example:

    >>> fake_quantize_weights(keras.ops.array([[0.0, 0.3, 1.0]]), bits=2,
    ...                       per_channel=False)[0]
    [0.0, 0.0, 1.0]
    """
    step = weight_step(kernel, bits, per_channel)
    return _rounded(kernel, step)


def weight_step(kernel, bits=8, per_channel=True):
    """The step that `fake_quantize_weights` rounds to.

    Args:
        kernel: Tensor `(..., filters)`.
        bits: 2 to 8. Defaults to 8.
        per_channel: See `fake_quantize_weights`. Defaults to `True`.

    Returns:
        Tensor `(filters,)`, or a scalar.

    Example:

    >>> weight_step(keras.ops.array([[0.0, 0.3, 1.0]]), bits=2).shape
    TensorShape([3])
    """
    import tensorflow as tf

    axes = list(range(len(kernel.shape) - 1)) if per_channel else None
    limit = tf.reduce_max(tf.abs(kernel), axes)
    return tf.maximum(limit / (2 ** (bits - 1) - 1), SMALLEST_STEP)


def _rounded(values, step):
    """Multiples of a step; the gradient is that of the values."""
    import tensorflow as tf

    return values + tf.stop_gradient(tf.round(values / step) * step - values)


@keras.saving.register_keras_serializable(package="keras_resnext")
class FakeQuantization(keras.layers.Layer):
    """Activations rounded to the steps of an asymmetric eight-bit tensor.

    The range always contains zero, which is one of its steps. In training it
    follows the activations, see `Observer`; before the first training step,
    activations pass as they are.

    Args:
        bits: 2 to 8. Defaults to 8.
        observer: An `Observer`, or its fields as a dict. Defaults to
            `Observer()`.

    Call arguments:
        inputs: Tensor of any shape, float32.
        training: Whether to move the range.

    Returns:
        Tensor of the same shape, and its step, a scalar; 0 before there is a
        range.

    Example:

    >>> layer = FakeQuantization()
    >>> values = keras.random.uniform((8, 56, 56, 64))
    >>> rounded, step = layer(values, training=True)
    >>> rounded.shape
    TensorShape([8, 56, 56, 64])

    Reference:
        Jacob et al., arXiv 1712.05877, section 3.
    """

    def __init__(self, bits=8, observer=None, **kwargs):
        super().__init__(**kwargs)
        self.bits = bits
        self.observer = as_observer(observer)
        self.observing = False  # whether any call widens the range

    def build(self, input_shape):
        self.minimum, self.maximum, self.steps = (
            self.add_weight(
                shape=(),
                initializer="zeros",
                dtype=dtype,
                trainable=False,
                name=name,
            )
            for name, dtype in (
                ("minimum", "float32"),
                ("maximum", "float32"),
                ("steps", "int32"),
            )
        )

    def call(self, inputs, training=None):
        import tensorflow as tf

        if self.observing:
            self._widen(inputs)
            return inputs, tf.zeros(())
        minimum, maximum = self.minimum.value, self.maximum.value
        if training:
            minimum, maximum = self._move(inputs)
        outputs = tf.cond(
            maximum > minimum,
            lambda: tf.quantization.fake_quant_with_min_max_vars(
                inputs, minimum, maximum, self.bits
            ),
            lambda: inputs,
        )
        return outputs, (maximum - minimum) / (2**self.bits - 1)

    def _move(self, inputs):
        """The range after this batch, which is stored too."""
        import tensorflow as tf

        observer, steps = self.observer, self.steps.value
        before = tf.stack([self.minimum.value, self.maximum.value])
        # An empty range has nothing to keep.
        momentum = tf.where(before[1] > before[0], observer.momentum, 0.0)
        after = tf.cond(
            steps < observer.freeze_ranges_after,
            lambda: momentum * before + (1 - momentum) * _range(inputs),
            lambda: before,
        )
        minimum, maximum = tf.unstack(tf.stop_gradient(after))
        self.minimum.assign(minimum)
        self.maximum.assign(maximum)
        self.steps.assign(steps + 1)
        return minimum, maximum

    def _widen(self, inputs):
        """Let the range contain these activations."""
        import tensorflow as tf

        minimum, maximum = tf.unstack(_range(inputs))
        self.minimum.assign(tf.minimum(self.minimum.value, minimum))
        self.maximum.assign(tf.maximum(self.maximum.value, maximum))
        self.steps.assign(tf.maximum(self.steps.value, 1))

    @property
    def limits(self) -> tuple[float, float]:
        """The range learned, in float32.

        Raises:
            ValueError: if there is none yet.
        """
        if not int(self.steps):
            raise ValueError(
                "`model` must have been trained or calibrated; "
                f"{self.name} has no range yet."
            )
        low, high = float(self.minimum), float(self.maximum)
        return low, high if high > low else low + _SMALLEST_RANGE

    def get_config(self):
        return super().get_config() | {
            "bits": self.bits,
            "observer": dataclasses.asdict(self.observer),
        }


class FixedQuantization(keras.layers.Layer):
    """`FakeQuantization` whose range is a constant, which converters read.

    Args:
        limits: Smallest and largest value; `None` to round nothing.
        bits: 2 to 8. Defaults to 8.

    Call arguments:
        inputs: Tensor of any shape, float32.

    Returns:
        What `FakeQuantization` returns.

    Example:

    >>> rounded, step = FixedQuantization((0.0, 6.0))(keras.ops.array([[1.0]]))
    """

    def __init__(self, limits, bits=8, **kwargs):
        super().__init__(**kwargs)
        self.limits = limits
        self.bits = bits

    def call(self, inputs):
        import tensorflow as tf

        if self.limits is None:
            return inputs, tf.zeros(())
        outputs = tf.quantization.fake_quant_with_min_max_args(
            inputs, *self.limits, self.bits
        )
        low, high = self.limits
        return outputs, tf.constant((high - low) / (2**self.bits - 1))


@keras.saving.register_keras_serializable(package="keras_resnext")
class QuantizedConv2D(GroupedConv2D):
    """A convolution and the batch norm after it, with rounded weights.

    The kernel is multiplied by what the batch norm scales with, and rounded
    as `fake_quantize_weights` does: as in the exported file, where a batch
    norm has gone into the convolution. Until the statistics are frozen
    (`Observer`), training normalises by each batch's statistics: the kernel
    is scaled with the moving ones, rounded, and divided by the scale again
    before it is used. After that the bias, which then contains the shift of
    the batch norm, is rounded to the product of both steps, as int8 kernels
    add it.

    Args:
        *args, **kwargs: Those of `keras.layers.Conv2D`.
        batch_norm: Epsilon, momentum, center, scale and trainable of the
            batch norm, as a dict of its config; `None` for a convolution
            without. Defaults to `None`.
        bits: Of the weights, 2 to 8. Defaults to 8.
        per_channel: See `fake_quantize_weights`. Defaults to `True`.
        observer: An `Observer`, or its fields as a dict. Defaults to
            `Observer()`.

    Call arguments:
        inputs: Tensor `(batch, height, width, channels)`, float32.
        step: Of the inputs, a scalar; 0 to leave the bias as it is. Defaults
            to 0.
        training: Whether gradients will be asked for.

    Returns:
        Tensor `(batch, new_height, new_width, filters)`.

    Example:

    >>> layer = QuantizedConv2D(128, 3, groups=32, use_bias=False,
    ...                         batch_norm={"epsilon": 1e-5, "momentum": 0.9})
    >>> layer(keras.random.normal((1, 56, 56, 128))).shape
    TensorShape([1, 54, 54, 128])

    Reference:
        Krishnamoorthi, arXiv 1806.08342, section 3.2.2.
    """

    def __init__(
        self,
        *args,
        batch_norm=None,
        bits=8,
        per_channel=True,
        observer=None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.batch_norm = batch_norm and dict(batch_norm)
        self.bits = bits
        self.per_channel = per_channel
        self.observer = as_observer(observer)

    def build(self, input_shape):
        super().build(input_shape)
        self.gamma = self.beta = None
        if not self.batch_norm:
            return

        def add(name, initializer, trainable=False, **options):
            return self.add_weight(
                initializer=initializer,
                trainable=trainable,
                name=name,
                **{"shape": (self.filters,), **options},
            )

        trains = self.batch_norm.get("trainable", True)
        if self.batch_norm.get("scale", True):
            self.gamma = add("gamma", "ones", trains)
        if self.batch_norm.get("center", True):
            self.beta = add("beta", "zeros", trains)
        self.moving_mean = add("moving_mean", "zeros")
        self.moving_variance = add("moving_variance", "ones")
        self.steps = add("steps", "zeros", shape=(), dtype="int32")

    @property
    def norm_weights(self):
        """What the batch norm trains: gamma and beta, as far as it has them."""
        return [x for x in (self.gamma, self.beta) if x is not None]

    def folded(self):
        """Kernel and bias for inference, neither rounded.

        Returns:
            Tensors `(height, width, channels / groups, filters)` and
            `(filters,)`; `None` for a bias that the layer does not have.
        """
        if not self.batch_norm:
            return self.kernel, self.bias
        scale = self._scale()
        bias = -self.moving_mean * scale
        if self.bias is not None:
            bias += self.bias * scale
        if self.beta is not None:
            bias += self.beta
        return self.kernel * scale, bias

    def call(self, inputs, step=0.0, training=None):
        import tensorflow as tf

        if not self.batch_norm:
            # What a batch norm follows has no activation.
            return self.activation(self._with_moving_statistics(inputs, step))
        if not training:
            return self._with_moving_statistics(inputs, step)
        steps = self.steps.value
        trains = self.trainable and self.batch_norm.get("trainable", True)
        moves = (steps < self.observer.freeze_statistics_after) & trains
        outputs, mean, variance = tf.cond(
            moves,
            lambda: self._with_batch_statistics(inputs),
            lambda: (
                self._with_moving_statistics(inputs, step),
                self.moving_mean.value,
                self.moving_variance.value,
            ),
        )
        momentum = self.batch_norm["momentum"]
        for moving, new in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            moving.assign(
                tf.where(
                    moves,
                    momentum * moving + (1 - momentum) * new,
                    moving.value,
                )
            )
        self.steps.assign(steps + 1)
        return outputs

    def _with_moving_statistics(self, inputs, step):
        """As the exported file computes it."""
        import tensorflow as tf

        kernel, bias = self.folded()
        outputs = self.convolution_op(inputs, self._rounded_kernel(kernel))
        if bias is None:
            return outputs
        unit = step * weight_step(kernel, self.bits, self.per_channel)
        # Beyond 32 bits, files have a larger step.
        fits = tf.abs(bias) < unit * 2.0**31
        unit = tf.where(fits, unit, 1.0)
        return outputs + tf.where(fits, _rounded(bias, unit), bias)

    def _with_batch_statistics(self, inputs):
        """Outputs, and the mean and variance of this batch."""
        import tensorflow as tf

        scale = tf.stop_gradient(self._scale())
        scale = tf.where(tf.abs(scale) > _SMALLEST_SCALE, scale, 1.0)
        kernel = self._rounded_kernel(self.kernel * scale)
        # Dividing the kernel divides the outputs, which are mostly larger.
        outputs = self.convolution_op(inputs, kernel / scale)
        if self.bias is not None:
            outputs += self.bias
        ones, zeros = tf.ones(self.filters), tf.zeros(self.filters)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=outputs,
            scale=ones if self.gamma is None else self.gamma,
            offset=zeros if self.beta is None else self.beta,
            mean=tf.zeros(0),  # empty: taken from the batch
            variance=tf.zeros(0),
            epsilon=self.batch_norm["epsilon"],
            is_training=True,
        )
        # Of all values but one, as in `FusedBatchNormalization`.
        n = tf.cast(tf.size(outputs) // self.filters, "float32")
        return outputs, mean, variance * ((n - 1) / n)

    def _rounded_kernel(self, kernel):
        return fake_quantize_weights(kernel, self.bits, self.per_channel)

    def _scale(self):
        """What the batch norm multiplies each filter with in inference."""
        scale = keras.ops.rsqrt(
            self.moving_variance + self.batch_norm["epsilon"]
        )
        return scale if self.gamma is None else scale * self.gamma

    # `Conv2D` saves kernel and bias only.

    def save_own_variables(self, store):
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        keras.layers.Layer.load_own_variables(self, store)

    def get_config(self):
        return super().get_config() | {
            "batch_norm": self.batch_norm,
            "bits": self.bits,
            "per_channel": self.per_channel,
            "observer": dataclasses.asdict(self.observer),
        }


@keras.saving.register_keras_serializable(package="keras_resnext")
class QuantizedDense(keras.layers.Dense):
    """`keras.layers.Dense` with weights rounded as in an int8 file.

    Args:
        *args, **kwargs: Those of `keras.layers.Dense`.
        bits: Of the weights, 2 to 8. Defaults to 8.
        per_channel: See `fake_quantize_weights`. Defaults to `True`.

    Call arguments:
        inputs: Tensor `(batch, features)`, float32.

    Returns:
        Tensor `(batch, units)`.

    Example:

    >>> QuantizedDense(10)(keras.random.normal((8, 2048))).shape
    TensorShape([8, 10])
    """

    def __init__(self, *args, bits=8, per_channel=True, **kwargs):
        super().__init__(*args, **kwargs)
        self.bits = bits
        self.per_channel = per_channel

    def call(self, inputs, training=None):
        kernel = fake_quantize_weights(self.kernel, self.bits, self.per_channel)
        outputs = keras.ops.matmul(inputs, kernel)
        if self.bias is not None:
            outputs += self.bias
        if self.activation is not None:
            outputs = self.activation(outputs)
        return outputs

    def get_config(self):
        return super().get_config() | {
            "bits": self.bits,
            "per_channel": self.per_channel,
        }


def as_observer(observer):
    """An `Observer` from one, from its fields, or from `None`."""
    if isinstance(observer, Observer):
        return observer
    return Observer(**(observer or {}))


def _range(values):
    """Smallest and largest value, and zero between them."""
    import tensorflow as tf

    low = tf.minimum(tf.reduce_min(values), 0.0)
    return tf.stack([low, tf.maximum(tf.reduce_max(values), 0.0)])
