"""Rewriting models: the same function, other layers."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resnext
from keras_resnext.blocks import TRANSFORMS
from keras_resnext.rewrite.folding import fold_batch_norm
from keras_resnext.rewrite.forms import convert_form
from keras_resnext.rewrite.stock import to_stock_layers
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


@pytest.mark.integration
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
        {"residual": False, "filters": 24},
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


@pytest.mark.integration
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
    with pytest.raises(
        ValueError, match="each block once .*conv2_block2 reads"
    ):
        convert_form(twice, "branches")


@pytest.mark.integration
def test_models_inside_sequential_models():
    inside = make(include_top=False, pooling="avg")
    inside.trainable = False
    sequential = keras.Sequential([keras.Input((16, 16, 3)), inside])
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Dense(3, name="y")(sequential(inputs))
    model = keras.Model(inputs, x)
    for rewrite in (
        lambda m: convert_form(m, "branches"),
        fold_batch_norm,
        to_stock_layers,
    ):
        found = rewrite(model)
        assert_same_function(model, found)
        kinds = {type(x).__name__ for x in flat_layers(found)}
        assert ("FusedBatchNormalization" in kinds) == (
            rewrite not in (fold_batch_norm, to_stock_layers)
        )
        assert len(found.trainable_weights) == 2
    kinds = {type(x).__module__.split(".")[0] for x in flat_layers(found)}
    assert kinds == {"keras"}


def flat_layers(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from flat_layers(layer)
        else:
            yield layer


def test_layers_that_hide_layers_are_refused():
    inside = make(include_top=False, pooling="avg")
    inputs = keras.Input((2, 16, 16, 3))
    wrapped = keras.layers.TimeDistributed(inside, name="each_frame")
    model = keras.Model(inputs, wrapped(inputs))
    for rewrite in (fold_batch_norm, to_stock_layers):
        with pytest.raises(ValueError, match="each_frame is a TimeDistrib"):
            rewrite(model)


def test_a_model_shared_by_models_stays_shared():
    backbone = make(include_top=False, pooling="avg")
    inputs = keras.Input((16, 16, 3))
    heads = [
        keras.Model(inputs, keras.layers.Dense(2)(backbone(inputs)), name=name)
        for name in "ab"
    ]
    model = keras.Model(inputs, [head(inputs) for head in heads])
    for found in (convert_form(model, "grouped"), to_stock_layers(model)):
        assert len(found.weights) == len(model.weights)
        for got, want in zip(found(IMAGES), model(IMAGES), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_settings_of_layers_survive():
    def change(layer):
        config = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization):
            config |= {"epsilon": 0.1, "momentum": 0.5}
        if isinstance(layer, keras.layers.Conv2D):
            config |= {"kernel_regularizer": keras.regularizers.L2(0.1)}
        return type(layer).from_config(config)

    model = keras.models.clone_model(
        make(classifier_activation=None), clone_function=change
    )
    randomize(model)
    found = convert_form(model, "branches")
    assert_same_function(model, found)
    norm = found.get_layer("conv2_block1_2_bn_path03")
    assert (norm.epsilon, norm.momentum) == (0.1, 0.5)
    # The squares of all kernels, whichever way they are cut.
    assert len(found.losses) > len(model.losses) > 0
    np.testing.assert_allclose(sum(found.losses), sum(model.losses), rtol=1e-5)
    assert_same_function(model, convert_form(found, "grouped"))


@pytest.mark.integration
def test_what_adapted_to_data_stays_adapted():
    """Normalization computes with what it made of its weights."""
    images = np.random.default_rng(0).normal(5, 3, (8, 16, 16, 3))
    adapted = keras.layers.Normalization()
    adapted.adapt(images.astype("float32"))
    model = keras.Sequential([keras.Input((16, 16, 3)), adapted, make()])
    expected = model.predict(images, verbose=0)
    for other in (
        keras_resnext.convert_form(model, "branches"),
        keras_resnext.fold_batch_norm(model),
        keras_resnext.to_stock_layers(model),
    ):
        found = other.predict(images, verbose=0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.integration
def test_blocks_that_are_not_the_builders_are_refused():
    model = make()
    tapped = keras.Model(
        model.input,
        [model.get_layer("conv2_block2_2_relu").output, model.output],
    )
    with pytest.raises(ValueError, match="output reads conv2_block2_2_relu"):
        convert_form(tapped, "branches")

    def swap(layer):
        if layer.name == "conv2_block1_1_relu":
            return keras.layers.LeakyReLU(0.3, name=layer.name)
        return type(layer).from_config(layer.get_config())

    leaky = keras.models.clone_model(model, clone_function=swap)
    with pytest.raises(ValueError, match="in conv2_block1_1_relu, "):
        convert_form(leaky, "branches")

    # Its blocks have the same names, a stride elsewhere, and biases.
    other = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3))
    with pytest.raises(ValueError, match="as keras_resnext builds them"):
        convert_form(other, "branches")

    paths = convert_form(model, "branches")
    paths.get_layer("conv2_block1_1_bn_path02").epsilon = 0.1
    with pytest.raises(
        ValueError, match="same settings on all paths of a block"
    ):
        convert_form(paths, "grouped")


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


def test_folding_stores_what_mixed_precision_computes_with():
    expected = make()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = make()
    finally:
        keras.config.set_dtype_policy("float32")
    folded = fold_batch_norm(mixed)
    dtypes = {v.path: v.dtype for v in folded.variables}
    # The classifier keeps float32, like its outputs.
    classifier = {"predictions/kernel", "predictions/bias"}
    assert {k for k, v in dtypes.items() if v == "float32"} == classifier
    assert set(dtypes.values()) == {"float32", "bfloat16"}
    outputs = folded(IMAGES)
    assert outputs.dtype == "float32"
    # 8 bits a layer, ten layers: a few percent of the largest.
    error = np.max(np.abs(outputs - expected(IMAGES))) / np.max(outputs)
    assert 0 < error < 10 * 2**-8


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
    norm = keras.layers.BatchNormalization(name="always")
    refused(norm(conv, training=True), "always is called with it")
    norm = keras.layers.BatchNormalization(axis=1, name="over_rows")
    refused(norm(conv), "over_rows reads read_twice")
    norm = keras.layers.BatchNormalization(name="wider")
    narrow = keras.layers.Conv2D(1, 1, name="narrow")(inputs)
    refused(norm(keras.layers.Add()([conv, narrow])), "wider reads narrow")
    norm = keras.layers.BatchNormalization(axis=1, name="first_bn")
    conv = keras.layers.Conv2D(4, 1, data_format="channels_first", name="f")
    refused(norm(conv(inputs)), "channels-last .* first_bn reads f")


@pytest.mark.integration
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


def test_lora_is_not_folded():
    model = make()
    model.get_layer("conv2_block1_1_conv").enable_lora(2)
    for rewrite in (fold_batch_norm, lambda m: convert_form(m, "branches")):
        with pytest.raises(ValueError, match="conv2_block1_1_conv"):
            rewrite(model)
    with pytest.raises(ValueError, match="conv2_block1_1_conv are LoRA's"):
        fold_batch_norm(model)


@pytest.mark.parametrize("form", list(TRANSFORMS))
def test_folded_models_are_not_converted(form):
    folded = fold_batch_norm(make(form))
    with pytest.raises(ValueError, match="are folded. Convert it before"):
        convert_form(folded, "grouped")


def test_bad_conversions_are_refused():
    with pytest.raises(ValueError, match="`form` must be one of 'grouped'"):
        convert_form(make(), "dense")
    inputs = keras.Input((3,))
    plain = keras.Model(inputs, keras.layers.Dense(2)(inputs), name="plain")
    with pytest.raises(ValueError, match="`model` must have blocks .*plain"):
        convert_form(plain, "grouped")
