"""The builders: counts, manners, and names that must never change silently."""

import inspect
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_resnext
from keras_resnext.variants import build
from tests import reference
from tests.conftest import randomize
from tests.regenerate_golden import GOLDEN
from tests.regenerate_golden import VARIANTS
from tests.regenerate_golden import layer_specs

SMALL = {"stem": "cifar", "weights": None, "input_shape": (16, 16, 3)}


BUILDERS = {
    name: getattr(keras_resnext, name)
    for name in keras_resnext.__all__
    if re.fullmatch(r"ResNe(X)?t\d.*", name)
}


def trainable(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def frozen(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # timm and torchvision, with 1000 classes.
        ("resnext50", 25_028_904),
        ("resnext101", 44_177_704),
        ("resnext101_32x8d", 88_791_336),
        ("resnext101_32x16d", 194_026_792),
        ("resnext101_32x32d", 468_530_472),
        ("resnext101_32x48d", 828_411_176),
        ("resnext101_64x4d", 83_455_272),
        # torchvision's ResNet with these depths, groups and widths.
        ("resnet200", 64_673_832),
        ("resnext152", 59_951_400),
        # torch networks of the paper's other rows.
        ("resnet50", 25_557_032),
        ("resnext50_2x40d", 25_425_000),
        ("resnext50_4x24d", 25_292_968),
        ("resnext50_8x14d", 25_603_016),
        ("resnet101", 44_549_160),
        ("resnext101_2x40d", 44_456_296),
        ("resnext101_4x24d", 44_363_432),
        ("resnext101_8x14d", 45_104_328),
        ("resnext101_2x64d", 84_198_184),
        ("resnext101_1x100d", 85_611_336),
        # With 10 classes; the paper's table 7 rounds to 34.4 and 68.1 million
        # (and 92,250 more weights make 100 classes of the second).
        ("resnext29_1x64d", 4_914_250),
        ("resnext29_8x64d", 34_426_698),
        ("resnext29_16x64d", 68_155_210),
    ],
)
def test_trainable_parameters(name, expected):
    """Of the frozen layers, which `test_layers_are_as_frozen` holds."""
    count = sum(
        math.prod(shape)
        for kind, _, shapes in frozen(name)
        for shape in (
            shapes[:2] if kind == "FusedBatchNormalization" else shapes
        )
    )
    assert count == expected


def test_every_model_has_its_parameters_counted():
    (marker,) = test_trainable_parameters.pytestmark
    assert {name for name, _ in marker.args[1]} == set(
        keras_resnext.list_models()
    )


def test_a_fifth_stage_is_dilated():
    arguments = {"include_top": False, "input_shape": (32, 32, 3)}
    model = keras_resnext.ResNeXt((1,) * 5, 2, 4, **arguments)
    assert model.output_shape == (None, 1, 1, 4096)
    assert model.get_layer("conv6_block1_2_conv").strides == (1, 1)


@pytest.mark.integration
def test_trainable_parameters_of_a_model():
    model = build("resnext50")
    assert trainable(model) == 25_028_904
    assert model.count_params() == 25_097_128
    assert trainable(build("resnext50", include_top=False)) == 22_979_904


def speed_of(name):
    """The largest variants take gigabytes, those of 101 layers seconds."""
    if name.endswith(("32x32d", "32x48d")):
        return pytest.mark.slow
    deep = name.startswith(("resnext101", "resnext152", "resnet101", "resnet2"))
    return pytest.mark.integration if deep else ()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=speed_of(name)) for name in VARIANTS]
)
def test_layers_are_as_frozen(name):
    """`.weights.h5` files address layers by class and order.

    If this fails and the change is intended, old weight files no longer
    load: say so in CHANGELOG.md and run `make golden`.
    """
    assert layer_specs(VARIANTS[name]()) == frozen(name)


@pytest.mark.parametrize(
    ("stem", "depths", "size", "filters"),
    [
        ("imagenet", (1, 2, 1, 1), (96, 64), 256),
        ("imagenet", (1, 1), (51, 75), 24),
        ("cifar", (1, 1, 2), (16, 16), 256),
        ("cifar", (2, 1, 1), (16, 16), 32),
    ],
)
def test_forward_against_numpy(stem, depths, size, filters):
    """Stride, padding, pooling and epsilon, as the paper and torch have them.

    Even and odd sides: padding on one side only would show.
    """
    keras.utils.set_random_seed(0)
    model = randomize(
        keras_resnext.ResNeXt(
            depths,
            4,
            4,
            filters=filters,
            stem=stem,
            classes=10,
            input_shape=(*size, 3),
        )
    )
    assert model.layers[-2].output.shape[-1] == filters * 2 ** (len(depths) - 1)
    images = np.random.default_rng(0).normal(size=(2, *size, 3))
    expected = reference.forward(model, images, 4, depths, stem)
    assert expected.std() > 1e-3
    # Logits of order 1 after about 16 float32 sums of 1000 terms.
    np.testing.assert_allclose(
        model(images), expected, rtol=16 * np.sqrt(1000) * 2**-24
    )


def test_batch_norm_is_torchs():
    """torch: eps 1e-5, and a momentum of 0.1 that weighs the new value."""
    norms = [
        layer
        for layer in build("resnext11_2x4d").layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    assert len(norms) == 13
    assert {(n.epsilon, n.momentum, n.axis) for n in norms} == {(1e-5, 0.9, -1)}


def test_weights_of_another_model_leave_this_one_as_it_was(tmp_path):
    build("resnext11_4x4d", classes=10).save_weights(
        tmp_path / "other.weights.h5"
    )
    (tmp_path / "junk.weights.h5").write_text("no HDF5")
    model = build("resnext11_2x4d", classes=10)
    before = model.get_weights()
    for name, message in (
        ("other", "must fit .*other.*resnext11_4x4d.* is resnext11_2x4d"),
        ("junk", "junk.weights.h5 is not an HDF5 file"),
    ):
        with pytest.raises(ValueError, match=message):
            keras_resnext.load_weights(model, tmp_path / f"{name}.weights.h5")
        for got, want in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(got, want)


def test_widths_of_stages_are_told_apart(tmp_path):
    """By name and by file: the paths are as many and as wide."""
    narrow = build("resnext11_2x4d_f32")
    assert narrow.name == "resnext11_2x4d_f32"
    assert build("resnext11_2x4d_f256").name == "resnext11_2x4d"
    with pytest.raises(
        ValueError, match="agree with `model`, .*_f32: 32; got 6"
    ):
        build("resnext11_2x4d_f32", filters=64)
    narrow.save_weights(tmp_path / "narrow.weights.h5")
    with pytest.raises(
        ValueError, match=r"_f32, the model is resnext11_2x4d\."
    ):
        keras_resnext.load_weights(
            build("resnext11_2x4d"), tmp_path / "narrow.weights.h5"
        )
    with pytest.raises(ValueError, match="None or a file for .*_f64"):
        keras_resnext.ResNeXt50(filters=64)


def test_numpy_integers_are_integers():
    model = keras_resnext.ResNeXt(
        (np.int64(1), 1),
        np.int64(2),
        np.int32(4),
        classes=np.int64(10),
        input_shape=tuple(np.array([64, 64, 3])),
    )
    assert model.name == "resnext8_2x4d"
    assert model.output_shape == (None, 10)


@pytest.mark.parametrize("builder", list(BUILDERS.values()), ids=list(BUILDERS))
def test_first_arguments_are_those_of_keras_applications(builder):
    theirs = inspect.signature(keras.applications.ResNet50).parameters.values()
    ours = list(inspect.signature(builder).parameters.values())
    positional = [p for p in ours if p.kind is not p.KEYWORD_ONLY]
    for mine, yours in zip(positional, theirs, strict=True):
        assert mine.name == yours.name
        cifar = builder.__name__.startswith("ResNeXt29")
        if mine.name != "name" and not (
            cifar and mine.name in ("weights", "classes")
        ):
            assert mine.default == yours.default


def test_top_and_pooling():
    def shape(**arguments):
        return keras_resnext.ResNeXt((1, 1), 2, 4, **arguments).output_shape

    assert shape(classes=7) == (None, 7)
    assert shape(include_top=False) == (None, None, None, 512)
    small = {"include_top": False, "input_shape": (64, 96, 3)}
    assert shape(**small) == (None, 8, 12, 512)
    assert shape(**small, pooling="avg") == (None, 512)
    assert shape(**small, pooling="max") == (None, 512)


def test_default_inputs():
    assert build("resnext50_1x4d").input_shape == (None, 224, 224, 3)
    assert build("resnext11_1x4d").input_shape == (None, 32, 32, 3)
    model = build("resnext50_1x4d", include_top=False)
    assert model.input_shape == (None, None, None, 3)


def test_classifier_activation_is_the_only_difference_of_logits(small_model):
    arguments = {"stem": "cifar", "classes": 10, "input_shape": (16, 16, 3)}
    logits = keras_resnext.ResNeXt(
        (1, 1, 1), 4, 4, classifier_activation=None, **arguments
    )
    logits.set_weights(small_model.get_weights())
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    np.testing.assert_allclose(
        keras.ops.softmax(logits(images)), small_model(images), atol=1e-6
    )


def test_any_size_gives_the_average_over_its_own_feature_map():
    keras.utils.set_random_seed(0)
    model = keras_resnext.ResNeXt(
        (1, 1), 2, 4, include_top=False, pooling="avg"
    )
    features = keras.Model(
        model.input, model.get_layer("conv3_block1_out").output
    )
    images = np.random.default_rng(0).normal(size=(2, 40, 56, 3))
    np.testing.assert_allclose(
        model(images),
        keras.ops.mean(features(images), axis=(1, 2)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_builds_on_a_tensor():
    image = keras.Input((64, 64, 3), name="photo")
    scaled = keras.layers.Rescaling(1 / 255)(image)
    model = keras_resnext.ResNeXt((1, 1), 2, 4, input_tensor=scaled)
    assert [t.name for t in model.inputs] == ["photo"]
    alone = keras_resnext.ResNeXt((1, 1), 2, 4, input_shape=(64, 64, 3))
    alone.set_weights(model.get_weights())
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3))
    np.testing.assert_allclose(model(pixels), alone(pixels / 255), atol=1e-6)


def test_channels_first_is_the_same_network(small_model):
    try:
        tf.nn.conv2d(
            tf.ones((1, 3, 4, 4)), tf.ones((1, 1, 3, 1)), 1, "SAME", "NCHW"
        )
    except tf.errors.UnimplementedError:
        pytest.skip("TensorFlow without oneDNN convolves channels-last only")
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        model = keras_resnext.ResNeXt(
            (1, 1, 1),
            4,
            4,
            stem="cifar",
            classes=10,
            input_shape=(3, 16, 16),
            classifier_activation="softmax",
        )
    finally:
        keras.config.set_image_data_format(before)
    model.set_weights(small_model.get_weights())
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    np.testing.assert_allclose(
        model(images.transpose(0, 3, 1, 2)), small_model(images), atol=1e-5
    )


def test_weights_file_round_trip(tmp_path, small_model):
    path = tmp_path / "small.weights.h5"
    small_model.save_weights(path)
    arguments = {**SMALL, "classes": 10, "weights": path}
    again = keras_resnext.ResNeXt((1, 1, 1), 4, 4, **arguments)
    for got, want in zip(
        again.get_weights(), small_model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(got, want)


@pytest.mark.integration
def test_model_file_opens_after_importing_the_package(tmp_path, small_model):
    """In either order of imports, though the package imports nothing heavy."""
    path = tmp_path / "small.keras"
    small_model.save(path)
    for imports in ("keras, keras_resnext", "keras_resnext, keras"):
        code = f"import {imports}; keras.saving.load_model({str(path)!r})"
        subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.integration
def test_other_backends_without_tensorflow(tmp_path, small_model):
    """The same outputs on JAX, in a process that cannot import TensorFlow."""
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    np.save(tmp_path / "images.npy", images.astype("float32"))
    small_model.save_weights(tmp_path / "small.weights.h5")
    code = """
import sys
sys.modules["tensorflow"] = None
import numpy as np
import keras
import keras_resnext
assert keras.backend.backend() == "jax"
model = keras_resnext.ResNeXt(
    (1, 1, 1), 4, 4, stem="cifar", classes=10, input_shape=(16, 16, 3),
    weights="small.weights.h5",
)
images = np.load("images.npy")
np.save("outputs.npy", model(images))
inputs = keras.ops.convert_to_tensor(images)
grouped = keras_resnext.layers.GroupedConv2D(6, 3, groups=3)
grouped.build(inputs.shape)
import jax
gradient = jax.grad(lambda x: (grouped(x) ** 2).sum())(inputs)
assert np.abs(gradient).sum() > 0
"""
    subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        cwd=tmp_path,
        check=True,
    )
    np.testing.assert_allclose(
        np.load(tmp_path / "outputs.npy"),
        small_model(images),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"form": "fancy"}, "`form` must be one of 'grouped', 'concat"),
        ({"stem": "vgg"}, "`stem` must be one of 'imagenet', 'cifar'"),
        ({"pooling": "mean"}, "`pooling` must be one of None, 'avg', 'max'"),
        ({"classes": 0}, "`classes` must be a positive integer; got 0"),
        ({"classes": 2.5}, "`classes` must be a positive integer; got 2.5"),
        ({"classes": True}, "`classes` must be a positive integer; got True"),
        ({"cardinality": -1}, "`cardinality` must be a positive integer"),
        ({"base_width": "4"}, "`base_width` must be a positive integer"),
        ({"filters": 66}, "`filters` must be a positive multiple of 4.*got 66"),
        ({"filters": 0}, "`filters` must be a positive multiple of 4"),
        ({"depths": ()}, "`depths` must hold the number of blocks"),
        ({"depths": 50}, "`depths` must hold the number of blocks"),
        ({"input_shape": (16, 16)}, "`input_shape` must be .*height, width"),
        ({"input_shape": (3, 16, 3)}, "at least 4 .*got .3, 16, 3."),
        ({"input_shape": (16, 16, 0)}, "channels at least 1"),
        ({"input_shape": 16}, "`input_shape` must be"),
        ({"input_tensor": np.ones((1, 16, 16, 3))}, "Keras tensor"),
        ({"residual": "yes"}, "`residual` must be one of True, False"),
        ({"include_top": "no"}, "`include_top` must be one of True, False"),
        ({"name": "a/b"}, "`name` must be None or a string without a slash"),
        ({"name": 5}, "`name` must be None or a string"),
        ({"input_tensor": keras.Input((32,))}, "`input_tensor` must hold im"),
        (
            {"input_tensor": keras.Input((32, 32, 3), dtype="int32")},
            "`input_tensor` must hold images of floats",
        ),
        ({"output_stride": 4}, "`output_stride` must be one of 8, 16, 32"),
        ({"drop_path_rate": 1}, "`drop_path_rate` must be a number in"),
        ({"drop_path_rate": 0.1, "residual": False}, "must be 0 without"),
        ({"classifier_activation": "relux"}, "`classifier_activation` must"),
        (
            {"weights": "imagenet"},
            "`weights` must be None or a file for .*'imagenet'",
        ),
        ({"weights": "no.weights.h5"}, "must be an existing file"),
    ],
)
def test_bad_arguments_are_refused_before_building(
    changes, message, monkeypatch
):
    def no_layers(*_, **__):
        raise AssertionError("a layer was built")

    monkeypatch.setattr("keras_resnext.blocks.convolution", no_layers)
    arguments = {"depths": (1, 1, 1), "cardinality": 4, "base_width": 4}
    with pytest.raises(ValueError, match=message):
        keras_resnext.ResNeXt(**{**arguments, **SMALL, **changes})


def test_input_shape_must_agree_with_the_tensor():
    tensor = keras.Input((64, 64, 3))
    with pytest.raises(ValueError, match="`input_shape` must be left out"):
        keras_resnext.ResNeXt(
            (1, 1), 2, 4, input_tensor=tensor, input_shape=(32, 32, 3)
        )


@pytest.mark.parametrize(
    "name",
    [
        "resnet51",
        "resnext",
        "resnext50_32",
        "resnext30_8x64d",
        "resnext2_8x64d",
        "resnext20_8x4d_64",
    ],
)
def test_unknown_models_are_refused(name):
    with pytest.raises(ValueError, match="`model` must be one of resnext50"):
        build(name)


def test_every_builder_is_listed_and_documents_itself():
    assert len(BUILDERS) == 13
    for name, builder in BUILDERS.items():
        assert name.lower() in keras_resnext.list_models()
        assert builder.__name__ == name
        default = inspect.signature(builder).parameters["name"].default
        assert default == name.lower()
        text = inspect.getdoc(builder)
        for argument in inspect.signature(builder).parameters:
            assert f"    {argument}: " in text


def test_every_named_model_is_frozen():
    assert set(keras_resnext.list_models()) <= set(VARIANTS)
    assert {path.stem for path in Path(GOLDEN).glob("*.json")} == set(VARIANTS)


@pytest.mark.integration
def test_feature_pyramid():
    model = build("resnext50_2x4d", input_shape=(64, 96, 3))
    maps = keras_resnext.feature_pyramid(model)
    assert [tuple(c.shape[1:]) for c in maps.outputs] == [
        (16, 24, 256),
        (8, 12, 512),
        (4, 6, 1024),
        (2, 3, 2048),
    ]
    images = np.random.default_rng(0).normal(size=(2, 64, 96, 3))
    pooled = keras.ops.mean(maps(images)[-1], axis=(1, 2))
    top = model.get_layer("predictions")
    np.testing.assert_allclose(top(pooled), model(images), atol=1e-6)
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="`model` must be built by"):
        keras_resnext.feature_pyramid(other)


@pytest.mark.parametrize("rewrite", ["save", "form", "fold", "stock", "count"])
def test_feature_pyramid_is_a_model_like_others(rewrite, tmp_path):
    body = randomize(
        keras_resnext.ResNeXt(
            (1, 1), 4, 4, stem="cifar", include_top=False, input_shape=(8, 8, 3)
        )
    )
    maps = keras_resnext.feature_pyramid(body)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
    if rewrite == "count":
        counted = keras_resnext.count_complexity(maps)
        assert counted == keras_resnext.count_complexity(body)
        return
    if rewrite == "save":
        maps.save(tmp_path / "maps.keras")
        other = keras.saving.load_model(tmp_path / "maps.keras")
        assert list(other.pyramid_outputs) == ["P0", "P1"]
        assert other.pyramid_outputs["P1"] is other.outputs[1]
    else:
        other = {
            "form": lambda m: keras_resnext.convert_form(m, "branches"),
            "fold": keras_resnext.fold_batch_norm,
            "stock": keras_resnext.to_stock_layers,
        }[rewrite](maps)
    for ours, theirs in zip(maps(images), other(images), strict=True):
        # Sums of some hundred terms in another order, twenty layers deep.
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_output_stride_keeps_the_weights_and_the_grid(output_stride):
    """Subsampled, a dilated network computes what the strided one does.

    Each map of the dilated net, taken at every second (fourth) pixel, holds
    the strided net's map, as long as no pixel sees the border differently:
    the middle is compared.
    """
    arguments = {"include_top": False, "input_shape": (None, None, 3)}
    keras.utils.set_random_seed(0)
    model = build("resnext50_2x4d", **arguments)
    dilated = build("resnext50_2x4d", output_stride=output_stride, **arguments)
    dilated.set_weights(model.get_weights())
    image = np.random.default_rng(0).normal(size=(1, 256, 256, 3))
    expected, found = model(image), dilated(image)
    step = 32 // output_stride
    assert found.shape[1] == 256 // output_stride
    np.testing.assert_allclose(
        found[:, ::step, ::step], expected, rtol=1e-3, atol=1e-4
    )


def test_without_shortcuts_there_is_nothing_to_add():
    model = build("resnext11_2x4d", residual=False, classes=10)
    kinds = {type(layer).__name__ for layer in model.layers}
    assert "Add" not in kinds
    names = [layer.name for layer in model.layers]
    assert "conv2_block1_0_conv" not in names
    assert names.index("conv2_block1_out") == (
        names.index("conv2_block1_3_bn") + 1
    )


def test_drop_path_grows_with_depth_and_drops_whole_images():
    model = build("resnext50_1x4d", drop_path_rate=0.3)
    rates = {
        layer.name: layer.rate
        for layer in model.layers
        if layer.name.endswith("_drop")
    }
    assert len(rates) == 15  # the first block is never dropped
    assert rates["conv5_block3_drop"] == pytest.approx(0.3)
    assert rates["conv2_block2_drop"] == pytest.approx(0.3 / 15)
    layer = keras.layers.Dropout(0.5, noise_shape=(None, 1, 1, 1), seed=0)
    found = np.asarray(layer(np.ones((64, 2, 2, 3)), training=True))
    assert {(v.min(), v.max()) for v in found} == {(0, 0), (2, 2)}


def test_other_than_three_channels():
    model = build("resnext11_2x4d", input_shape=(32, 32, 5), classes=10)
    assert model.get_layer("conv1_conv").kernel.shape == (3, 3, 5, 64)
    assert model(np.zeros((1, 32, 32, 5))).shape == (1, 10)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy, small_model):
    keras.config.set_dtype_policy(policy)
    try:
        model = keras_resnext.ResNeXt(
            (1, 1, 1), 4, 4, **{**SMALL, "classes": 10}
        )
    finally:
        keras.config.set_dtype_policy("float32")
    model.set_weights(small_model.get_weights())
    assert {v.dtype for v in model.variables} == {"float32"}
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    outputs = model(images)
    # Probabilities need more than 8 bits; the classifier stays in float32.
    assert outputs.dtype == "float32"
    expected = small_model(images)
    # 8 (11) bits a layer, ten layers: a few percent of the largest.
    error = np.max(np.abs(outputs - expected)) / np.max(expected)
    assert (
        error < 10 * {"mixed_bfloat16": 2**-8, "mixed_float16": 2**-11}[policy]
    )


def test_clone_and_file_round_trips(tmp_path, small_model):
    clone = keras.models.clone_model(small_model)
    clone.set_weights(small_model.get_weights())
    small_model.save(tmp_path / "m.keras")
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    for again in (clone, keras.saving.load_model(tmp_path / "m.keras")):
        np.testing.assert_array_equal(again(images), small_model(images))
        assert [type(x) for x in again.layers] == [
            type(x) for x in small_model.layers
        ]
