"""MediaPipe Tasks opens the TFLite files, with their metadata and labels.

It has a virtual environment of its own (`make mediapipe`), because it brings
an OpenCV of its own; without one these tests are skipped.
"""

import json
import pathlib
import subprocess

import keras
import numpy as np
import pytest
from sklearn.datasets import load_sample_images

import keras_resnext
from keras_resnext.export import to_tflite
from keras_resnext.export.metadata import image_classifier_metadata
from tests.conftest import randomize

pytestmark = pytest.mark.integration

PYTHON = pathlib.Path(__file__).parents[1] / ".venv-mediapipe/bin/python"
LABELS = [f"class {i}" for i in range(7)]
CLASSIFY = """
import json, sys
import mediapipe, numpy
from mediapipe.tasks import python
from mediapipe.tasks.python import vision

path, images = sys.argv[1:]
options = vision.ImageClassifierOptions(
    base_options=python.BaseOptions(model_asset_path=path)
)
answers = []
with vision.ImageClassifier.create_from_options(options) as classifier:
    for image in numpy.load(images):
        image = mediapipe.Image(
            image_format=mediapipe.ImageFormat.SRGB, data=image
        )
        (head,) = classifier.classify(image).classifications
        answers.append([(c.category_name, c.score) for c in head.categories])
print(json.dumps(answers))
"""
DISPLAY = """
import sys
from mediapipe.tasks.metadata import metadata_schema_py_generated as schema

content = open(sys.argv[1], "rb").read()
assert schema.ModelMetadata.ModelMetadataBufferHasIdentifier(content, 0)
model = schema.ModelMetadataT.InitFromObj(
    schema.ModelMetadata.GetRootAs(content, 0)
)
(graph,) = model.subgraphMetadata
(image,), (scores,) = graph.inputTensorMetadata, graph.outputTensorMetadata
size = image.content.contentProperties.defaultSize
(normalization,) = image.processUnits
(labels,) = scores.associatedFiles
def text(*values):
    print(*(v.decode() if isinstance(v, bytes) else v for v in values))

text(
    *(model.name, model.minParserVersion, image.name, size.width, size.height),
    *(image.content.contentProperties.colorSpace, *image.stats.max),
    *(*image.stats.min, *normalization.options.mean),
    *(*normalization.options.std, scores.name, labels.name, labels.type),
)
"""


@pytest.fixture(scope="module", autouse=True)
def mediapipe():
    if not PYTHON.exists():
        pytest.skip("`make mediapipe` installs MediaPipe")
    done = run("import mediapipe.tasks.python")
    if done.returncode:
        pytest.skip(f"MediaPipe cannot be imported: {done.stderr[-300:]}")


def run(code, *arguments):
    return subprocess.run(
        [PYTHON, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(2)
    return randomize(
        keras_resnext.ResNeXt(
            (1, 2, 1, 1), 4, 4, input_shape=(96, 64, 3), classes=7
        )
    )


@pytest.fixture(scope="module")
def photos():
    """Parts of photographs of the model's size, uint8."""
    rng = np.random.default_rng(0)
    parts = []
    for i in range(24):
        photo = load_sample_images().images[i % 2]
        top, left = rng.integers(photo.shape[0] - 96), rng.integers(500)
        parts.append(photo[top : top + 96, left : left + 64])
    return np.stack(parts)


@pytest.mark.parametrize(
    "quantize",
    [
        None,
        pytest.param("float16", marks=pytest.mark.slow),
        pytest.param("dynamic", marks=pytest.mark.slow),
        "int8",
    ],
)
def test_it_classifies_as_we_do(quantize, model, photos, tmp_path):
    path = tmp_path / "model.tflite"
    artifact = to_tflite(
        model,
        path,
        quantize=quantize,
        calibration=photos[:8] if quantize == "int8" else None,
        images=photos,
        labels=LABELS,
    )
    np.save(tmp_path / "photos.npy", photos)
    done = run(CLASSIFY, path, tmp_path / "photos.npy")
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout)
    assert len(answers) == len(photos)
    for answer, scores in zip(answers, artifact.scores, strict=True):
        order = np.argsort(-scores)
        assert [name for name, _ in answer] == [LABELS[i] for i in order]
        # XNNPACK there and here.
        np.testing.assert_allclose(
            [score for _, score in answer], scores[order], atol=1e-5
        )
    expected = model.predict(keras_resnext.preprocess_input(photos), verbose=0)
    agree = np.argmax(expected, -1) == np.argmax(artifact.scores, -1)
    assert agree.all()


def test_metadata_reads_back(tmp_path):
    """Through the classes that MediaPipe made of the published schema."""
    path = tmp_path / "metadata.bin"
    path.write_bytes(
        image_classifier_metadata(
            name="net",
            description="",
            shape=(96, 64, 3),
            pixels=True,
            input_name="image",
            output_names=["probabilities"],
            probabilities=True,
            has_labels=True,
        )
    )
    done = run(DISPLAY, path)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = "net 1.5.0 image 64 96 1 255.0 0.0 0.0 1.0 probabilities"
    assert done.stdout.strip() == f"{expected} labels.txt 2"
