"""GroupedConv2D against a convolution written as patches times kernel."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnext.layers import GroupedConv2D
from keras_resnext.layers import convolution_path
from keras_resnext.layers import use_convolution_path

CHANNELS, FILTERS = 8, 16
# Unit roundoff: half a unit in the last of 24, 8 and 11 bits.
ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}
ONEDNN = os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0"


def reference(inputs, kernel, groups, stride, padding, dilation=1):
    """Patches times kernel, group by group; it shares no convolution op."""
    patches = tf.image.extract_patches(
        inputs,
        (1, 3, 3, 1),
        (1, stride, stride, 1),
        (1, dilation, dilation, 1),
        padding.upper(),
    )
    batch, height, width, _ = patches.shape
    per_group = CHANNELS // groups
    patches = tf.reshape(patches, (batch, height, width, 9, groups, per_group))
    kernel = tf.reshape(kernel, (9, per_group, groups, FILTERS // groups))
    outputs = tf.einsum("bhwpgi,pigo->bhwgo", patches, kernel)
    return tf.reshape(outputs, (batch, height, width, FILTERS))


def with_gradients(convolve, inputs, kernel, weights):
    """Outputs, and the gradients of their weighted sum."""
    with tf.GradientTape() as tape:
        tape.watch((inputs, kernel))
        outputs = convolve(inputs, kernel)
        loss = tf.reduce_sum(outputs * tf.cast(weights, outputs.dtype))
    return outputs, *tape.gradient(loss, (inputs, kernel))


def assert_close(found, convolve, inputs, kernel, weights, dtype):
    """Within the rounding of sums in this dtype, twice their likely error.

    A sum of n products errs by about sqrt(n) roundoffs of the sum of their
    sizes, which is the same computation on absolute values. Rounding the
    result costs one more.
    """
    exact = with_gradients(convolve, inputs, kernel, weights)
    sizes = with_gradients(
        convolve, tf.abs(inputs), tf.abs(kernel), tf.abs(weights)
    )
    terms = max(9 * CHANNELS, 9 * FILTERS, np.prod(weights.shape[:3]))
    factor = 2 * (np.sqrt(terms) + 1) * ROUNDOFF[dtype]
    for got, want, size in zip(found, exact, sizes, strict=True):
        error = np.abs(tf.cast(got, tf.float64) - want)
        assert np.all(error <= factor * size + 1e-12)


def problem(groups, stride, padding, dtype, dilation=1):
    """A layer, its data in `dtype`, and the same data in float64."""
    rng = np.random.default_rng(groups)
    layer = GroupedConv2D(
        FILTERS,
        3,
        strides=stride,
        padding=padding,
        groups=groups,
        dilation_rate=dilation,
        use_bias=False,
        dtype=dtype,
    )
    layer.build((None, 7, 7, CHANNELS))
    inputs = tf.cast(rng.normal(size=(2, 7, 7, CHANNELS)), dtype)
    kernel = tf.cast(rng.normal(size=layer.kernel.shape), dtype)
    shape = layer.compute_output_shape(inputs.shape)
    weights = tf.cast(tf.cast(rng.normal(size=shape), dtype), tf.float64)
    wide = (tf.cast(inputs, tf.float64), tf.cast(kernel, tf.float64), weights)
    return layer, inputs, kernel, wide


@pytest.mark.parametrize("dtype", list(ROUNDOFF))
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4, CHANNELS])
def test_outputs_and_gradients(groups, stride, padding, dtype):
    layer, inputs, kernel, wide = problem(groups, stride, padding, dtype)
    found = with_gradients(layer.convolution_op, inputs, kernel, wide[2])
    assert found[0].dtype == dtype

    def convolve(x, k):
        return reference(x, k, groups, stride, padding)

    assert_close(found, convolve, *wide, dtype)


@pytest.mark.parametrize("path", ["native", "split"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_both_paths_compute_the_same(path, dilation):
    if path == "native" and convolution_path() != "native":
        pytest.skip("no native gradient in this process")
    layer, inputs, kernel, wide = problem(4, 1, "same", "float32", dilation)
    with use_convolution_path(path):
        found = with_gradients(layer.convolution_op, inputs, kernel, wide[2])

    def convolve(x, k):
        return reference(x, k, 4, 1, "same", dilation)

    assert_close(found, convolve, *wide, "float32")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("path", ["native", "split"])
def test_inside_a_compiled_model(path, stride):
    layer, inputs, kernel, wide = problem(4, stride, "same", "float32")

    @tf.function(jit_compile=True)
    def compiled(inputs, kernel):
        return with_gradients(layer.convolution_op, inputs, kernel, wide[2])

    with use_convolution_path(path):
        found = compiled(inputs, kernel)
        program = compiled.experimental_get_compiler_ir(inputs, kernel)("hlo")

    def convolve(x, k):
        return reference(x, k, 4, stride, "same")

    assert_close(found, convolve, *wide, "float32")
    if path == "native":
        # Forward, and the two gradients: XLA sees whole convolutions.
        assert program.count(" convolution(") == 3


def test_inference_fused_with_batch_norm_and_relu(pixels):
    """Without oneDNN, the fused native op fails at run time."""
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 1)(inputs)
    x = GroupedConv2D(16, 3, groups=4, use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    model = keras.Model(inputs, keras.layers.ReLU()(x))
    graph = tf.function(lambda x: model(x, training=False))
    np.testing.assert_allclose(
        graph(pixels), model(pixels, training=False), rtol=1e-4, atol=1e-3
    )


def test_layer_is_a_conv2d_with_the_same_config_and_weights():
    arguments = {"groups": 4, "strides": 2, "padding": "same", "name": "c"}
    ours = GroupedConv2D(FILTERS, 3, **arguments)
    stock = keras.layers.Conv2D(FILTERS, 3, **arguments)
    assert ours.get_config() == stock.get_config()

    inputs = np.random.default_rng(0).normal(size=(2, 9, 9, CHANNELS))
    stock(inputs)
    ours.build(inputs.shape)
    stock.set_weights([w + 0.1 for w in stock.get_weights()])  # a bias too
    ours.set_weights(stock.get_weights())
    again = GroupedConv2D.from_config(ours.get_config())
    again.build(inputs.shape)
    again.set_weights(stock.get_weights())
    # 18 float32 terms of size about 1.
    np.testing.assert_allclose(ours(inputs), stock(inputs), atol=1e-5)
    np.testing.assert_array_equal(ours(inputs), again(inputs))


def test_channels_first_is_the_same_function():
    layer, inputs, kernel, _ = problem(4, 2, "same", "float32")
    first = GroupedConv2D(
        FILTERS,
        3,
        strides=2,
        padding="same",
        groups=4,
        data_format="channels_first",
    )
    np.testing.assert_array_equal(
        tf.transpose(layer.convolution_op(inputs, kernel), (0, 3, 1, 2)),
        first.convolution_op(tf.transpose(inputs, (0, 3, 1, 2)), kernel),
    )


def test_nothing_is_left_for_xla_to_compile():
    layer, inputs, kernel, _ = problem(4, 1, "same", "float32")
    stock = keras.layers.Conv2D(FILTERS, 3, groups=4)

    def compiled_functions(layer):
        graph = tf.function(lambda x: layer.convolution_op(x, kernel))
        library = graph.get_concrete_function(inputs).graph.as_graph_def()
        return str(library).count("_XlaMustCompile")

    assert compiled_functions(layer) == 0
    assert compiled_functions(stock) > 0  # what this layer is there to avoid


def test_path_is_probed_for_each_dtype():
    assert convolution_path("float32") == ("native" if ONEDNN else "split")
    if not tf.config.list_logical_devices("GPU"):
        assert convolution_path("float16") == "split"


def test_path_can_be_forced_for_a_while():
    before = convolution_path()
    with use_convolution_path("split"):
        with use_convolution_path("native"):
            assert convolution_path() == "native"
        assert convolution_path("bfloat16") == "split"
    assert convolution_path() == before


def test_unknown_path_is_refused():
    with (
        pytest.raises(ValueError, match="`path` must be"),
        use_convolution_path("fast"),
    ):
        pass


@pytest.mark.parametrize(("groups", "channels"), [(3, 9), (4, 6)])
def test_groups_must_divide(groups, channels):
    with pytest.raises(ValueError, match="divisible by the number of groups"):
        GroupedConv2D(16, 3, groups=groups).build((None, 8, 8, channels))


@pytest.mark.skipif(not ONEDNN, reason="this is the inner run")
def test_all_of_this_without_onednn():
    """oneDNN is chosen when TensorFlow loads, so it takes a new process."""
    outer = {k: v for k, v in os.environ.items() if "PYTEST" not in k}
    options = ("-q", "-n0", "-p", "no:cacheprovider")
    inner = subprocess.run(
        [sys.executable, "-m", "pytest", *options, __file__],
        env={**outer, "TF_ENABLE_ONEDNN_OPTS": "0"},
        capture_output=True,
        text=True,
    )
    assert inner.returncode == 0, inner.stdout
    assert " passed" in inner.stdout
