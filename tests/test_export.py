"""Exports: each file in its own runtime, against Keras."""

import collections
import importlib.util
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from PIL import Image
from sklearn.datasets import load_sample_images
from tf2onnx import tfonnx

import keras_resnext
from keras_resnext import export
from keras_resnext.classifier import Classifier
from keras_resnext.export import flatbuffer
from keras_resnext.export import graph
from keras_resnext.export import report
from keras_resnext.export import verify
from keras_resnext.export.flatbuffer import operators
from keras_resnext.export.graph import ExportGraph
from keras_resnext.export.runtimes import median_latency
from keras_resnext.export.tflite import check_operators
from keras_resnext.files import held
from keras_resnext.inspection import classifies
from keras_resnext.inspection import output_names
from keras_resnext.layers import use_conv_implementation
from keras_resnext.transforms import EvalTransform
from keras_resnext.variants import build
from tests.conftest import randomize

EXPORTERS = {
    "savedmodel": export.to_saved_model,
    "tflite": export.to_tflite,
    "onnx": export.to_onnx,
}
LABELS = [f"class {i}" for i in range(10)]
every_format = pytest.mark.parametrize("name", list(EXPORTERS))


@pytest.fixture(scope="module")
def branches_model():
    keras.utils.set_random_seed(1)
    return randomize(
        keras_resnext.ResNeXt(
            (1, 1), 3, 4, stem="cifar", form="branches", classes=10,
            input_shape=(16, 16, 3),
        )
    )  # fmt: skip


def expected_scores(model, pixels):
    return model.predict(keras_resnext.preprocess_input(pixels), verbose=0)


@every_format
def test_files_agree_with_keras(name, small_model, pixels, tmp_path):
    path = tmp_path / "out" / "model"
    artifact = EXPORTERS[name](small_model, path, images=pixels, labels=LABELS)
    assert artifact.path == path
    assert [p.name for p in path.parent.iterdir()] == ["model"]
    assert artifact.agreement.top1_agreement == 1
    assert artifact.agreement.max_logit_difference < 1e-4
    files = [p for p in (path, *path.rglob("*")) if p.is_file()]
    assert artifact.size == sum(p.stat().st_size for p in files)
    # Opened again, other pixels, a batch that is no multiple of anything.
    others = pixels[::-1][:5] / 2
    np.testing.assert_allclose(
        artifact.open()(others)["probabilities"],
        expected_scores(small_model, others),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.integration
@every_format
def test_branches_export_too(name, branches_model, pixels, tmp_path):
    artifact = EXPORTERS[name](branches_model, tmp_path / "m", images=pixels)
    np.testing.assert_allclose(
        artifact.scores,
        expected_scores(branches_model, pixels),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.integration
@every_format
def test_bare_network_and_own_preprocessing(
    name, small_model, pixels, tmp_path
):
    inputs = keras_resnext.preprocess_input(pixels)
    bare = EXPORTERS[name](
        small_model, tmp_path / "bare", preprocessing=None, images=inputs
    )
    halve = keras.layers.Rescaling(0.5, offset=-1)
    own = EXPORTERS[name](
        small_model, tmp_path / "own", preprocessing=halve, images=inputs
    )
    expected = small_model.predict(inputs, verbose=0)
    np.testing.assert_allclose(bare.scores, expected, rtol=1e-4, atol=1e-6)
    norm = keras.layers.BatchNormalization(epsilon=0.1)
    stateful = keras.Sequential([keras.Input((16, 16, 3)), norm])
    scaled = EXPORTERS[name](
        small_model,
        tmp_path / "stateful",
        preprocessing=randomize(stateful),
        images=inputs,
    )
    for artifact, before in (
        (own, inputs / 2 - 1),
        (scaled, stateful.predict(inputs, verbose=0)),
    ):
        expected = small_model.predict(before, verbose=0)
        np.testing.assert_allclose(
            artifact.scores, expected, rtol=1e-4, atol=1e-6
        )


@every_format
@pytest.mark.integration
def test_features_without_top(name, pixels, tmp_path):
    model = randomize(
        keras_resnext.ResNeXt(
            (1, 1), 2, 4, stem="cifar", include_top=False, pooling="avg",
            input_shape=(16, 16, 3),
        )
    )  # fmt: skip
    artifact = EXPORTERS[name](model, tmp_path / "m", images=pixels)
    expected = expected_scores(model, pixels)
    assert artifact.scores.shape == (12, 512)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(artifact.scores, expected, atol=1e-5 * scale)


@pytest.fixture
def wrong_graph(monkeypatch):
    """A converter that exports another function: no normalisation in it."""
    monkeypatch.setattr(graph, "_normalize", lambda images, **_: images)


@every_format
@pytest.mark.usefixtures("wrong_graph")
def test_failed_check_leaves_no_file(name, small_model, pixels, tmp_path):
    with pytest.raises(
        export.ExportError, match="not written.*not Keras', largest difference"
    ):
        EXPORTERS[name](small_model, tmp_path / "model", images=pixels)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
@every_format
def test_failed_check_keeps_what_was_there(
    name, small_model, pixels, tmp_path, request
):
    def files():
        return {
            path: path.stat().st_mtime_ns
            for path in tmp_path.rglob("*")
            if path.is_file()
        }

    path = tmp_path / "model"
    EXPORTERS[name](small_model, path)
    before = files()
    with pytest.raises(FileExistsError, match="unless `overwrite` is true"):
        EXPORTERS[name](small_model, path)
    request.getfixturevalue("wrong_graph")
    with pytest.raises(export.ExportError):
        EXPORTERS[name](small_model, path, images=pixels, overwrite=True)
    assert files() == before


@pytest.mark.integration
@every_format
def test_overwriting_replaces_its_own_kind_only(name, small_model, tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "precious").write_text("weights")
    with pytest.raises(FileExistsError, match="`path` must be free or hold"):
        EXPORTERS[name](small_model, path, overwrite=True)
    assert (path / "precious").exists()
    (path / "saved_model.pb").write_text("")
    with pytest.raises(FileExistsError, match="`path` must be free or hold"):
        EXPORTERS[name](small_model, path, overwrite=True)
    assert (path / "precious").exists()
    again = tmp_path / "model"
    for _ in range(2):
        EXPORTERS[name](small_model, again, overwrite=True)
    other = {"savedmodel": "onnx"}.get(name, "savedmodel")
    with pytest.raises(FileExistsError, match="`path` must be free or hold"):
        EXPORTERS[other](small_model, again, overwrite=True)


@every_format
def test_bad_arguments(name, small_model, tmp_path):
    def refused(message, model=small_model, **arguments):
        with pytest.raises(ValueError, match=message):
            EXPORTERS[name](model, tmp_path / "m", **arguments)
        assert list(tmp_path.iterdir()) == []

    refused("`labels` must be the model's 10 class names", labels=["ab"])
    refused("`labels` must be a list of names; got 'ab'", labels="ab")
    refused("`labels` must be a list of names; got 5", labels=5)
    refused("`limits` must be Limits; got {}", limits={})
    refused("one image input .* inputs are \\[\\]", keras.Sequential())
    refused("`labels` must be the model's 10 class names", labels=range(10))
    refused("`model` must be a keras.Model; got 'x.keras'", model="x.keras")
    if name == "onnx":
        for opset in (3, "17", 30):
            refused("`opset` must be from 13 to 18; got", opset=opset)
    refused('must be "auto", "imagenet", None, or', preprocessing="torch")
    refused("`images` must have shape", images=np.zeros((2, 8, 8, 3)))
    any_size = keras_resnext.ResNeXt((1,), 2, 4, include_top=False)
    refused("one image input of fixed size", model=any_size)


@pytest.mark.integration
def test_saved_model_needs_tensorflow_alone(small_model, pixels, tmp_path):
    """In a process that can import neither Keras nor this package."""
    export.to_saved_model(small_model, tmp_path / "m", labels=LABELS)
    np.save(tmp_path / "pixels.npy", pixels)
    code = """
import sys
sys.modules["keras"] = sys.modules["keras_resnext"] = None
import numpy as np
import tensorflow as tf
loaded = tf.saved_model.load("m")
serve = loaded.signatures["serving_default"]
outputs = serve(image=tf.constant(np.load("pixels.npy")))
np.save("scores.npy", outputs["probabilities"])
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    np.testing.assert_allclose(
        np.load(tmp_path / "scores.npy"),
        expected_scores(small_model, pixels),
        rtol=1e-4,
        atol=1e-6,
    )
    text = (tmp_path / "m" / "assets" / "labels.txt").read_text()
    assert text.splitlines() == LABELS


def test_saved_model_keeps_each_weight_once(small_model, tmp_path):
    artifact = export.to_saved_model(small_model, tmp_path / "m")
    stored = tf.train.list_variables(
        str(tmp_path / "m" / "variables" / "variables")
    )
    weights = [shape for name, shape in stored if "weights" in name]
    folded = keras_resnext.fold_batch_norm(small_model).count_params()
    assert sum(map(np.prod, weights)) == folded
    assert artifact.size < 4 * folded + 500_000
    graph = (tmp_path / "m" / "saved_model.pb").read_bytes()
    assert b"_XlaMustCompile" not in graph


def test_tflite_operators_and_labels(small_model, tmp_path):
    path = tmp_path / "m.tflite"
    export.to_tflite(small_model, path, labels=LABELS)
    counts = collections.Counter(operators(path))
    # 1 stem, 3 blocks of 3, 3 projections; grouped ones are not split.
    assert counts["CONV_2D"] == 13
    assert not {name for name in counts if name.startswith("Flex")}
    assert counts["VAR_HANDLE"] == 0
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == LABELS


def test_tflite_left_with_variables_is_refused(small_model, tmp_path):
    """The converter's other entry writes such a file without a word."""
    graph = ExportGraph(small_model, "imagenet")
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [graph.function(batch=1).get_concrete_function()], graph._model
    )
    path = tmp_path / "m.tflite"
    path.write_bytes(converter.convert())
    with pytest.raises(export.ExportError, match="VAR_HANDLE"):
        check_operators(path)


def test_onnx_graph(small_model, tmp_path):
    path = tmp_path / "m.onnx"
    export.to_onnx(small_model, path, labels=LABELS)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    convolutions = [n for n in proto.graph.node if n.op_type == "Conv"]
    groups = collections.Counter(
        attribute.i
        for node in convolutions
        for attribute in node.attribute
        if attribute.name == "group"
    )
    assert len(convolutions) == 13
    assert groups[4] == 3
    assert "BatchNormalization" not in {n.op_type for n in proto.graph.node}
    (image,), (scores,) = proto.graph.input, proto.graph.output
    assert (image.name, scores.name) == ("image", "probabilities")
    batch = image.type.tensor_type.shape.dim[0]
    assert batch.dim_param == "batch"
    assert proto.opset_import[0].version == 17
    properties = {p.key: p.value for p in proto.metadata_props}
    assert json.loads(properties["labels"]) == LABELS


@pytest.mark.parametrize("name", ["tflite", "onnx"])
def test_grouped_convolutions_stay_whole_whatever_the_machine(
    name, small_model, pixels, tmp_path
):
    path = tmp_path / "m"
    with use_conv_implementation("split"):
        EXPORTERS[name](small_model, path, images=pixels)
    if name == "tflite":
        count = operators(path).count("CONV_2D")
    else:
        count = sum(n.op_type == "Conv" for n in onnx.load(path).graph.node)
    assert count == 13


def test_logits_undo_softmax(small_model):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 10)) * 5
    values -= values.mean(-1, keepdims=True)
    scores = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
    np.testing.assert_allclose(verify.logits(small_model, scores), values)


def test_latency_is_the_median_of_single_images(monkeypatch):
    """Nine calls of 1 to 9 seconds, after five slow ones that do not count."""
    seconds = iter([*[50] * 5, 9, 1, 8, 2, 7, 3, 6, 4, 5])
    now, shapes = [0.0], []

    def run(image):
        shapes.append(image.shape)
        now[0] += next(seconds)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    images = np.zeros((3, 2, 2, 3))
    assert median_latency(run, images, 9) == pytest.approx(5000)
    assert shapes == [(1, 2, 2, 3)] * 14


def test_every_output_has_its_own_name(small_model):
    inputs = keras.Input((16, 16, 3))
    maps = keras_resnext.feature_pyramid(small_model)
    x = keras.layers.Flatten(name="flat")(inputs)
    for model, names in (
        (keras.Model(inputs, [x, x]), ["flat_0", "flat_1"]),
        (keras.Model(inputs, {"b": x, "a": maps(inputs)[0]}), ["a", "b"]),
        (keras.Sequential([inputs, maps]), maps.output_names),
    ):
        assert output_names(model) == names
        assert len(names) == len(model.outputs)


@pytest.mark.integration
@every_format
def test_outputs_of_a_model_inside(name, small_model, pixels, tmp_path):
    inputs = keras.Input((16, 16, 3))
    maps = keras_resnext.feature_pyramid(small_model)
    model = keras.Model(inputs, maps(inputs))
    artifact = EXPORTERS[name](model, tmp_path / "m", images=pixels)
    assert list(artifact.outputs) == maps.output_names


def test_what_outputs_mean(small_model):
    """Of a model inside, the output that is used counts, not its last layer."""
    inputs = keras.Input((16, 16, 3))
    inner = keras.Model(
        small_model.input,
        [small_model.get_layer("avg_pool").output, small_model.output],
    )
    features, probabilities = (keras.Model(inputs, y) for y in inner(inputs))
    assert output_names(features) == ["features"]
    assert output_names(probabilities) == ["probabilities"]
    named = keras.Model(inputs, {"probabilities": inner(inputs)[0]})
    values = np.float32([[-1, 2]])
    np.testing.assert_array_equal(verify.logits(named, values), values)
    maps = keras.layers.Conv2D(3, 1, activation="softmax")(inputs)
    assert not classifies(keras.Model(inputs, maps))
    assert classifies(small_model)
    x = keras.layers.Flatten(name="image")(inputs)
    x = keras.layers.Dense(3, activation="softmax")(x)
    images = np.zeros((2, 16, 16, 3), "float32")
    session = export.Session(
        keras.Model(inputs, x), preprocessing=None, images=images
    )
    assert session.reference.scales == {"probabilities": 1}
    for wrong in ({"image": maps}, [maps, [maps]]):
        with pytest.raises(ValueError, match="`model` must "):
            export.Session(keras.Model(inputs, wrong))


@pytest.mark.integration
@every_format
def test_layers_that_fold_and_forms_do_not_know(name, pixels, tmp_path):
    """Keras' own grouped convolution, what adapts, and what has no config."""

    class Own(keras.layers.Layer):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def call(self, x):
            return x * self.factor

    class Nameless(keras.layers.Layer):
        def __init__(self):
            super().__init__()

        def call(self, x):
            return x + 1

    adapted = keras.layers.Normalization()
    grouped = keras.layers.Conv2D(8, 3, groups=4)
    keras.utils.set_random_seed(0)
    for number, (before, after) in enumerate(
        (([adapted], [grouped]), ([], [Own(2.0)]), ([], [Nameless()]))
    ):
        model = randomize(
            keras.Sequential(
                [
                    keras.Input((16, 16, 3)),
                    *before,
                    keras.layers.Conv2D(8, 3),
                    keras.layers.BatchNormalization(),
                    *after,
                    keras.layers.GlobalAveragePooling2D(),
                    keras.layers.Dense(4, activation="softmax"),
                ]
            )
        )
        if before:
            adapted.adapt(keras_resnext.preprocess_input(pixels))
        path = tmp_path / f"{number}"
        artifact = EXPORTERS[name](
            model, path, images=pixels, preprocessing="imagenet"
        )
        assert artifact.size > 100
        if name == "savedmodel":
            content = (path / "saved_model.pb").read_bytes()
            assert b"_XlaMustCompile" not in content


def blind(images):
    return images * 1e-4 + 128  # with 0, some converters leave a constant


def swapped(images):
    return images[..., ::-1]


# With fixed ranges the noise in an untrained network is as loud as colours.
@pytest.mark.integration
@pytest.mark.parametrize(
    ("quantize", "wrong"),
    [("dynamic", blind), ("dynamic", swapped), ("int8", blind)],
)
def test_a_quantized_file_that_sees_something_else(
    quantize, wrong, crops, tmp_path, monkeypatch
):
    """Likelier classes hide it from the plain correlation."""
    model = imagenet_model()
    pixels = ExportGraph._pixels
    monkeypatch.setattr(
        ExportGraph, "_pixels", lambda graph, x: pixels(graph, wrong(x))
    )
    calibration = crops if quantize == "int8" else None
    with pytest.raises(
        export.ExportError, match="subtracting each logit's mean"
    ) as refusal:
        export.to_tflite(
            model,
            tmp_path / "m",
            quantize=quantize,
            calibration=calibration,
            images=crops,
            limits=export.Limits(
                centred_correlation=verify.LIMITS[quantize].centred_correlation
            ),
        )
    assert refusal.value.artifact.agreement.correlation > 0.9
    assert list(tmp_path.iterdir()) == []


def agreement(**values):
    """Perfect but for what is given."""
    perfect = {
        "max_logit_difference": 0.0,
        "mean_logit_difference": 0.0,
        "relative_difference": 0.0,
        "correlation": 1.0,
        "centred_correlation": 1.0,
        "top1_agreement": 1.0,
    }
    return export.Agreement(**perfect | values)


def test_limits():
    measured = {
        "relative_difference": 5.0,
        "correlation": 0.95,
        "centred_correlation": None,
        "top1_agreement": 0.5,
    }
    assert export.Limits().violations(agreement(**measured)) == []
    limits = export.Limits(
        logit_difference=0.1,
        correlation=0.99,
        centred_correlation=0.9,
        top1_agreement=0.75,
    )
    assert len(limits.violations(agreement(**measured))) == 3
    measured |= {"relative_difference": np.nan, "centred_correlation": 0.5}
    words = limits.violations(agreement(**measured))
    for word, what in zip(
        words,
        ("difference", "correlation of l", "over the images", "top-1"),
        strict=True,
    ):
        assert what in word
    assert verify.LIMITS[None].logit_difference == 1e-4
    assert verify.LIMITS["float16"].logit_difference == 1e-2
    for quantize in ("dynamic", "int8"):
        assert verify.LIMITS[quantize].correlation == 0.99
    assert limits.describe() == (
        "difference at most 0.1 of the largest, correlation at least 0.99, "
        "centred correlation at least 0.9, top1 agreement at least 0.75"
    )
    assert export.Limits().describe() == "no limits"


def test_no_number_in_any_output_passes(small_model):
    model = keras_resnext.feature_pyramid(small_model)
    names = output_names(model)
    outputs = {
        name: np.random.default_rng(i).normal(size=(4, 2, 2, 3))
        for i, name in enumerate(names)
    }
    reference = verify.Reference(outputs, dict.fromkeys(names, 5.0))
    limits = verify.LIMITS[None]
    same = verify.compare(model, reference, outputs)
    assert limits.violations(same) == []
    assert same.centred_correlation == pytest.approx(1)
    for name in names:
        other = outputs | {name: outputs[name] * np.nan}
        agreement = verify.compare(model, reference, other)
        assert len(limits.violations(agreement)) == 3


def test_outputs_that_never_change(small_model):
    """Softmax of zeros, rounded otherwise."""
    outputs = {"probabilities": np.full((4, 10), np.float32(0.1))}
    near = {"probabilities": np.nextafter(outputs["probabilities"], 1)}
    far = {"probabilities": np.float32([[0.2] * 5 + [0.0] * 5] * 4)}
    reference = verify.Reference(outputs, {"probabilities": 1.0})
    for other, correlation in ((near, 1), (far, 0)):
        same = verify.compare(small_model, reference, other)
        assert same.correlation == correlation
        assert same.centred_correlation is None


def test_padding_before_a_pool_stays_where_values_can_be_negative(tmp_path):
    images = np.random.default_rng(0).normal(-9, 1, (4, 8, 8, 3))
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.ZeroPadding2D(1)(inputs)
    x = keras.layers.MaxPooling2D(3)(x)
    export.to_onnx(
        keras.Model(inputs, x),
        tmp_path / "m",
        preprocessing=None,
        images=images.astype("float32"),
    )
    nodes = onnx.load(tmp_path / "m").graph.node
    assert "Pad" in [node.op_type for node in nodes]


def test_flex_operators_are_refused(small_model, tmp_path, monkeypatch):
    path = tmp_path / "m.tflite"
    export.to_tflite(small_model, path)
    parsed = flatbuffer.parse(path.read_bytes())
    parsed.operatorCodes[0].customCode = b"FlexRound"
    path.write_bytes(flatbuffer.pack(parsed, 1000))
    with pytest.raises(export.ExportError, match="builtin .* wrote FlexRound"):
        check_operators(path)


@pytest.mark.parametrize("opset", [13, 18])
def test_other_opsets(opset, small_model, pixels, tmp_path):
    path = tmp_path / "m.onnx"
    export.to_onnx(small_model, path, opset=opset, images=pixels)
    assert onnx.load(path).opset_import[0].version == opset


def test_softmax_is_found_wherever_it_is(small_model, pixels, tmp_path):
    outer = keras.Sequential([keras.Input((16, 16, 3)), small_model])
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Flatten()(inputs)
    layer = keras.layers.Softmax()(keras.layers.Dense(3)(x))
    for model in (outer, keras.Model(inputs, layer)):
        assert output_names(model) == ["probabilities"]
    assert output_names(keras.Model(inputs, x)) == ["features"]
    for activation, names in ((None, "logits"), ("sigmoid", "scores")):
        scores = keras.layers.Dense(3, activation=activation)(x)
        assert output_names(keras.Model(inputs, scores)) == [names]
    export.to_onnx(outer, tmp_path / "m.onnx", images=pixels)


@pytest.fixture(scope="module")
def photos():
    """Parts of two real photographs, PNG bytes by size."""
    parts = []
    for i, photo in enumerate(load_sample_images().images):
        for height, width in ((97, 140), (200, 64), (16, 16)):
            top, left = 31 * i, 50 * i
            parts.append(photo[top : top + height, left : left + width])
    return parts


def encoded(images, kind):
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind)
        files.append(file.getvalue())
    return files


def test_saved_model_signatures(small_model, photos, tmp_path):
    """Pixels, bytes and encoded pictures: the same answer, labelled."""
    export.to_saved_model(small_model, tmp_path / "m", labels=LABELS, top=3)
    signatures = tf.saved_model.load(tmp_path / "m").signatures
    transform = EvalTransform.from_crop_pct(16)
    pixels = np.stack([transform.pixels(x) for x in photos]).astype("float32")
    expected = expected_scores(small_model, pixels)
    outputs = [
        signatures["serving_default"](image=tf.constant(pixels)),
        signatures["image_bytes"](
            image_bytes=tf.constant(encoded(photos, "PNG"))
        ),
    ]
    as_bytes = tf.constant(pixels.astype("uint8"))
    outputs.append(signatures["image_uint8"](image=as_bytes))
    # One level of 255 in a few pixels between Pillow and TensorFlow.
    tolerances = [{"rtol": 1e-4, "atol": 1e-6}] * 3
    tolerances[1] = {"atol": 2e-3}
    for answers, tolerance in zip(outputs, tolerances, strict=True):
        probabilities = answers["probabilities"].numpy()
        np.testing.assert_allclose(probabilities, expected, **tolerance)
        best = np.argsort(-probabilities, axis=-1)[:, :3]
        np.testing.assert_array_equal(answers["top_indices"], best)
        np.testing.assert_allclose(
            answers["top_scores"], np.take_along_axis(probabilities, best, -1)
        )
        names = [[LABELS[i].encode() for i in row] for row in best]
        assert answers["top_labels"].numpy().tolist() == names


def test_saved_model_reads_pictures_as_evaluation_does(
    small_model, photos, tmp_path
):
    transform = EvalTransform.from_crop_pct(16, 0.5)
    export.to_saved_model(small_model, tmp_path / "m", transform=transform)
    serve = tf.saved_model.load(tmp_path / "m").signatures["image_bytes"]
    files = encoded(photos, "JPEG")
    pixels = np.stack([transform.pixels(file) for file in files])
    np.testing.assert_allclose(
        serve(image_bytes=tf.constant(files))["probabilities"],
        expected_scores(small_model, pixels),
        atol=2e-3,
    )


def test_bad_pictures_harm_no_others(small_model, photos, tmp_path):
    export.to_saved_model(
        small_model, tmp_path / "m", labels=LABELS, top=2, max_pixels=40_000
    )
    serve = tf.saved_model.load(tmp_path / "m").signatures["image_bytes"]
    good = encoded(photos[:4], "PNG")
    alone = serve(image_bytes=tf.constant(good))
    assert alone["valid"].numpy().all()
    large = encoded([np.zeros((201, 200, 3), "uint8")], "PNG")
    bad = [b"", b"no picture", good[0][:-30], *large]
    files = [bad[0], *good[:2], *bad[1:3], good[2], bad[3], good[3]]
    together = serve(image_bytes=tf.constant(files))
    valid = together["valid"].numpy()
    assert valid.tolist() == [file in good for file in files]
    nothing = {tf.string: b"", tf.int32: -1, tf.float32: 0, tf.bool: False}
    for name, answers in together.items():
        if answers.dtype == tf.float32:  # another batch, another order of sums
            np.testing.assert_allclose(answers[valid], alone[name], rtol=1e-5)
        else:
            np.testing.assert_array_equal(answers[valid], alone[name])
        assert (answers[~valid].numpy() == nothing[answers.dtype]).all()
    answers = serve(image_bytes=tf.constant(bad[:1]))
    assert answers["valid"].numpy().tolist() == [False]
    assert not answers["probabilities"].numpy().any()
    for name, answers in serve(image_bytes=tf.constant([], tf.string)).items():
        assert answers.shape == (0, *together[name].shape[1:])


@pytest.mark.parametrize("folder", ["br[1]", "a\\b"])
def test_folders_that_tensorflow_cannot_read(small_model, tmp_path, folder):
    with pytest.raises(ValueError, match="`path` must not have"):
        export.to_saved_model(small_model, tmp_path / folder / "m")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="`max_pixels` must be a positive"):
        export.to_saved_model(small_model, tmp_path / "m", max_pixels=0)


def test_a_network_that_takes_no_squares(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((12, 20, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(3, activation="sigmoid"),
        ]
    )

    export.to_saved_model(
        model,
        tmp_path / "m",
        labels=["x", "y", "z"],
        preprocessing="imagenet",
    )
    signatures = tf.saved_model.load(tmp_path / "m").signatures
    assert set(signatures) == {"serving_default", "image_uint8"}
    assets = (tmp_path / "m" / "assets").iterdir()
    assert [path.name for path in assets] == ["labels.txt"]
    with pytest.raises(ValueError, match="`transform` must be an EvalTransf"):
        export.to_saved_model(
            model, tmp_path / "n", transform=EvalTransform.from_crop_pct(12)
        )


def imagenet_model(**arguments):
    """With the ImageNet stem, whose padding and pool differ."""
    keras.utils.set_random_seed(2)
    return randomize(
        keras_resnext.ResNeXt(
            (1, 2, 1, 1), 4, 4, input_shape=(64, 64, 3), classes=7, **arguments
        )
    )


@pytest.fixture(scope="module")
def crops():
    """32 parts of real photographs, float32 (32, 64, 64, 3)."""
    rng = np.random.default_rng(0)
    images = load_sample_images().images
    crops = []
    for i in range(32):
        photo = images[i % 2]
        top, left = (rng.integers(n - 64) for n in photo.shape[:2])
        crops.append(photo[top : top + 64, left : left + 64])
    return np.stack(crops).astype("float32")


@pytest.mark.integration
@pytest.mark.parametrize("data_format", ["NHWC", "NCHW"])
def test_onnx_has_nothing_to_spare(data_format, crops, tmp_path):
    """One Conv a convolution; padding is theirs; images are turned once."""
    path = tmp_path / "m.onnx"
    export.to_onnx(
        imagenet_model(), path, images=crops, data_format=data_format
    )
    proto = onnx.load(path)
    counts = collections.Counter(node.op_type for node in proto.graph.node)
    # 1 stem, 5 blocks of 3, 4 projections.
    assert counts["Conv"] == 20
    assert counts["Pad"] == 0
    assert counts["Transpose"] == (1 if data_format == "NHWC" else 0)
    assert counts["MaxPool"] == counts["GlobalAveragePool"] == 1
    properties = {p.key: p.value for p in proto.metadata_props}
    assert properties["data_format"] == data_format
    assert properties["source"].startswith("resnext17_4x4d, keras_resnext 0")
    assert "RGB pixels in [0, 255]" in properties["input"]
    shape = [
        d.dim_param or d.dim_value
        for d in proto.graph.input[0].type.tensor_type.shape.dim
    ]
    sides = [64, 64, 3] if data_format == "NHWC" else [3, 64, 64]
    assert shape == ["batch", *sides]


@pytest.mark.integration
@every_format
def test_several_feature_maps(name, crops, tmp_path):
    model = keras_resnext.feature_pyramid(imagenet_model())
    artifact = EXPORTERS[name](model, tmp_path / "m", images=crops)
    expected = model.predict(keras_resnext.preprocess_input(crops), verbose=0)
    assert artifact.agreement.top1_agreement is None
    assert list(artifact.outputs) == model.output_names
    for values, wanted in zip(artifact.outputs.values(), expected, strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(values, wanted, atol=1e-5 * scale)


@pytest.mark.integration
@every_format
def test_fine_tuned_models_inside_others(name, crops, tmp_path):
    body = imagenet_model(include_top=False, pooling="avg")
    model = keras.Sequential(
        [
            keras.Input((64, 64, 3)),
            body,
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    artifact = EXPORTERS[name](
        randomize(model), tmp_path / "m", images=crops, labels=["a", "b", "c"]
    )
    np.testing.assert_allclose(
        artifact.scores, expected_scores(model, crops), rtol=1e-4, atol=1e-6
    )
    if name == "onnx":
        nodes = onnx.load(tmp_path / "m").graph.node
        assert sum(node.op_type == "Conv" for node in nodes) == 20
        assert not any(n.op_type == "BatchNormalization" for n in nodes)


@pytest.mark.slow
@every_format
@pytest.mark.parametrize("form", ["concatenated", "branches"])
def test_every_form(name, form, crops, tmp_path):
    model = keras_resnext.convert_form(imagenet_model(), form)
    artifact = EXPORTERS[name](model, tmp_path / "m", images=crops)
    np.testing.assert_allclose(
        artifact.scores, expected_scores(model, crops), rtol=1e-4, atol=1e-6
    )


@every_format
def test_preprocessing_that_was_adapted(name, small_model, pixels, tmp_path):
    """It holds tensors that are not variables."""
    layer = keras.layers.Normalization()
    layer.adapt(pixels)
    artifact = EXPORTERS[name](
        small_model, tmp_path / "m", preprocessing=layer, images=pixels
    )
    expected = small_model.predict(layer(pixels), verbose=0)
    np.testing.assert_allclose(artifact.scores, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.integration
@every_format
def test_networks_that_are_sure_of_everything(name, crops, tmp_path):
    """Their probabilities are below what float32 can hold."""
    model = imagenet_model()
    head = model.get_layer("predictions")
    head.kernel.assign(head.kernel * 3000)
    artifact = EXPORTERS[name](model, tmp_path / "m", images=crops)
    assert np.sort(artifact.scores, axis=-1)[:, 0].max() < 1e-30
    assert artifact.agreement.top1_agreement == 1


@pytest.mark.integration
@pytest.mark.parametrize("quantize", ["float16", "dynamic", "int8"])
def test_quantized_tflite(quantize, crops, tmp_path):
    model = imagenet_model()
    path = tmp_path / "m.tflite"
    calibration = crops[:16] if quantize == "int8" else None
    artifact = export.to_tflite(
        model,
        path,
        quantize=quantize,
        calibration=calibration,
        images=crops[16:],
    )
    reference = export.to_tflite(model, tmp_path / "f", images=crops[16:])
    ratio = artifact.size / reference.size
    assert 0.45 < ratio < 0.55 if quantize == "float16" else ratio < 0.35
    assert artifact.agreement.correlation > 0.99
    assert (
        artifact.agreement.max_logit_difference
        > reference.agreement.max_logit_difference
    )
    # A softmax in eight bits would have steps of 1/256.
    steps = artifact.scores * 256
    assert np.mean(np.abs(steps - np.round(steps)) > 0.01) > 0.9
    names = {error.name for error in artifact.layer_errors}
    if quantize == "float16":
        assert not names
        return
    assert len(names) == 21
    assert {"conv1_conv", "conv3_block2_2_conv", "predictions"} <= names
    for error in artifact.layer_errors:
        # Eight bits: steps of 1/127 of the largest of a channel.
        assert 0.001 < error.weights < 0.03
        assert error.accumulated > 0
        if quantize == "int8" and error.name != "predictions":
            assert 0.001 < error.activations < 0.2
            assert error.own == pytest.approx(
                np.hypot(error.weights, error.activations)
            )
    interpreter = Interpreter(str(path))
    (image,) = interpreter.get_input_details()
    assert image["dtype"] == (np.uint8 if quantize == "int8" else np.float32)
    if quantize == "int8":
        assert image["quantization"] == (1.0, 0)


@pytest.mark.slow
def test_layers_left_in_float32(crops, tmp_path):
    """By name, and those with the largest errors."""
    model = imagenet_model()
    options = {
        "quantize": "int8",
        "calibration": crops[:16],
        "images": crops[16:],
    }
    whole = export.to_tflite(model, tmp_path / "whole", **options)
    worst = sorted(whole.layer_errors, key=lambda e: -e.own)[:5]
    less = export.to_tflite(model, tmp_path / "less", exclude=5, **options)
    named = export.to_tflite(
        model, tmp_path / "named", exclude=[e.name for e in worst], **options
    )
    np.testing.assert_array_equal(less.scores, named.scores)
    assert whole.size < less.size
    kept = {e.name for e in less.layer_errors if e.weights == 0}
    assert kept == {error.name for error in worst}
    everything = [error.name for error in whole.layer_errors]
    nothing = export.to_tflite(
        model, tmp_path / "none", exclude=everything, **options
    )
    assert nothing.size > 3 * whole.size
    with pytest.raises(ValueError, match="`exclude` must name layers of conv1"):
        export.to_tflite(model, tmp_path / "x", exclude=["conv9"], **options)


def test_errors_of_layers_that_are_not_ours(crops, tmp_path):
    names = ["conv2d", "depthwise_conv2d", "dense"]
    model = keras.Sequential(
        [
            keras.Input((64, 64, 3)),
            keras.layers.Conv2D(8, 3, name=names[0]),
            keras.layers.DepthwiseConv2D(3, name=names[1]),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, name=names[2]),
        ]
    )
    artifact = export.to_tflite(
        randomize(model),
        tmp_path / "m",
        quantize="int8",
        calibration=crops[:16],
        images=crops[16:],
        limits=export.Limits(),  # the errors are asked for, whatever they are
        preprocessing="imagenet",
    )
    found = [error.name for error in artifact.layer_errors]
    assert len(found) == len(names)
    # TensorFlow 2.20's converter keeps no names of such layers.
    if tf.__version__ >= "2.21":
        assert found == names
    assert all(0 < error.weights < 0.05 for error in artifact.layer_errors)


@pytest.mark.integration
@pytest.mark.parametrize("quantize", [None, "dynamic"])
def test_tflite_of_bytes(quantize, crops, tmp_path):
    model = imagenet_model()
    floats, integers = (
        export.to_tflite(
            model,
            tmp_path / dtype,
            input_dtype=dtype,
            quantize=quantize,
            images=crops,
        )
        for dtype in ("float32", "uint8")
    )
    np.testing.assert_allclose(
        integers.scores, floats.scores, rtol=1e-4, atol=1e-6
    )
    (image,) = Interpreter(str(tmp_path / "uint8")).get_input_details()
    assert image["dtype"] == np.uint8


@pytest.mark.integration
def test_tflite_weights_are_aligned(crops, tmp_path):
    for quantize, calibration in ((None, None), ("int8", crops[:4])):
        path = tmp_path / f"{quantize}.tflite"
        export.to_tflite(
            imagenet_model(), path, quantize=quantize, calibration=calibration
        )
        content = path.read_bytes()
        model = schema.Model.GetRootAs(content)
        places = [
            model.Buffers(i)._tab.Vector(model.Buffers(i)._tab.Offset(4))
            for i in range(model.BuffersLength())
            if model.Buffers(i).DataLength()
        ]
        assert len(places) > 30
        assert all(place % 16 == 0 for place in places)


@pytest.mark.integration
def test_quantized_onnx(crops, tmp_path):
    path = tmp_path / "m.onnx"
    artifact = export.to_onnx(
        imagenet_model(),
        path,
        quantize="int8",
        calibration=crops[:16],
        images=crops[16:],
        labels=list("abcdefg"),
    )
    assert artifact.agreement.correlation > 0.99
    proto = onnx.load(path)
    counts = collections.Counter(node.op_type for node in proto.graph.node)
    assert counts["DequantizeLinear"] > counts["Conv"] == 20
    by_output = {o: n for n in proto.graph.node for o in n.output}
    (softmax,) = (n for n in proto.graph.node if n.op_type == "Softmax")
    assert softmax.output[0] == "probabilities"
    assert by_output["probabilities"] is softmax
    properties = {p.key: p.value for p in proto.metadata_props}
    assert json.loads(properties["labels"]) == list("abcdefg")
    weights = {
        t.data_type
        for t in proto.graph.initializer
        if t.name.endswith("_quantized") and len(t.dims) > 1
    }
    assert weights == {onnx.TensorProto.INT8}


def test_quantized_onnx_cannot_saturate(tmp_path):
    """Without VNNI, x86 adds pairs of products in signed 16 bits.

    Large weights of one sign on bright images are the worst that can happen
    there: with weights of eight bits, 2 * 255 * 127 is twice what fits.
    """
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Conv2D(8, 3, activation="relu", name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4),
        ]
    )
    rng = np.random.default_rng(0)
    model.layers[0].set_weights(
        [rng.uniform(0.8, 1, (3, 3, 3, 8)), np.zeros(8)]
    )
    images = rng.integers(150, 256, (24, 1, 1, 3)) - rng.integers(
        0, 50, (24, 16, 16, 3)
    )
    path = tmp_path / "m.onnx"
    artifact = export.to_onnx(
        model,
        path,
        quantize="int8",
        preprocessing=keras.layers.Rescaling(1 / 255),
        calibration=images[:16],
        images=images[16:],
    )
    # Half a step of 1/64 in weights that are alike, and of 1/255 in sums.
    assert (
        artifact.agreement.max_logit_difference
        < 0.02 * np.abs(artifact.scores).max()
    )
    weights = [
        np.abs(onnx.numpy_helper.to_array(t).astype(int)).max()
        for t in onnx.load(path).graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1
    ]
    assert len(weights) == 2
    assert 2 * 255 * max(weights) < 2**15


def centred_correlation(model, scores, artifact):
    """With what another runtime computes, each logit's mean taken off."""
    theirs, ours = (
        logits - logits.mean(axis=0)
        for logits in (
            verify.logits(model, values) for values in (scores, artifact.scores)
        )
    )
    return np.corrcoef(theirs.ravel(), ours.ravel())[0, 1]


@pytest.mark.integration
@pytest.mark.parametrize("quantize", [None, "float16", "dynamic", "int8"])
def test_openvino_reads_tflite(quantize, crops, tmp_path):
    """It looks at an operator's old number only, which has eight bits."""
    openvino = pytest.importorskip(
        "openvino", reason="OpenVINO is not installed (make peers)"
    )
    path = tmp_path / "m.tflite"
    artifact = export.to_tflite(
        imagenet_model(),
        path,
        quantize=quantize,
        calibration=crops[:16] if quantize == "int8" else None,
        images=crops[16:],
        limits=export.Limits(),
    )
    dtype = np.uint8 if quantize == "int8" else np.float32
    # Left alone, it computes in bfloat16 wherever the processor does.
    run = openvino.Core().compile_model(
        path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    scores = [run(image[None].astype(dtype))[0][0] for image in crops[16:]]
    # Its own kernels round eight bits at other places, as noisily as ours.
    eight_bits = quantize in ("dynamic", "int8")
    least = verify.LIMITS[quantize].centred_correlation if eight_bits else 1
    assert (
        centred_correlation(imagenet_model(), scores, artifact) > least - 1e-4
    )


@pytest.mark.integration
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_opencv_reads_onnx(quantize, small_model, pixels, tmp_path):
    cv2 = pytest.importorskip(
        "cv2", reason="OpenCV is not installed (make peers)"
    )
    path = tmp_path / "m.onnx"
    artifact = export.to_onnx(
        small_model,
        path,
        data_format="NCHW",
        quantize=quantize,
        calibration=pixels[:4] if quantize else None,
        images=pixels[4:],
        limits=export.Limits(),
    )
    network = cv2.dnn.readNetFromONNX(str(path))
    network.setInput(np.ascontiguousarray(pixels[4:].transpose(0, 3, 1, 2)))
    least = verify.LIMITS["int8"].centred_correlation if quantize else 1
    scores = network.forward()
    assert centred_correlation(small_model, scores, artifact) > least - 1e-4


def test_models_that_do_not_look_at_images(crops, tmp_path):
    class Blind(keras.layers.Layer):
        def call(self, inputs):
            return tf.zeros((1, 4))

        def compute_output_shape(self, shape):
            return (None, 4)

    inputs = keras.Input((64, 64, 3))
    model = keras.Model(inputs, keras.layers.Dense(3)(Blind()(inputs)))
    with pytest.raises(export.ExportError, match="must look at its images"):
        export.to_tflite(
            model,
            tmp_path / "m",
            quantize="int8",
            calibration=crops[:4, :64, :64],
            preprocessing="imagenet",
        )


@pytest.mark.integration
def test_many_exports_in_one_process_are_quiet(tmp_path):
    """TensorFlow counts how often functions are traced, over all models."""
    script = f"""
import keras, keras_resnext
from keras_resnext.export import to_tflite
for i in range(7):
    keras.utils.clear_session()
    model = keras_resnext.ResNeXt((1,), 2, 4, stem="cifar", classes=3)
    to_tflite(model, f"{tmp_path}/{{i}}.tflite")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert len(list(tmp_path.iterdir())) == 7
    assert "retracing" not in done.stderr


def test_bad_quantization(small_model, pixels, tmp_path):
    def refused(message, exporter=export.to_tflite, **arguments):
        with pytest.raises(ValueError, match=message):
            exporter(small_model, tmp_path / "m", **arguments)
        assert list(tmp_path.iterdir()) == []

    refused("`quantize` must be one of None, float16", quantize="int4")
    refused("`quantize` must be .*None, int8", export.to_onnx, quantize="int4")
    for exporter in (export.to_tflite, export.to_onnx):
        refused("`calibration` must be images", exporter, quantize="int8")
        refused("`calibration` must be images", exporter, calibration=pixels)
        refused(
            "`calibration` must have shape",
            exporter,
            quantize="int8",
            calibration=pixels[:, :8],
        )
    refused("`exclude` needs `quantize`", exclude=2)
    refused("`input_dtype` must be float32, or uint8", input_dtype="int8")
    refused(
        "`input_dtype` must be float32, or uint8 with",
        input_dtype="uint8",
        preprocessing=None,
    )
    with pytest.raises(ValueError, match="`correlation` must be from -1 to 1"):
        export.Limits(correlation=2)


@every_format
def test_lower_precision_is_refused(name, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = imagenet_model()
    finally:
        keras.config.set_dtype_policy("float32")
    with pytest.raises(ValueError, match="compute in float32; .* in bfloat16"):
        EXPORTERS[name](model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


class PythonLayer(keras.layers.Layer):
    """Of Python's code, which no file can hold."""

    def call(self, x):
        return tf.ensure_shape(
            tf.numpy_function(lambda x: x + 1, [x], tf.float32), x.shape
        )


@every_format
def test_layers_that_cannot_be_converted(name, tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(PythonLayer()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(x))
    with pytest.raises(
        export.ExportError, match="`model` must have operations"
    ):
        EXPORTERS[name](model, tmp_path / "m", preprocessing="imagenet")
    assert list(tmp_path.iterdir()) == []


@every_format
def test_a_place_that_cannot_be_written(name, small_model, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(NotADirectoryError, match="`path` must be in a folder"):
        EXPORTERS[name](small_model, tmp_path / "file" / "m")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnext50", "resnext101_64x4d"])
def test_published_networks(name, tmp_path):
    """64 parts of real photographs, random weights and statistics."""
    rng = np.random.default_rng(0)
    images = []
    for i in range(96):
        photo = load_sample_images().images[i % 2]
        top, left = (rng.integers(n - 224) for n in photo.shape[:2])
        images.append(photo[top : top + 224, left : left + 224])
    images = np.stack(images).astype("float32")
    keras.utils.set_random_seed(0)
    model = randomize(build(name, weights=None))
    count = keras_resnext.fold_batch_norm(model).count_params()
    artifacts = {
        format: exporter(model, tmp_path / format, images=images[:64])
        for format, exporter in EXPORTERS.items()
    }
    assert artifacts["savedmodel"].size <= 1.02 * 4 * count
    parts = [verify.logits(model, a.scores) for a in artifacts.values()]
    scale = max(1, np.abs(parts[0]).max())
    for ours, theirs in itertools.combinations(parts, 2):
        assert np.abs(ours - theirs).max() < 1e-4 * scale
    for exporter, quantize, share in (
        (export.to_tflite, "float16", 0.52),
        (export.to_tflite, "dynamic", 0.28),
        (export.to_tflite, "int8", 0.28),
        (export.to_onnx, "int8", 0.28),
    ):
        quantized = exporter(
            model,
            tmp_path / f"{quantize}_{exporter.__name__}",
            quantize=quantize,
            calibration=images[64:] if quantize == "int8" else None,
            images=images[:64],
        )
        print(name, exporter.__name__, quantized)
        assert quantized.agreement.correlation > 0.99
        assert quantized.size < share * 4 * count


@pytest.mark.integration
def test_small_outputs_are_held_to_their_own_scale(
    crops, tmp_path, monkeypatch
):
    """Beside large ones, and tiny ones alone: swapped, they are refused.

    All formats are verified alike; one is enough.
    """
    body = imagenet_model(include_top=False)
    inputs = body.input
    pooled = keras.layers.GlobalAveragePooling2D()(body.output)
    small = keras.layers.Dense(4, name="small")(pooled)
    large = keras.layers.Rescaling(1e5, name="large")(body.output)
    tiny = keras.layers.Rescaling(1e-7, name="tiny")(small)
    models = [
        keras.Model(inputs, {"b": small, "a": large}),
        keras.Model(inputs, tiny),
    ]
    for number, model in enumerate(models):
        export.to_onnx(model, tmp_path / f"{number}", images=crops[:4])
    named = ExportGraph._named

    def reversed_(self, outputs):
        outputs_by_name = named(self, outputs)
        last = list(outputs_by_name)[-1]
        return {**outputs_by_name, last: outputs_by_name[last][..., ::-1]}

    monkeypatch.setattr(ExportGraph, "_named", reversed_)
    for model in models:
        with pytest.raises(export.ExportError, match="not Keras'"):
            export.to_onnx(model, tmp_path / "wrong", images=crops[:4])


@pytest.mark.integration
@every_format
def test_heads_that_were_used_before(name, crops, tmp_path):
    """On other inputs, which the layer remembers first."""
    body = imagenet_model(include_top=False, pooling="avg")
    head = keras.layers.Dense(3, "softmax")
    head(keras.Input((body.output_shape[-1],)))
    model = keras.Model(body.input, head(body.output))
    artifact = EXPORTERS[name](model, tmp_path / "m", images=crops[:4])
    np.testing.assert_allclose(
        artifact.scores, expected_scores(model, crops[:4]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("exclude", [-1, True, 1.5, "conv1_conv"])
def test_what_cannot_be_excluded(exclude, small_model, tmp_path):
    with pytest.raises(ValueError, match="`exclude` must be"):
        export.to_tflite(
            small_model, tmp_path / "m", quantize="dynamic", exclude=exclude
        )


def test_images_and_labels_that_cannot_be_meant(small_model, pixels, tmp_path):
    nothing = np.full_like(pixels, np.nan)
    for exporter in (export.to_tflite, export.to_onnx):
        with pytest.raises(ValueError, match="`images` must be finite"):
            exporter(small_model, tmp_path / "m", images=nothing)
        with pytest.raises(ValueError, match="`calibration` must be finite"):
            exporter(
                small_model,
                tmp_path / "m",
                quantize="int8",
                calibration=nothing,
            )
        for bad in ("two\nlines", "", "\x0c"):
            with pytest.raises(
                ValueError, match="class names of one line each"
            ):
                exporter(small_model, tmp_path / "m", labels=[*LABELS[1:], bad])


@pytest.mark.integration
def test_bare_networks_have_no_metadata_of_pixels(small_model, tmp_path):
    for preprocessing, pixels in (("imagenet", True), (None, False)):
        path = tmp_path / f"{pixels}.tflite"
        export.to_tflite(small_model, path, preprocessing=preprocessing)
        content = path.read_bytes()
        assert (b"Plain pixels in [0, 255]" in content) == pixels
        assert (b"nothing is normalized in here" in content) != pixels


ALL = [None, "float16", "dynamic", "int8"]


@pytest.fixture
def calls(monkeypatch):
    """How often the work was done that files share."""
    counts = collections.Counter()

    def count(owner, name):
        original = getattr(owner, name)

        def counted(*arguments, **options):
            counts[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, counted)

    count(graph, "fold_batch_norm")
    count(export.Session, "_run_keras")
    count(tf.lite.TFLiteConverter, "from_saved_model")
    count(tfonnx, "process_tf_graph")
    # Processes of their own, which take most of the time.
    cost = {"latency_ms": 1.0, "peak_bytes": 1000}
    monkeypatch.setattr(report, "run_alone", lambda *_: cost)
    return counts


@pytest.mark.integration
def test_seven_files_share_what_they_can(small_model, pixels, tmp_path, calls):
    plan = export.plan_files(tmp_path, quantizations=ALL)
    assert len(plan.files) == 7
    classes = expected_scores(small_model, pixels).argmax(-1)
    result = export.export_files(
        small_model,
        plan,
        images=pixels[4:],
        classes=classes[4:],
        calibration=pixels[:4],
        labels=LABELS,
    )
    assert set(calls.values()) == {1}
    assert len(calls) == 4
    assert [file.name for file in result.files if not file.passed] == []
    assert result.keras_accuracy == 1
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved == json.loads(json.dumps(result.to_json()))
    for file, line in zip(result.files, saved["files"], strict=True):
        assert line["correlation"] == file.agreement.correlation
        assert line["limits"]["top1_agreement"] == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *plan.files.values(),
        *("report.json", "report.png"),
    }


@pytest.mark.usefixtures("calls")
def test_failed_files_keep_their_numbers(small_model, pixels, tmp_path):
    limits = {"correlation": 0.9999999, "top1_agreement": None}
    plan = export.plan_files(
        tmp_path, ["tflite"], [None, "dynamic"], limits=limits
    )
    result = export.export_files(small_model, plan, images=pixels)
    good, bad = result.files
    assert (good.passed, bad.passed) == (True, False)
    assert good.error is None
    assert "not Keras', correlation of logits is" in bad.error
    assert 0.9 < bad.agreement.correlation < bad.limits.correlation
    assert bad.bytes < good.bytes
    assert bad.latency_ms is None
    assert bad.layer_errors
    assert not (tmp_path / "model_dynamic.tflite").exists()


def test_plans_are_checked_before_long_work(small_model, tmp_path):
    def refused(message, *arguments, error=ValueError, **options):
        with pytest.raises(error, match=message):
            export.plan_files(tmp_path / "new", *arguments, **options)
        assert not (tmp_path / "new").exists()

    refused("`formats` must be some of savedmodel", ["tfx"])
    refused("`quantize` must be some of none", ["tflite"], ["int4"])
    refused("`quantize` dynamic needs .* tflite; got", ["onnx"], ["dynamic"])
    refused("`data_format` must be NHWC or NCHW", data_format="CHW")
    refused("`data_format` must be NHWC un", ["tflite"], data_format="NCHW")
    refused("`exclude` must be 0 without", exclude=1)
    refused("`max_pixels` must be a positive integer", max_pixels=0)
    refused("`max_pixels` must be 178956970 un", ["onnx"], max_pixels=100)
    refused("`correlation` must be from -1", limits={"correlation": 2})
    plan = export.plan_files(tmp_path, ["onnx"], ["int8"])
    with pytest.raises(ValueError, match="`calibration` must be images"):
        export.export_files(small_model, plan)
    for name in ("model.onnx", "report.json", "report.png"):
        path = tmp_path / name
        path.write_text("precious")
        with pytest.raises(FileExistsError, match=f"{name} exists"):
            export.plan_files(tmp_path, ["onnx"])
        path.unlink()
        path.mkdir()
        with pytest.raises(FileExistsError, match=f"{name} is a folder"):
            export.plan_files(tmp_path, ["onnx"], overwrite=True)
        path.rmdir()


def test_a_folder_has_one_export_at_a_time(small_model, pixels, tmp_path):
    folder = tmp_path / "new"
    plan = export.plan_files(folder, ["onnx"])
    with held(folder, argument="folder"):
        for start in (
            lambda: export.plan_files(folder, ["tflite"]),
            lambda: export.export_files(small_model, plan, images=pixels[:1]),
        ):
            with pytest.raises(
                BlockingIOError,
                match=f"`folder` must .* in use by process {os.getpid()} on",
            ):
                start()
    assert not folder.exists()


@pytest.mark.integration
@pytest.mark.usefixtures("calls")
def test_a_folder_deleted_during_an_export_is_noticed(
    small_model, pixels, tmp_path
):
    folder = tmp_path / "new"

    def delete(path):
        shutil.rmtree(folder)

    plan = export.plan_files(folder, ["savedmodel"])
    with pytest.raises(FileNotFoundError, match="new was deleted or moved"):
        export.export_files(
            small_model, plan, images=pixels[:1], on_file=delete
        )


@pytest.mark.parametrize(
    "module",
    ["ai_edge_litert", "ai_edge_quantizer", "onnxruntime", "matplotlib"],
)
def test_plans_need_what_their_files_need(module, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name: None if name == module else find_spec(name),
    )
    with pytest.raises(ModuleNotFoundError, match=f"needs the module {module}"):
        export.plan_files(tmp_path / "new", quantizations=ALL)
    assert not (tmp_path / "new").exists()


@pytest.mark.integration
def test_classifiers_bring_labels_and_transform(small_model, tmp_path):
    transform = EvalTransform.from_crop_pct(16, 0.5)
    classifier = Classifier(small_model, LABELS, transform)
    config = transform.to_config()
    artifacts = {
        name: exporter(classifier, tmp_path / name)
        for name, exporter in EXPORTERS.items()
    }
    with zipfile.ZipFile(artifacts["tflite"].path) as archive:
        assert json.loads(archive.read("transform.json")) == config
        assert archive.read("labels.txt").decode().splitlines() == LABELS
    assets = artifacts["savedmodel"].path / "assets"
    assert json.loads((assets / "transform.json").read_text()) == config
    assert (assets / "labels.txt").read_text().splitlines() == LABELS
    proto = onnx.load(artifacts["onnx"].path)
    properties = {p.key: p.value for p in proto.metadata_props}
    assert json.loads(properties["transform"]) == config
    # Arguments replace the classifier's.
    others = EvalTransform.from_crop_pct(16, 0.25)
    path = tmp_path / "other.tflite"
    export.to_tflite(classifier, path, labels=LABELS[::-1], transform=others)
    with zipfile.ZipFile(path) as archive:
        written = json.loads(archive.read("transform.json"))
        assert EvalTransform.from_config(written) == others
        assert archive.read("labels.txt").decode().splitlines() == LABELS[::-1]


@pytest.mark.integration
def test_a_transform_with_another_normalisation(small_model, pixels, tmp_path):
    transform = EvalTransform.from_crop_pct(16, mean=(0.5,) * 3)
    with pytest.raises(ValueError, match="`preprocessing` must be a layer"):
        export.to_onnx(
            small_model,
            tmp_path / "m",
            transform=transform,
            preprocessing="imagenet",
        )
    layer = keras.layers.Rescaling(1 / 127.5, offset=-1)
    export.to_onnx(
        small_model, tmp_path / "m", transform=transform, preprocessing=layer
    )
    artifact = export.to_onnx(
        small_model, tmp_path / "auto", transform=transform, images=pixels
    )
    assert "normalization (mean (0.5, 0.5, 0.5), std" in artifact.input
    expected = small_model.predict(transform.normalize(pixels), verbose=0)
    np.testing.assert_allclose(artifact.scores, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.integration
def test_photographs_are_turned_upright(small_model, photos, tmp_path):
    """In all eight EXIF orientations, `image_bytes` sees the same picture."""
    export.to_saved_model(small_model, tmp_path / "m")
    serve = tf.saved_model.load(tmp_path / "m").signatures["image_bytes"]
    upright = Image.fromarray(photos[0])
    turns = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    files = []
    for orientation, turn in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = io.BytesIO()
        stored = upright if turn is None else upright.transpose(turn)
        stored.save(file, "PNG", exif=exif)
        files.append(file.getvalue())
    scores = serve(image_bytes=tf.constant(files))["probabilities"].numpy()
    np.testing.assert_allclose(scores, scores[:1].repeat(8, 0), atol=1e-6)


@pytest.mark.integration
def test_exporters_share_a_session(small_model, pixels, tmp_path, calls):
    session = export.Session(small_model, labels=LABELS, images=pixels)
    artifacts = [
        exporter(session, tmp_path / name)
        for name, exporter in EXPORTERS.items()
    ]
    assert set(calls.values()) == {1}
    assert all(len(artifact.scores) == 12 for artifact in artifacts)
    for arguments in ({"images": pixels}, {"preprocessing": None}):
        with pytest.raises(ValueError, match="must be given to the `Session`"):
            export.to_onnx(session, tmp_path / "m", **arguments)
