"""The forms of a block are one function of the same weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnext import blocks
from tests.conftest import randomize

CARDINALITY, WIDTH, FILTERS = 4, 3, 16


def block(form, stride=2, channels=10, cardinality=CARDINALITY):
    inputs = keras.Input((9, 9, channels))
    outputs = blocks.bottleneck(
        inputs,
        blocks.TRANSFORMS[form],
        cardinality=cardinality,
        width=WIDTH,
        filters=FILTERS,
        stride=stride,
        name="b",
    )
    return keras.Model(inputs, outputs)


def copy_paths(grouped, branches):
    """Cut the grouped block's weights into the paths of the other.

    Path i computes the i-th slice of the inner channels: its 1x1 and 3x3 are
    slices of the outputs, its last 1x1 is a slice of the inputs.
    """
    for layer in branches.layers:
        if not layer.weights:
            continue
        name, _, path = layer.name.partition("_path")
        weights = grouped.get_layer(name).get_weights()
        if path:
            cut = slice((int(path) - 1) * WIDTH, int(path) * WIDTH)
            if name.endswith("3_conv"):
                weights = [w[:, :, cut, :] for w in weights]
            else:
                weights = [w[..., cut] for w in weights]
        layer.set_weights(weights)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("stride", "channels"), [(1, FILTERS), (2, 10)])
def test_forms_agree(stride, channels, training):
    # With some weights an input of a ReLU is within rounding of zero.
    keras.utils.set_random_seed(0)
    grouped = randomize(block("grouped", stride, channels))
    branches = block("branches", stride, channels)
    copy_paths(grouped, branches)
    images = tf.random.stateless_normal((4, 9, 9, channels), seed=(0, 1))

    results = []
    for model in (grouped, branches):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = model(images, training=training)
            loss = tf.reduce_sum(outputs**2)
        results.append((outputs, tape.gradient(loss, images)))
    (outputs, gradient), (other_outputs, other_gradient) = results
    assert np.std(outputs) > 0.1
    # float32 sums of at most 100 terms, three in a row, relative to the
    # largest value.
    for got, want in ((other_outputs, outputs), (other_gradient, gradient)):
        error = np.max(np.abs(got - want)) / np.max(np.abs(want))
        assert error < 300 * 2**-24


def test_forms_move_batch_norm_statistics_alike():
    grouped = randomize(block("grouped"))
    branches = block("branches")
    copy_paths(grouped, branches)
    images = tf.random.stateless_normal((4, 9, 9, 10), seed=(0, 1))
    before = branches.get_weights()
    for model in (grouped, branches):
        model(images, training=True)
    assert any(
        np.any(one != other)
        for one, other in zip(before, branches.get_weights(), strict=True)
    )
    expected = block("branches")
    copy_paths(grouped, expected)
    for got, want in zip(
        branches.get_weights(), expected.get_weights(), strict=True
    ):
        # A tenth of a batch's statistics: sums of 100 terms of order 1.
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_block_adds_its_input_before_the_last_relu():
    model = randomize(block("grouped", 1, FILTERS))
    images = tf.random.stateless_normal((1, 9, 9, FILTERS), seed=(0, 1))
    transform = keras.Model(model.input, model.get_layer("b_3_bn").output)
    expected = tf.nn.relu(images + transform(images))
    np.testing.assert_allclose(model(images), expected, atol=1e-6)


def test_stride_pads_evenly():
    """An image and its mirror give mirrored outputs, as "same" would not."""
    model = block("grouped", stride=2)
    for layer in model.layers:
        if layer.name.endswith("_conv"):
            kernel = layer.get_weights()[0]
            layer.set_weights([kernel + kernel[::-1, ::-1]])
    images = tf.random.stateless_normal((1, 9, 9, 10), seed=(0, 1))
    # An odd side: the strided grid is its own mirror image.
    turned = model(images[:, ::-1, ::-1])[:, ::-1, ::-1]
    np.testing.assert_allclose(model(images), turned, atol=1e-5)
    even = keras.Input((8, 8, 10))
    padded = blocks.convolution(even, 4, 3, 2, name="x_conv")
    assert keras.Model(even, padded).get_layer("x_pad").padding == (
        (1, 1),
        (1, 1),
    )


def test_projection_only_where_shapes_differ():
    def has_projection(model):
        return any(layer.name == "b_0_conv" for layer in model.layers)

    assert not has_projection(block("grouped", 1, FILTERS))
    assert has_projection(block("grouped", 2, FILTERS))
    assert has_projection(block("grouped", 1, FILTERS + 2))


def test_one_path_needs_no_sum():
    model = block("branches", cardinality=1)
    assert "b_3_sum" not in [layer.name for layer in model.layers]


def test_forms_start_from_the_same_distribution():
    def deviations(model, ending):
        return {
            layer.kernel_initializer.stddev
            for layer in model.layers
            if ending in layer.name
        }

    grouped, branches = block("grouped"), block("branches")
    for ending in ("_1_conv", "_2_conv", "_3_conv", "_0_conv"):
        (expected,) = deviations(grouped, ending)
        assert deviations(branches, ending) == {expected}
    # He et al. over the fan-out: 3x3 kernels, 4 paths of 3 channels.
    assert deviations(grouped, "_2_conv") == {(2 / (9 * 12)) ** 0.5}
