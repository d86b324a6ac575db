"""Rewriting models: the same function, other layers."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resnext
from keras_resnext.blocks import TRANSFORMS
from keras_resnext.forms import convert_form
from keras_resnext.forms import fold_batch_norm
from keras_resnext.forms import to_stock_layers
from tests.conftest import randomize

IMAGES = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype("float32")


def make(form="grouped", **arguments):
    keras.utils.set_random_seed(0)
    defaults = {"stem": "cifar", "classes": 10, "input_shape": (16, 16, 3)}
    return randomize(
        keras_resnext.ResNeXt(
            (2, 1), 4, 4, form=form, **{**defaults, **arguments}
        )
    )


def outputs_and_gradient(model, training):
    images = tf.constant(IMAGES)
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = model(images, training=training)
        loss = tf.reduce_sum(outputs[:, 0])
    return outputs, tape.gradient(loss, images)


def assert_same_function(one, other, training=False):
    """float32 sums of at most 1000 terms, ten layers deep."""
    for got, want in zip(
        outputs_and_gradient(other, training),
        outputs_and_gradient(one, training),
        strict=True,
    ):
        assert np.std(want) > 0
        error = np.max(np.abs(got - want)) / np.max(np.abs(want))
        assert error < 10 * np.sqrt(1000) * 2**-24


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("target", list(TRANSFORMS))
@pytest.mark.parametrize("source", list(TRANSFORMS))
def test_any_form_into_any_other(source, target, training):
    model = make(source, classifier_activation=None)
    before = model.get_weights()
    found = convert_form(model, target)
    assert_same_function(model, found, training)
    expected = make(target)
    assert [layer.name for layer in found.layers] == [
        layer.name if i else found.layers[0].name
        for i, layer in enumerate(expected.layers)
    ]
    assert found.name == model.name
    if not training:
        for got, want in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(got, want)


def test_there_and_back_is_the_same_to_the_bit():
    model = make()
    back = convert_form(convert_form(model, "branches"), "grouped")
    for got, want in zip(back.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "arguments",
    [
        {"residual": False},
        {"stem": "imagenet", "input_shape": (64, 64, 3)},
        {"include_top": False, "pooling": "max"},
        {"input_shape": (None, None, 3)},
    ],
    ids=str,
)
def test_variants_convert_and_fold(arguments):
    model = make(classifier_activation=None, **arguments)
    size = arguments.get("input_shape", (16,))[0] or 24
    images = np.random.default_rng(1).normal(size=(2, size, size, 3))
    expected = model(images)
    for found in (
        convert_form(model, "concatenated"),
        fold_batch_norm(convert_form(model, "branches")),
        to_stock_layers(model),
    ):
        np.testing.assert_allclose(
            found(images), expected, rtol=1e-4, atol=1e-4 * np.std(expected)
        )


def test_dilation_and_policy_survive():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = keras_resnext.ResNeXt(
            (1, 1, 1, 1), 2, 4, include_top=False, output_stride=8
        )
    finally:
        keras.config.set_dtype_policy("float32")
    found = convert_form(model, "branches")
    layer = found.get_layer("conv5_block1_2_conv_path02")
    original = model.get_layer("conv5_block1_2_conv")
    assert layer.dilation_rate == original.dilation_rate == (2, 2)
    assert layer.compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"


def test_frozen_layers_stay_frozen():
    model = make()
    for name in ("conv2_block1_2_conv", "conv1_bn"):
        model.get_layer(name).trainable = False
    found = convert_form(model, "branches")
    assert not found.get_layer("conv2_block1_2_conv_path03").trainable
    assert not found.get_layer("conv1_bn").trainable
    assert found.get_layer("conv2_block1_1_conv_path03").trainable


def fine_tuned(backbone):
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(0.5)(inputs)
    x = backbone(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x), name="fine_tuned")


def test_models_inside_models():
    inside = make(include_top=False, pooling="avg")
    model = fine_tuned(inside)
    sequential = keras.Sequential(
        [keras.Input((16, 16, 3)), inside, keras.layers.Dense(2)]
    )
    for outer in (model, sequential):
        for found in (
            convert_form(outer, "branches"),
            fold_batch_norm(outer),
            to_stock_layers(outer),
        ):
            assert_same_function(outer, found)


def test_backbone_used_twice_stays_shared():
    inside = make(include_top=False, pooling="avg")
    one, two = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    model = keras.Model(
        [one, two], keras.layers.Subtract()([inside(one), inside(two)])
    )
    found = convert_form(model, "branches")
    pair = [IMAGES, IMAGES[::-1].copy()]
    np.testing.assert_allclose(found(pair), model(pair), atol=1e-4)


def test_block_used_twice_is_refused():
    model = make(include_top=False)
    block = keras.Model(
        model.get_layer("conv2_block1_out").output,
        model.get_layer("conv2_block2_out").output,
    )
    inputs = keras.Input((16, 16, 256))
    layers = block.layers[1:]

    def apply(x):
        y = x
        for layer in layers:
            y = layer([x, y]) if layer.name.endswith("_add") else layer(y)
        return y

    twice = keras.Model(inputs, apply(apply(inputs)))
    with pytest.raises(ValueError, match="each block once; .*conv2_block2"):
        convert_form(twice, "branches")


@pytest.mark.parametrize("form", list(TRANSFORMS))
def test_folding(form):
    model = make(form, classifier_activation=None)
    folded = fold_batch_norm(model)
    norms = [
        x
        for x in model.layers
        if isinstance(x, keras.layers.BatchNormalization)
    ]
    assert len(norms) > 5
    assert not [
        x
        for x in folded.layers
        if isinstance(x, keras.layers.BatchNormalization)
    ]
    assert_same_function(model, folded)


def test_folding_keeps_biases_that_were_there():
    inputs = keras.Input((8, 8, 3))
    a, b = (keras.layers.Conv2D(4, 3, name=name)(inputs) for name in "ab")
    x = keras.layers.BatchNormalization()(keras.layers.Add()([a, b]))
    x = keras.layers.Conv2D(5, 1)(x)
    model = randomize(
        keras.Model(inputs, keras.layers.BatchNormalization(scale=False)(x))
    )
    images = IMAGES[:, :8, :8]
    np.testing.assert_allclose(
        fold_batch_norm(model)(images), model(images), rtol=1e-4, atol=1e-5
    )


def test_what_cannot_be_folded_is_named():
    inputs = keras.Input((8, 8, 3))

    def refused(outputs, message):
        with pytest.raises(ValueError, match=message):
            fold_batch_norm(keras.Model(inputs, outputs))

    norm = keras.layers.BatchNormalization(name="data_bn")
    refused(norm(inputs), "data_bn reads .*InputLayer")
    norm = keras.layers.BatchNormalization(name="late_bn")
    active = keras.layers.Conv2D(4, 1, activation="relu", name="active")(inputs)
    refused(norm(active), "late_bn reads active")
    norm = keras.layers.BatchNormalization(name="shared_bn")
    conv = keras.layers.Conv2D(4, 1, name="read_twice")(inputs)
    refused([norm(conv), conv], "shared_bn reads read_twice")
    norm = keras.layers.BatchNormalization(name="norm_twice")
    refused(norm(norm(conv)), "norm_twice is used 2 times")


def test_stock_file_opens_without_this_package(tmp_path):
    model = make()
    to_stock_layers(model).save(tmp_path / "plain.keras")
    np.save(tmp_path / "images.npy", IMAGES)
    code = """
import sys
sys.modules["keras_resnext"] = None
import keras, numpy as np
model = keras.saving.load_model("plain.keras")
np.save("outputs.npy", model(np.load("images.npy")))
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    np.testing.assert_allclose(
        np.load(tmp_path / "outputs.npy"), model(IMAGES), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("rewrite", [to_stock_layers, fold_batch_norm])
def test_models_that_are_no_graphs_are_refused(rewrite):
    class Subclassed(keras.Model):
        pass

    for model in (Subclassed(), keras.Sequential([keras.layers.Dense(2)])):
        with pytest.raises(ValueError, match="must be a functional or a built"):
            rewrite(model)


def test_bad_conversions_are_refused():
    with pytest.raises(ValueError, match="`form` must be one of 'grouped'"):
        convert_form(make(), "dense")
    inputs = keras.Input((3,))
    plain = keras.Model(inputs, keras.layers.Dense(2)(inputs), name="plain")
    with pytest.raises(ValueError, match="`model` must have blocks .*plain"):
        convert_form(plain, "grouped")
