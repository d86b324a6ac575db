"""GroupedConv2D against patches times kernel, batch norm against Keras'."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnext import cpu
from keras_resnext.layers import FusedBatchNormalization
from keras_resnext.layers import GroupedConv2D
from keras_resnext.layers import PointwiseConv2D
from keras_resnext.layers import conv_implementation
from keras_resnext.layers import pointwise_implementation
from keras_resnext.layers import use_conv_implementation
from keras_resnext.layers import use_pointwise_implementation

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
    if path == "native" and conv_implementation() != "native":
        pytest.skip("no native gradient in this process")
    layer, inputs, kernel, wide = problem(4, 1, "same", "float32", dilation)
    with use_conv_implementation(path):
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

    with use_conv_implementation(path):
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
    """TensorFlow leaves oneDNN off on CPUs without AVX-512's VNNI."""
    for dtype in ("float32", "float16"):
        kernel = tf.ones((3, 3, 2, 4), dtype)
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            outputs = tf.nn.conv2d(
                tf.ones((1, 3, 3, 4), dtype), kernel, 1, "SAME"
            )
        try:
            tape.gradient(outputs, kernel)
            expected = "native"
        except tf.errors.OpError:
            expected = "split"
        assert conv_implementation(dtype) == expected


def test_path_can_be_forced_for_a_while():
    before = conv_implementation()
    with use_conv_implementation("split"):
        with use_conv_implementation("native"):
            assert conv_implementation() == "native"
        assert conv_implementation("bfloat16") == "split"
    assert conv_implementation() == before


@pytest.mark.parametrize(
    ("options", "is_product"),
    [
        ({}, True),
        ({"use_bias": False, "activation": "relu"}, True),
        ({"strides": 2}, False),
        ({"kernel_size": 3}, False),
        ({"groups": 2}, False),
    ],
)
def test_pointwise_convolutions_are_keras(options, is_product):
    """Outputs and all gradients, as a product and as a convolution."""
    options = {"filters": FILTERS, "kernel_size": 1, **options}
    layer, stock = PointwiseConv2D(**options), keras.layers.Conv2D(**options)
    rng = np.random.default_rng(0)
    inputs = tf.constant(rng.normal(size=(2, 6, 5, CHANNELS)), tf.float32)
    for each in (layer, stock):
        each.build(inputs.shape)
    stock.set_weights([rng.normal(size=w.shape) for w in stock.weights])
    layer.set_weights(stock.get_weights())

    def run(layer):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
            loss = tf.reduce_sum(outputs**2)
        variables = [v.value for v in layer.trainable_variables]
        return outputs, *tape.gradient(loss, [inputs, *variables])

    expected = run(stock)
    # Sums of n <= 9 x 16 terms, which are at most sqrt(n) times their sum:
    # n * sqrt(n) roundings at worst.
    tolerance = (
        144**1.5
        * ROUNDOFF["float32"]
        * max(abs(x).numpy().max() for x in expected)
    )
    for how in ("product", "convolution"):
        with use_pointwise_implementation(how):
            assert pointwise_implementation() == how
            found = run(layer)
            graph = tf.function(lambda x: layer(x, training=True))
            graph = graph.get_concrete_function(inputs).graph
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
        products = sum(op.type == "MatMul" for op in graph.get_operations())
        assert products == (how == "product" and is_product)


def test_pointwise_inference_is_a_convolution():
    """Which grappler and exporters fuse with what follows."""
    layer = PointwiseConv2D(4, 1)
    images = tf.ones((1, 3, 3, 8))
    layer.build(images.shape)
    with use_pointwise_implementation("product"):
        graph = tf.function(layer).get_concrete_function(images).graph
    kinds = [op.type for op in graph.get_operations()]
    assert "Conv2D" in kinds
    assert "MatMul" not in kinds


def test_products_are_for_one_class_of_cpu():
    """Where they were measured to be faster: oneDNN, AVX2, no AVX-512."""
    sets = cpu.instruction_sets()
    is_avx2 = "avx2" in sets and "avx512f" not in sets
    onednn = conv_implementation() == "native"
    if not tf.config.list_physical_devices("GPU"):
        expected = "product" if is_avx2 and onednn else "convolution"
        assert pointwise_implementation() == expected
    assert pointwise_implementation("bfloat16") == "convolution"


def test_unknown_pointwise_path_is_refused():
    with (
        pytest.raises(ValueError, match="`implementation` must be"),
        use_pointwise_implementation("native"),
    ):
        pass


def test_unknown_path_is_refused():
    with (
        pytest.raises(ValueError, match="`implementation` must be"),
        use_conv_implementation("fast"),
    ):
        pass


@pytest.mark.parametrize(("groups", "channels"), [(3, 9), (4, 6)])
def test_groups_must_divide(groups, channels):
    with pytest.raises(ValueError, match="divisible by the number of groups"):
        GroupedConv2D(16, 3, groups=groups).build((None, 8, 8, channels))


def norm_pair(dtype="float32", **arguments):
    """A fused batch norm and Keras' own in float64, with equal weights."""
    arguments = {"momentum": 0.8, "epsilon": 1e-3, **arguments}
    fused = FusedBatchNormalization(dtype=dtype, **arguments)
    exact = keras.layers.BatchNormalization(dtype="float64", **arguments)
    return fused, exact


def train_norms(layers, inputs, weights, **call):
    """Outputs, gradients and moving statistics of two training steps."""
    found = []
    for layer in layers:
        dtype = layer.compute_dtype
        x = tf.cast(inputs, dtype)
        if not layer.built:
            layer.build(x.shape)
        rng = np.random.default_rng(5)
        layer.set_weights([rng.uniform(0.5, 2, w.shape) for w in layer.weights])
        for _ in range(2):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True, **call)
                loss = tf.reduce_sum(y * tf.cast(weights, dtype))
            values = [x, *(v.value for v in layer.trainable_variables)]
            gradients = tape.gradient(loss, values)
        found.append(
            [
                np.asarray(tf.cast(value, "float64"))
                for value in (y, *gradients, *layer.non_trainable_variables)
            ]
        )
    return found


def norm_data(shape=(3, 2, 2, 5)):
    """Few values a channel, far from zero, exact in every dtype."""
    rng = np.random.default_rng(6)
    draw = [rng.normal(3, 1, shape), rng.normal(0, 1, shape)]
    return [tf.cast(tf.cast(a, "bfloat16"), "float64") for a in draw]


def assert_norms_agree(found, exact, dtype, cancelled=1):
    """Two roundings, to the layer's dtype, of the largest value.

    Sums are in float32 and its 2^-24 is far below the other dtypes' steps; in
    float32 itself a sum of 12 terms, twice, takes some ten of them,
    and `cancelled` times that where the variance is a difference.
    """
    for got, want in zip(found, exact, strict=True):
        steps = 2 * ROUNDOFF[dtype] + 20 * cancelled * ROUNDOFF["float32"]
        got, want = np.asarray(got, "float64"), np.asarray(want)
        assert np.abs(got - want).max() <= steps * np.abs(want).max()


def test_fused_norm_trains_where_keras_has_no_renorm():
    """Keras before 3.14."""
    inputs, weights = norm_data()
    fused, exact = norm_pair()
    fused.build(inputs.shape)  # of a newer Keras, which reads it
    vars(fused).pop("renorm", None)
    found, expected = train_norms((fused, exact), inputs, weights)
    assert_norms_agree(found, expected, "float32")


@pytest.mark.parametrize("dtype", list(ROUNDOFF))
@pytest.mark.parametrize("affine", [True, False])
def test_fused_norm_is_keras_norm(dtype, affine):
    policy = dtype if dtype == "float32" else f"mixed_{dtype}"
    layers = norm_pair(policy, center=affine, scale=affine)
    found, exact = train_norms(layers, *norm_data())
    assert layers[0](norm_data()[0], training=True).dtype == dtype
    assert_norms_agree(found, exact, dtype)


def test_moving_variance_is_the_biased_one():
    fused, _ = norm_pair()
    inputs, _ = norm_data()
    x = tf.cast(inputs, "float32")
    fused(x, training=True)
    # Keras starts at 1. The kernel's own variance is 12 / 11 of this.
    expected = 0.8 + 0.2 * np.var(inputs, axis=(0, 1, 2))
    np.testing.assert_allclose(fused.moving_variance, expected, rtol=1e-6)


@pytest.mark.parametrize("path", ["graph", "xla"])
def test_fused_norm_in_a_graph(path):
    fused, exact = norm_pair()
    inputs, _ = norm_data()
    fused.build(inputs.shape)
    exact.build(inputs.shape)
    graph = tf.function(
        lambda x: fused(x, training=True), jit_compile=path == "xla"
    )
    x = tf.cast(inputs, "float32")
    outputs, expected = graph(x), exact(inputs, training=True)
    # XLA subtracts mean^2 = 9 from E[x^2] = 10.
    cancelled = 10 if path == "xla" else 1
    assert_norms_agree([outputs], [expected], "float32", cancelled)
    weights = fused.get_weights(), exact.get_weights()
    assert_norms_agree(*weights, "float32", cancelled)
    kinds = {
        op.type for op in graph.get_concrete_function(x).graph.get_operations()
    }
    assert "FusedBatchNormV3" in kinds


@pytest.mark.parametrize(
    ("layer", "shape", "call"),
    [
        ({"axis": 1}, (3, 5, 2, 2), {}),
        ({}, (12, 5), {}),
        ({}, (3, 4, 5), {}),
        ({}, (3, 2, 2, 5), {"mask": np.arange(12).reshape(3, 2, 2) > 4}),
        ({"synchronized": True}, (3, 2, 2, 5), {}),
        pytest.param(
            {"renorm": True},
            (3, 2, 2, 5),
            {},
            marks=pytest.mark.skipif(
                not hasattr(keras.layers.BatchNormalization(), "renorm"),
                reason="Keras before 3.14 has no `renorm`",
            ),
        ),
        ({"dtype": "float64"}, (3, 2, 2, 5), {}),
    ],
    ids=["axis", "rank 2", "rank 3", "mask", "synchronized", "renorm", "64"],
)
def test_what_the_kernel_does_not_know_goes_to_keras(layer, shape, call):
    fused, _ = norm_pair(**layer)
    stock = keras.layers.BatchNormalization.from_config(fused.get_config())
    found, expected = train_norms((fused, stock), *norm_data(shape), **call)
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("frozen", [False, True])
def test_fused_norm_uses_moving_statistics_like_keras(frozen):
    fused, _ = norm_pair()
    inputs, weights = norm_data()
    train_norms([fused], inputs, weights)
    stock = keras.layers.BatchNormalization.from_config(fused.get_config())
    stock.build(inputs.shape)
    stock.set_weights(fused.get_weights())
    assert stock.get_config() == fused.get_config()
    before = fused.get_weights()
    for layer in (fused, stock):
        layer.trainable = not frozen
    np.testing.assert_array_equal(
        fused(inputs, training=frozen), stock(inputs, training=frozen)
    )
    for old, new in zip(before, fused.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


REPLICAS = """
import keras
import numpy as np
import tensorflow as tf

import keras_resnext

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
x = np.random.default_rng(0).normal(3, 1, (8, 2, 2, 5)).astype("float32")
found = []
with strategy.scope():
    for kind in (
        keras_resnext.layers.FusedBatchNormalization,
        keras.layers.BatchNormalization,
    ):
        layer = kind(momentum=0.5)
        layer.build(x.shape)
        halves = strategy.experimental_distribute_values_from_function(
            lambda c: tf.constant(np.split(x, 2)[c.replica_id_in_sync_group])
        )
        run = tf.function(lambda x: strategy.run(layer, (x,), {"training": 1}))
        outputs = strategy.gather(run(halves), axis=0)
        found.append([outputs.numpy(), *layer.get_weights()])
for ours, stock in zip(*found, strict=True):
    np.testing.assert_allclose(ours, stock, atol=1e-5)
"""


@pytest.mark.slow
def test_fused_norm_under_replicas_is_keras_norm():
    """Logical devices are set once a process."""
    inner = subprocess.run(
        [sys.executable, "-c", REPLICAS], capture_output=True, text=True
    )
    assert inner.returncode == 0, inner.stderr


@pytest.mark.slow
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
