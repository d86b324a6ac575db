"""Images are normalised once: predicted, exported, in every format."""

import dataclasses
import json
import zipfile

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from keras import layers
from sklearn.datasets import load_sample_images

import keras_resnext
from keras_resnext import export
from keras_resnext.classifier import Classifier
from keras_resnext.classifier import list_images
from keras_resnext.export.drawings import drawn_images
from keras_resnext.export.graph import ExportGraph
from keras_resnext.imagenet import MEAN
from keras_resnext.imagenet import STD
from keras_resnext.images import read_image
from keras_resnext.training import evaluate
from keras_resnext.transforms import EvalTransform
from tests.conftest import randomize

EXPORTERS = {
    "savedmodel": export.to_saved_model,
    "tflite": export.to_tflite,
    "onnx": export.to_onnx,
}
every_format = pytest.mark.parametrize("name", list(EXPORTERS))


@pytest.fixture(scope="module")
def crops():
    """Parts of two photographs, uint8 (12, 32, 32, 3)."""
    images = load_sample_images().images
    parts = [images[i % 2][30 * i :, 40 * i :][:32, :32] for i in range(12)]
    return np.stack(parts)


def body():
    return keras_resnext.ResNeXt(
        (1,), 4, 4, stem="cifar", include_top=False, input_shape=(32, 32, 3)
    )


def headed(inputs, x):
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(5, activation="softmax")(x)
    return randomize(keras.Model(inputs, x))


@pytest.fixture(scope="module")
def own_model():
    """As users of keras.applications build one to fine-tune."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = keras_resnext.preprocess_input(inputs)
    return headed(inputs, body()(x, training=False))


@pytest.fixture(scope="module")
def bare_model():
    """The same without its normalisation."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    return headed(inputs, body()(inputs, training=False))


@pytest.fixture(scope="module")
def unknown_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    return headed(inputs, layers.Conv2D(8, 3, activation="relu")(inputs))


def expected(model, images):
    return model.predict(images.astype("float32"), verbose=0)


@pytest.mark.integration
@every_format
def test_a_users_model_is_exported_as_it_is(name, own_model, crops, tmp_path):
    """No argument; what the model says of raw photographs, the file says."""
    artifact = EXPORTERS[name](own_model, tmp_path / "m")
    assert artifact.input == (
        "RGB pixels in [0, 255]; the model normalizes them itself"
    )
    np.testing.assert_allclose(
        artifact.open()(crops.astype("float32"))["probabilities"],
        expected(own_model, crops),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.integration
def test_files_say_what_they_take(own_model, tmp_path):
    said = "RGB pixels in [0, 255]; the model normalizes them itself"
    path = tmp_path / "m.tflite"
    export.to_tflite(own_model, path)
    assert said.encode() in path.read_bytes()
    assert b"Plain pixels in [0, 255]" in path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        transform = json.loads(archive.read("transform.json"))
    assert (transform["mean"], transform["std"]) == (None, None)
    export.to_onnx(own_model, tmp_path / "m.onnx")
    properties = onnx.load(tmp_path / "m.onnx").metadata_props
    assert {p.key: p.value for p in properties}["input"] == said
    export.to_saved_model(own_model, tmp_path / "m")
    signatures = tf.saved_model.load(tmp_path / "m").signatures
    assert set(signatures) == {"serving_default", "image_uint8", "image_bytes"}


def augmented():
    inputs = keras.Input((32, 32, 3))
    x = layers.RandomFlip()(inputs)
    x = layers.Rescaling(1 / 127.5, offset=-1)(x)
    network = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(32, 32, 3), alpha=0.35
    )
    return headed(inputs, network(x, training=False))


def efficient():
    """It normalises inside."""
    inputs = keras.Input((32, 32, 3))
    network = keras.applications.EfficientNetB0(
        weights=None, include_top=False, input_shape=(32, 32, 3)
    )
    return headed(inputs, network(inputs, training=False))


def nested():
    inputs = keras.Input((32, 32, 3))
    before = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.RandomRotation(0.1),
            layers.Rescaling(1 / 255),
        ]
    )
    return headed(inputs, body()(before(inputs)))


def sequential():
    adapted = layers.Normalization()
    photos = load_sample_images().images[0].astype("float32")
    adapted.adapt(photos[None, :320, :320])
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            adapted,
            body(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, activation="softmax"),
        ]
    )
    statistics = adapted.get_weights()
    randomize(model)
    adapted.set_weights(statistics)
    return model


@pytest.mark.integration
@every_format
@pytest.mark.parametrize(
    "build",
    [
        augmented,
        pytest.param(efficient, marks=pytest.mark.slow),
        nested,
        sequential,
    ],
)
def test_other_models_of_users(name, build, crops, tmp_path):
    keras.utils.set_random_seed(0)
    model = build()
    artifact = EXPORTERS[name](model, tmp_path / "m")
    assert "the model normalizes them itself" in artifact.input
    np.testing.assert_allclose(
        artifact.open()(crops.astype("float32"))["probabilities"],
        expected(model, crops),
        rtol=1e-3,
        atol=1e-5,
    )


def normalize(images):
    return (images / 255 - tf.constant(MEAN)) / tf.constant(STD)


def denormalize(images):
    return 255 * (images * tf.constant(STD) + tf.constant(MEAN))


def doubled(graph, images):
    return normalize(PIXELS(graph, images))


def missing(graph, images):
    return denormalize(PIXELS(graph, images))


PIXELS = ExportGraph._pixels


@pytest.fixture
def models(own_model, bare_model):
    return {"own": own_model, "bare": bare_model}


@every_format
@pytest.mark.parametrize(
    ("wrong", "model"),
    [
        (doubled, "own"),
        (missing, "bare"),
        pytest.param(missing, "own", marks=pytest.mark.integration),
        pytest.param(doubled, "bare", marks=pytest.mark.integration),
    ],
)
def test_a_wrong_graph_is_refused(
    name, wrong, model, models, tmp_path, monkeypatch
):
    """In the graph that is exported only, on the images drawn by default."""
    monkeypatch.setattr(ExportGraph, "_pixels", wrong)
    with pytest.raises(export.ExportError, match="outputs are not Keras'"):
        EXPORTERS[name](models[model], tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


QUANTIZED = [
    ("tflite", "float16"),
    ("tflite", "dynamic"),
    ("tflite", "int8"),
    ("onnx", "int8"),
]


@pytest.mark.integration
@pytest.mark.parametrize("wrong", [None, doubled, missing])
@pytest.mark.parametrize(("name", "quantize"), QUANTIZED)
def test_quantized_files_too(
    name, quantize, wrong, own_model, crops, tmp_path, monkeypatch
):
    """Eight bits hide small differences; these are none."""
    options = {"quantize": quantize}
    if quantize == "int8":
        drawn = drawn_images((32, 32, 3))
        options["calibration"] = np.concatenate([drawn[:, ::-1], crops])
    if wrong is None:
        EXPORTERS[name](own_model, tmp_path / "m", **options)
        return
    monkeypatch.setattr(ExportGraph, "_pixels", wrong)
    with pytest.raises(export.ExportError, match="outputs are not Keras'"):
        EXPORTERS[name](own_model, tmp_path / "m", **options)


@every_format
def test_what_would_normalise_twice_is_refused(
    name, own_model, unknown_model, tmp_path
):
    def refused(message, model, **options):
        with pytest.raises(ValueError, match=message):
            EXPORTERS[name](model, tmp_path / "m", **options)
        assert list(tmp_path.iterdir()) == []

    refused("normalised twice", own_model, preprocessing="imagenet")
    refused(
        "must leave grey levels",
        own_model,
        preprocessing=layers.Rescaling(1 / 255),
    )
    refused(
        "must have mean and std None",
        own_model,
        transform=EvalTransform.from_crop_pct(32),
    )
    refused("`preprocessing` must be given", unknown_model)


@pytest.mark.integration
def test_what_is_said_of_an_unknown_model(unknown_model, crops, tmp_path):
    images = crops.astype("float32")
    raw = EvalTransform.from_crop_pct(32, mean=None, std=None)
    for number, (options, said, inputs) in enumerate(
        (
            ({"preprocessing": None}, "what the bare network takes", images),
            ({"transform": raw}, "pixels in [0, 255]; nothing is norm", images),
            (
                {"preprocessing": "imagenet"},
                "normalization (imagenet) is in here",
                keras_resnext.preprocess_input(images),
            ),
            (
                {"preprocessing": layers.Rescaling(1 / 255)},
                "normalization (own) is in here",
                images / 255,
            ),
        )
    ):
        artifact = export.to_onnx(
            unknown_model, tmp_path / f"{number}", images=images, **options
        )
        assert said in artifact.input
        np.testing.assert_allclose(
            artifact.scores,
            unknown_model.predict(inputs, verbose=0),
            rtol=1e-4,
            atol=1e-6,
        )


def test_a_layer_that_leaves_pixels_as_they_are(own_model, crops, tmp_path):
    """Such as one that turns BGR into RGB."""

    class Swap(layers.Layer):
        def call(self, x):
            return x[..., ::-1]

    artifact = export.to_onnx(own_model, tmp_path / "m", preprocessing=Swap())
    np.testing.assert_allclose(
        artifact.open()(crops.astype("float32"))["probabilities"],
        expected(own_model, crops[..., ::-1]),
        rtol=1e-4,
        atol=1e-6,
    )


def probabilities(predictions):
    return np.stack([p.probabilities for p in predictions])


def test_predict_normalises_once(own_model, bare_model, crops, tmp_path):
    """From memory, a plain `.keras` file and one of `Classifier.save`."""
    own_model.save(tmp_path / "own.keras")
    bare_model.save(tmp_path / "bare.keras")
    once = keras_resnext.preprocess_input(crops)
    for name, model, inputs in (
        ("own", own_model, crops),
        ("bare", bare_model, once),
    ):
        plain = Classifier.load(tmp_path / f"{name}.keras")
        Classifier(model).save(tmp_path / f"{name}_saved.keras")
        saved = Classifier.load(tmp_path / f"{name}_saved.keras")
        assert saved.transform.normalizes == (name == "bare")
        for classifier in (Classifier(model), plain, saved):
            np.testing.assert_allclose(
                probabilities(classifier.predict(crops)),
                expected(model, inputs),
                atol=1e-6,
            )


def test_predict_refuses_what_is_wrong(
    own_model, bare_model, unknown_model, crops, tmp_path
):
    numbers = EvalTransform.from_crop_pct(32)
    none = dataclasses.replace(numbers, mean=None, std=None)
    with pytest.raises(ValueError, match="be normalised twice"):
        Classifier(own_model, transform=numbers)
    with pytest.raises(ValueError, match="takes normalised pixels; got None"):
        Classifier(bare_model, transform=none)
    with pytest.raises(ValueError, match="`transform` must be given"):
        Classifier(unknown_model).predict(crops)
    for transform in (numbers, none):
        found = Classifier(unknown_model, transform=transform).predict(crops)
        np.testing.assert_allclose(
            probabilities(found),
            expected(unknown_model, transform.normalize(crops)),
            atol=1e-6,
        )
    for name, model, preprocessing, message in (
        ("own", own_model, "imagenet", '`preprocessing` must not be "imagen'),
        ("bare", bare_model, None, "takes normalised pixels; got None"),
        ("bare", bare_model, "torch", '`preprocessing` must be "auto"'),
    ):
        path = tmp_path / f"{name}.keras"
        model.save(path)
        with pytest.raises(ValueError, match=message):
            Classifier.load(path, preprocessing=preprocessing)
    unknown_model.save(tmp_path / "unknown.keras")
    for preprocessing, normalizes in (("imagenet", True), (None, False)):
        classifier = Classifier.load(
            tmp_path / "unknown.keras", preprocessing=preprocessing
        )
        assert classifier.transform.normalizes == normalizes


def test_evaluation_normalises_once(shades):
    """The loss is that of the model called on pixels."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Flatten()(layers.Rescaling(1 / 255)(inputs))
    x = layers.Dense(3, activation="softmax")(x)
    model = keras.Model(inputs, x)
    names = ["120", "200", "40"]
    paths = [p for n in names for p in list_images(shades / "test" / n)]
    pixels = np.stack([read_image(path) for path in paths])
    correct = expected(model, pixels)[range(15), np.repeat([0, 1, 2], 5)]
    result = evaluate(model, str(shades))
    assert result.loss == pytest.approx(-np.log(correct).mean(), rel=1e-5)
    bare = keras.Model(
        inputs, layers.Dense(3, "softmax")(layers.Flatten()(inputs))
    )
    with pytest.raises(ValueError, match="`transform` must be given"):
        evaluate(bare, str(shades))


def test_drawn_images_differ_and_stay():
    images = drawn_images((48, 32, 3))
    assert images.shape == (8, 48, 32, 3)
    assert images.min() >= 0
    assert images.max() <= 255
    np.testing.assert_array_equal(images, np.round(images))
    np.testing.assert_array_equal(images, drawn_images((48, 32, 3)))
    # Noise's means are all alike, 127.5 to within 1.
    assert images.mean(axis=(1, 2)).std(axis=0).min() > 20
    assert images.std(axis=(1, 2)).max(axis=-1).min() > 10
    assert drawn_images((5, 1, 1)).shape == (8, 5, 1, 1)
