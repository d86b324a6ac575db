"""Counts against published ones, and against sums done by hand."""

import keras
import pytest

import keras_resnext
from keras_resnext.complexity import count_complexity
from keras_resnext.complexity import total
from keras_resnext.paper import TABLES
from keras_resnext.variants import build
from keras_resnext.variants import list_models


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "size", "multiply_adds", "params"),
    [
        # timm's and torchvision's networks, convolutions and classifier.
        ("resnext50", 224, 4_230_479_872, 25_028_904),
        ("resnext50", 160, 2_159_411_200, 25_028_904),
        ("resnext50", 288, 6_991_904_768, 25_028_904),
        ("resnext101", 224, 7_969_996_800, 44_177_704),
        ("resnext101_32x8d", 224, 16_414_015_488, 88_791_336),
        ("resnext101_64x4d", 224, 15_460_270_080, 83_455_272),
    ],
)
def test_published_counts(name, size, multiply_adds, params):
    found = count_complexity(build(name, input_shape=(size, size, 3)))
    assert found.multiply_adds == multiply_adds
    assert found.params == params
    assert total(found.by_layer) == found


def test_counts_by_hand():
    inputs = keras.Input((8, 8, 4))
    x = keras_resnext.layers.GroupedConv2D(
        6, 3, groups=2, strides=2, padding="same", name="conv"
    )(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(5, name="top")(x))
    model.get_layer("conv").trainable = False
    found = count_complexity(model)
    kernel = 3 * 3 * 2 * 6
    assert found.by_layer["conv"].multiply_adds == 4 * 4 * kernel
    assert found.by_layer["conv"].activations == 4 * 4 * 6
    assert found.by_layer["top"].multiply_adds == 6 * 5
    assert found.params == (kernel + 6) + 12 + (6 * 5 + 5)
    assert found.activations == 4 * 4 * 6
    outer = keras.Sequential([keras.Input((8, 8, 4)), model])
    again = count_complexity(outer)
    assert again.multiply_adds == found.multiply_adds
    assert f"{model.name}/conv" in again.by_layer


@pytest.mark.parametrize("form", ["concatenated", "branches"])
def test_forms_cost_the_same_multiply_adds(form):
    arguments = {"classes": 10}
    grouped = count_complexity(build("resnext11_4x4d", **arguments))
    other = count_complexity(build("resnext11_4x4d", form=form, **arguments))
    assert other.multiply_adds == grouped.multiply_adds
    assert other.params == grouped.params


@pytest.mark.integration
def test_template_of_the_paper_costs_what_equation_4_says():
    """C (256 d + 9 d d + 256 d) for a block of the second stage."""
    for cardinality, width in ((1, 64), (2, 40), (4, 24), (8, 14), (32, 4)):
        model = build(f"resnext50_{cardinality}x{width}d")
        layers = count_complexity(model).by_layer
        found = sum(layers[f"conv2_block2_{i}_conv"].params for i in (1, 2, 3))
        assert found == cardinality * (256 * width * 2 + 9 * width**2)


def test_kinds_of_convolution():
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="d")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(5, name="e")(x))
    layers = count_complexity(model).by_layer
    # 6x6 places, 3x3 taps, 8 channels; and a matrix at each place.
    assert layers["d"].multiply_adds == 36 * 9 * 8
    assert layers["e"].multiply_adds == 36 * 8 * 5


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_separable_convolution_is_two_convolutions(data_format):
    last = data_format == "channels_last"
    inputs = keras.Input((8, 9, 4) if last else (4, 8, 9))
    options = {"data_format": data_format, "use_bias": False}
    two = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, **options)(inputs)
    two = keras.layers.Conv2D(5, 1, **options)(two)
    one = keras.layers.SeparableConv2D(5, 3, depth_multiplier=2, **options)
    one = count_complexity(keras.Model(inputs, one(inputs)))
    two = count_complexity(keras.Model(inputs, two))
    for count in ("params", "multiply_adds", "activations"):
        assert getattr(one, count) == getattr(two, count)


def test_what_cannot_be_counted_is_refused():
    inputs = keras.Input((8, 8, 4))
    layer = keras.layers.Conv2DTranspose(4, 3, name="up")
    with pytest.raises(ValueError, match="up is a Conv2DTranspose"):
        count_complexity(keras.Model(inputs, layer(inputs)))
    for model in (None, keras.Sequential([keras.layers.Dense(2)])):
        with pytest.raises(ValueError, match="must be a functional or a built"):
            count_complexity(model)


def test_unknown_sizes_and_shared_layers_are_refused():
    model = build("resnext11_2x4d", include_top=False)
    with pytest.raises(ValueError, match="inputs of fixed size .*conv1_conv"):
        count_complexity(model)
    inputs = keras.Input((4,))
    layer = keras.layers.Dense(4, name="twice")
    model = keras.Model(inputs, layer(layer(inputs)))
    with pytest.raises(ValueError, match="each layer once; twice"):
        count_complexity(model)


def test_papers_rows_are_models():
    for rows in TABLES.values():
        assert {row.model for row in rows} <= set(list_models())
