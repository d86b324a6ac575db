"""One photograph, eight orientations, four routes: the same answer."""

import importlib.util
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

import keras_resnext
from keras_resnext.classifier import Classifier
from keras_resnext.export import to_saved_model
from keras_resnext.export import to_tflite
from keras_resnext.training import evaluate
from keras_resnext.transforms import EvalTransform
from tests.conftest import randomize

pytestmark = pytest.mark.integration

LABELS = ["bird", "cat", "dog"]
CLASSIFY = pathlib.Path(__file__).parents[1] / "export/mobile/classify.py"


@pytest.fixture(scope="module")
def classifier():
    keras.utils.set_random_seed(0)
    model = randomize(
        keras_resnext.ResNeXt(
            (1, 1, 1), 4, 4, stem="cifar", classes=3, input_shape=(64, 64, 3)
        )
    )
    return Classifier(model, LABELS, EvalTransform.from_crop_pct(64, 0.8))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """The same photograph held in eight ways, as a data set too."""
    folder = tmp_path_factory.mktemp("exif")
    upright = Image.fromarray(load_sample_images().images[0][:300, :400])
    turns = Image.Transpose
    # How a camera stores what its EXIF orientation turns back.
    stored = {
        1: None,
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_90,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_270,
    }
    paths = []
    for label in LABELS:
        (folder / "val" / label).mkdir(parents=True)
    for orientation, turn in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = folder / "val" / "cat" / f"{orientation}.jpg"
        image = upright if turn is None else upright.transpose(turn)
        # The 8x8 blocks of a turned picture are turned too, but for rounding.
        image.save(path, exif=exif, quality=100, subsampling=0)
        paths.append(path)
    for label in ("bird", "dog"):
        upright.save(folder / "val" / label / "1.png")
    return folder, paths


@pytest.mark.slow
def test_every_route_turns_photographs_upright(
    classifier, photographs, tmp_path
):
    folder, paths = photographs
    predicted = np.stack(
        [p.probabilities for p in classifier.predict(list(paths))]
    )

    to_saved_model(classifier, tmp_path / "saved")
    serve = tf.saved_model.load(tmp_path / "saved").signatures["image_bytes"]
    served = serve(image_bytes=tf.constant([p.read_bytes() for p in paths]))

    to_tflite(classifier, tmp_path / "m.tflite")
    spec = importlib.util.spec_from_file_location("classify", CLASSIFY)
    kit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kit)
    run, size = kit.open_model(str(tmp_path / "m.tflite"), 1)
    transform = kit.read_transform(tmp_path / "m.tflite")
    mobile = [run(kit.read_image(path, size, **transform)) for path in paths]

    result = evaluate(classifier, folder)
    of_cats = result.predictions[result.labels == 1]
    assert of_cats.tolist() == predicted.argmax(-1).tolist()
    # The eight cats are one picture, and so are the bird and the dog.
    upright = predicted[0]
    loss = -np.log(upright[[1] * 8 + [0, 2]]).mean()
    # 1e-3 of a probability is so much of its logarithm.
    assert result.loss == pytest.approx(loss, abs=1e-3 / float(upright.min()))
    assert np.ptp(upright) > 0.05
    for name, route in (
        ("predict", predicted),
        ("image_bytes", served["probabilities"].numpy()),
        ("mobile", np.stack(mobile)),
    ):
        # What turning changes is below the issue of rounding pixels.
        np.testing.assert_allclose(
            route, np.tile(upright, (8, 1)), atol=1e-3, err_msg=name
        )
    # And what is not turned is another picture.
    sideways = classifier.transform(np.asarray(Image.open(paths[5])))
    other = classifier.model.predict(sideways[None], verbose=0)[0]
    assert np.abs(other - upright).max() > 1e-3
    assert json.loads((tmp_path / "saved/assets/transform.json").read_text())
