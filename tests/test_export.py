"""Exports: each file in its own runtime, against Keras."""

import collections
import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf

import keras_resnext
from keras_resnext import export
from keras_resnext.export import artifact
from keras_resnext.export.graph import ExportGraph
from keras_resnext.export.graph import output_names
from keras_resnext.export.runtimes import median_latency
from keras_resnext.export.tflite import check_operators
from keras_resnext.export.tflite import operators
from keras_resnext.layers import use_convolution_path
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
    found = EXPORTERS[name](small_model, path, images=pixels, labels=LABELS)
    assert found.path == path
    assert [p.name for p in path.parent.iterdir()] == ["model"]
    assert found.top1_agreement == 1
    assert found.max_logit_difference < 1e-4
    files = [p for p in (path, *path.rglob("*")) if p.is_file()]
    assert found.size == sum(p.stat().st_size for p in files)
    # Opened again, other pixels, a batch that is no multiple of anything.
    others = pixels[::-1][:5] / 2
    np.testing.assert_allclose(
        found.open()(others)["probabilities"],
        expected_scores(small_model, others),
        rtol=1e-4,
        atol=1e-6,
    )


@every_format
def test_branches_export_too(name, branches_model, pixels, tmp_path):
    found = EXPORTERS[name](branches_model, tmp_path / "m", images=pixels)
    np.testing.assert_allclose(
        found.scores,
        expected_scores(branches_model, pixels),
        rtol=1e-4,
        atol=1e-6,
    )


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
    EXPORTERS[name](
        small_model,
        tmp_path / "stateful",
        preprocessing=randomize(stateful),
        images=inputs,
    )
    expected = small_model.predict(inputs / 2 - 1, verbose=0)
    np.testing.assert_allclose(own.scores, expected, rtol=1e-4, atol=1e-6)


@every_format
def test_features_without_top(name, pixels, tmp_path):
    model = randomize(
        keras_resnext.ResNeXt(
            (1, 1), 2, 4, stem="cifar", include_top=False, pooling="avg",
            input_shape=(16, 16, 3),
        )
    )  # fmt: skip
    found = EXPORTERS[name](model, tmp_path / "m", images=pixels)
    expected = expected_scores(model, pixels)
    assert found.scores.shape == (12, 512)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found.scores, expected, atol=1e-5 * scale)


@pytest.fixture
def wrong_graph(monkeypatch):
    """A converter that exports another function: no normalisation in it."""
    monkeypatch.setattr(
        "keras_resnext.export.graph.preprocess_input", lambda image: image
    )
    monkeypatch.setattr(
        artifact,
        "preprocessing_function",
        lambda _: keras_resnext.preprocess_input,
    )


@every_format
@pytest.mark.usefixtures("wrong_graph")
def test_failed_check_leaves_no_file(name, small_model, pixels, tmp_path):
    with pytest.raises(
        export.ExportError, match="not written.*not Keras', logit difference"
    ):
        EXPORTERS[name](small_model, tmp_path / "model", images=pixels)
    assert list(tmp_path.iterdir()) == []


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
    with pytest.raises(FileExistsError, match="`overwrite` true"):
        EXPORTERS[name](small_model, path)
    request.getfixturevalue("wrong_graph")
    with pytest.raises(export.ExportError):
        EXPORTERS[name](small_model, path, images=pixels, overwrite=True)
    assert files() == before


@every_format
def test_overwriting_replaces_its_own_kind_only(name, small_model, tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "precious").write_text("weights")
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

    refused("`labels` must hold the model's 10 class names", labels="ab")
    refused("`labels` must hold the model's 10 class names", labels=range(10))
    refused("`model` must be a keras.Model; got 'x.keras'", model="x.keras")
    if name == "onnx":
        for opset in (3, "17", 30):
            refused("`opset` must be from 13 to 18; got", opset=opset)
    refused('`preprocessing` must be "imagenet", None', preprocessing="torch")
    refused("`images` must have shape", images=np.zeros((2, 8, 8, 3)))
    any_size = keras_resnext.ResNeXt((1,), 2, 4, include_top=False)
    refused("one image input of fixed size", model=any_size)


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
    found = export.to_saved_model(small_model, tmp_path / "m")
    stored = tf.train.list_variables(
        str(tmp_path / "m" / "variables" / "variables")
    )
    weights = [shape for name, shape in stored if "weights" in name]
    folded = keras_resnext.fold_batch_norm(small_model).count_params()
    assert sum(map(np.prod, weights)) == folded
    assert found.size < 4 * folded + 400_000
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
    with use_convolution_path("split"):
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
    np.testing.assert_allclose(artifact.logits(small_model, scores), values)


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
    export.to_onnx(outer, tmp_path / "m.onnx", images=pixels)
