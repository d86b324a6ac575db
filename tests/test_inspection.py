"""What a model takes, found in its graph."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_resnext
from keras_resnext.inspection import input_kind


@pytest.fixture(scope="module")
def body():
    return keras_resnext.ResNeXt(
        (1, 1, 1), 4, 4, stem="cifar", include_top=False,
        input_shape=(32, 32, 3),
    )  # fmt: skip


def with_head(inputs, x):
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


def behind(before, body):
    """A user's model: own layers, the nested network, an own head."""
    inputs = keras.Input((32, 32, 3))
    return with_head(inputs, body(before(inputs), training=False))


def adapted(low, high):
    layer = layers.Normalization()
    images = np.random.default_rng(0).uniform(low, high, (9, 32, 32, 3))
    layer.adapt(images.astype("float32"))
    return layer


def nested(inputs):
    inner = keras.Sequential(
        [layers.RandomRotation(0.1), layers.Rescaling(1 / 255)]
    )
    outer = keras.Input((32, 32, 3))
    outer = keras.Model(outer, layers.Normalization()(inner(outer)))
    return outer(inputs)


def applications(name):
    return getattr(keras.applications, name).preprocess_input


BEFORE = {
    "preprocess_input": (keras_resnext.preprocess_input, "pixels"),
    "caffe": (applications("resnet"), "pixels"),
    "tf": (applications("mobilenet_v2"), "pixels"),
    "torch": (applications("densenet"), "pixels"),
    "rescaling": (layers.Rescaling(1 / 127.5, offset=-1), "pixels"),
    "adapted": (adapted(0, 255), "pixels"),
    "flip": (
        lambda x: layers.Rescaling(1 / 255)(layers.RandomFlip()(x)),
        "pixels",
    ),
    "nested": (nested, "pixels"),
    "nothing": (lambda x: x, "normalized"),
    "augmentation": (layers.RandomFlip(), "normalized"),
    "resizing": (layers.Resizing(24, 24), "normalized"),
    # Of images in [0, 1], and of normalised ones.
    "stretched": (layers.Rescaling(2.0, offset=-1), "unknown"),
    "adapted to [0, 1]": (adapted(0, 1), "unknown"),
    "adapted again": (adapted(-2, 2.5), "unknown"),
    "shifted": (lambda x: x - 0.5, "unknown"),
    "learned": (layers.BatchNormalization(), "unknown"),
}


@pytest.mark.parametrize("name", BEFORE)
def test_what_stands_before_the_network(name, body, tmp_path):
    """Before and after saving to a plain `.keras` file."""
    before, kind = BEFORE[name]
    fixed = keras.Input((32, 32, 3))
    any_size = keras_resnext.ResNeXt(
        (1, 1, 1), 4, 4, stem="cifar", include_top=False
    )
    model = behind(before, any_size if name == "resizing" else body)
    assert input_kind(model) == kind
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert input_kind(loaded) == kind
    outer = keras.Model(fixed, model(fixed))
    assert input_kind(outer) == kind


@pytest.mark.integration
def test_networks_survive_what_is_done_to_them(body):
    inputs = body.inputs[0]
    headed = keras.Model(inputs, with_head(inputs, body.output).output)
    models = [
        body,
        headed,
        keras.Sequential([keras.Input((32, 32, 3)), body, layers.Flatten()]),
        keras_resnext.feature_pyramid(body),
        keras_resnext.ResNeXt50(weights=None, include_top=False),
    ]
    for form in ("branches", "concatenated"):
        converted = keras_resnext.convert_form(headed, form)
        models += [converted, keras_resnext.fold_batch_norm(converted)]
    for rewrite in (
        keras_resnext.fold_batch_norm,
        keras_resnext.to_stock_layers,
    ):
        models.append(rewrite(headed))
    assert [input_kind(model) for model in models] == ["normalized"] * 11
    outside = behind(keras_resnext.preprocess_input, body)
    assert input_kind(keras_resnext.fold_batch_norm(outside)) == "pixels"
    inside = keras_resnext.ResNeXt(
        (1,), 2, 4, stem="cifar",
        input_tensor=keras_resnext.preprocess_input(keras.Input((8, 8, 3))),
    )  # fmt: skip
    assert input_kind(inside) == "pixels"


@pytest.fixture
def channels_first():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


@pytest.mark.usefixtures("channels_first")
def test_channels_first():
    network = keras_resnext.ResNeXt(
        (1,), 2, 4, stem="cifar", input_shape=(3, 8, 8)
    )
    assert input_kind(network) == "normalized"
    inputs = keras.Input((3, 8, 8))
    x = network(keras_resnext.preprocess_input(inputs))
    assert input_kind(keras.Model(inputs, x)) == "pixels"


def test_models_whose_graph_does_not_say():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    one, two = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    learned = layers.Conv2D(3, 1)
    dense = layers.Dense(2)(layers.Flatten()(one))
    other = keras.layers.Add()([learned(one), learned(one / 255)])
    for model in (
        Subclassed(),
        keras.Sequential([layers.Rescaling(1 / 255)]),  # not built
        keras.Model([one, two], layers.Add()([one, two])),
        keras.Model(one, dense),
        keras.Model(one, layers.Rescaling(1 / 255)(one)),  # learns nothing
        keras.Model(one, other),
    ):
        assert input_kind(model) == "unknown"
    whole = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.ops.cast(whole, "float32")
    assert input_kind(keras.Model(whole, learned(x))) == "pixels"


@pytest.mark.slow
def test_keras_applications():
    """Those with the names of our layers are told apart."""
    kinds = {
        "DenseNet121": "unknown",
        "ResNet50": "unknown",
        "ResNet50V2": "unknown",
        "MobileNetV2": "unknown",
        "MobileNetV3Small": "pixels",
        "EfficientNetB0": "pixels",
        "EfficientNetV2B0": "pixels",
        "ConvNeXtTiny": "pixels",
    }
    for name, kind in kinds.items():
        builder = getattr(keras.applications, name)
        model = builder(
            weights=None, include_top=False, input_shape=(64, 64, 3)
        )
        assert input_kind(model) == kind, name
        inputs = keras.Input((64, 64, 3))
        x = model(layers.Rescaling(1 / 127.5, offset=-1)(inputs))
        assert input_kind(with_head(inputs, x)) == "pixels"
