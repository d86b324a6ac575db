"""Classifiers: what is loaded, saved and predicted, beside the bare model."""

import io
import json
import threading
import zipfile

import keras
import numpy as np
import pytest
from PIL import Image

import keras_resnext
from keras_resnext import imagenet
from keras_resnext.classifier import Classifier
from keras_resnext.classifier import as_classifier
from keras_resnext.classifier import list_images
from keras_resnext.classifier import read_ahead
from keras_resnext.transforms import EvalTransform
from tests.conftest import randomize

LABELS = [f"class {i}" for i in range(10)]


@pytest.fixture
def classifier(small_model):
    transform = EvalTransform(
        image_size=16, resize_size=19, interpolation="bicubic"
    )
    return Classifier(small_model, LABELS, transform)


@pytest.fixture
def pictures():
    """Seven images of noise, each of another size."""
    rng = np.random.default_rng(2)
    return [
        rng.integers(0, 256, (20 + i, 50 - 3 * i, 3), "uint8") for i in range(7)
    ]


@pytest.fixture
def folder(tmp_path, pictures):
    for i, picture in enumerate(pictures):
        place = tmp_path / "photos" / ("a", "b")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{i}.PNG")
    return tmp_path / "photos"


def expected(classifier, pictures):
    inputs = np.stack([classifier.transform(x) for x in pictures])
    return classifier.model.predict(inputs, verbose=0)


def stacked(predictions):
    return np.stack([p.probabilities for p in predictions])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 32])
def test_images_of_any_kind_in_any_batch(
    classifier, pictures, folder, batch_size
):
    """The bare model's probabilities, to float32 sums in another order."""
    paths = list_images(folder)
    assert [p.name for p in paths] == [
        f"{i}.PNG" for i in (0, 2, 4, 6, 1, 3, 5)
    ]
    order = [int(path.stem) for path in paths]
    want = expected(classifier, pictures)
    for images, rows in (
        (pictures, range(7)),
        ([Image.fromarray(x) for x in pictures], range(7)),
        (folder, order),
        (paths, order),
        (str(paths[0]), order[:1]),
    ):
        predictions = classifier.predict(images, batch_size)
        np.testing.assert_allclose(
            stacked(predictions), want[list(rows)], atol=1e-6
        )
    names = [p.name for p in classifier.predict(paths)]
    assert names == list(map(str, paths))
    best = classifier.predict(pictures)[3]
    assert best.name == "3"
    assert best.label == LABELS[want[3].argmax()]
    labels, probabilities = zip(*best.top(10), strict=True)
    assert sorted(labels) == LABELS
    assert list(probabilities) == sorted(probabilities, reverse=True)


def test_reading_that_is_given_up_waits_for_no_thread(monkeypatch):
    """Garbage collection ends it, wherever a thread happens to be."""
    transform = EvalTransform(image_size=8, resize_size=8)
    items = [(str(i), np.zeros((8, 8, 3), "uint8")) for i in range(6)]
    batches = read_ahead(transform, items, 2)
    names, images = next(batches)
    assert names == ["0", "1"]
    assert images[0].shape == (8, 8, 3)

    def join(*_):
        raise AssertionError("it waits for a thread")

    monkeypatch.setattr(threading.Thread, "join", join)
    batches.close()


def test_a_bad_image_among_others(classifier, folder):
    (folder / "b" / "2bad.png").write_bytes(b"no picture")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match="must be an image file; .*2bad.png"):
        classifier.predict(folder)
    predictions = classifier.predict(folder, 2, on_bad_image="skip")
    bad = [p for p in predictions if p.error]
    assert len(predictions) == 8
    assert [p.name for p in bad] == [str(folder / "b" / "2bad.png")]
    with pytest.raises(ValueError, match=r"2bad.png"):
        bad[0].top()
    good = [p for p in predictions if not p.error]
    alone = classifier.predict([p.name for p in good])
    np.testing.assert_allclose(stacked(good), stacked(alone), atol=1e-6)


def test_all_three_are_saved(classifier, pictures, tmp_path):
    path = tmp_path / "x.keras"
    classifier.save(path)
    again = Classifier.load(path)
    assert (again.labels, again.transform) == (LABELS, classifier.transform)
    np.testing.assert_array_equal(
        stacked(again.predict(pictures)), stacked(classifier.predict(pictures))
    )
    plain = keras.saving.load_model(path)  # as any other file of Keras
    inputs = classifier.transform(pictures[0])[None]
    np.testing.assert_array_equal(
        plain.predict(inputs, verbose=0),
        again.model.predict(inputs, verbose=0),
    )
    with pytest.raises(FileExistsError, match="must not exist unless"):
        classifier.save(path)
    classifier.save(path, overwrite=True)
    with pytest.raises(ValueError, match=r"`path` must end in .keras"):
        classifier.save(tmp_path / "x.h5")


def test_files_from_elsewhere_have_the_default_transform(small_model, tmp_path):
    small_model.save(tmp_path / "x.keras")
    classifier = Classifier.load(tmp_path / "x.keras")
    assert classifier.labels is None
    assert classifier.transform == EvalTransform.from_crop_pct(16)
    image = np.zeros((16, 16, 3), "uint8")
    assert classifier.predict([image])[0].label in "0123456789"


@pytest.mark.parametrize("content", [[], {"labels": None}, "no JSON", 5])
def test_damaged_metadata_names_the_file(small_model, tmp_path, content):
    path = tmp_path / "x.keras"
    small_model.save(path)
    text = content if isinstance(content, str) else json.dumps(content)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("keras_resnext.json", text)
    with pytest.raises(ValueError, match=r"x.keras is not a .keras file of"):
        Classifier.load(path)


def test_what_cannot_be_loaded(classifier, tmp_path):
    classifier.save(tmp_path / "x.keras")
    for source, weights, message in (
        ("resnext5", None, "Did you mean resnext50"),
        (tmp_path, None, "has no recipe.json"),
        (tmp_path / "no", None, "must be the folder of a training run, a"),
        (tmp_path / "no.keras", None, "must be the folder of a training run"),
        ("model.h5", None, "must be the folder of a training run"),
        (tmp_path / "x.keras", "tv2_in1k", "`weights` must be None unless"),
        (tmp_path, "tv2_in1k", "`weights` must be None unless"),
        ("resnext50", "w.pth", "or an existing file; got 'w.pth'"),
        ("resnext50", "tv9", "got 'tv9'"),
    ):
        with pytest.raises(ValueError, match=message):
            Classifier.load(source, weights)
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(ValueError, match="must be a finished run"):
        Classifier.load(tmp_path)


@pytest.fixture(scope="module")
def thousand():
    keras.utils.set_random_seed(0)
    return randomize(
        keras_resnext.ResNeXt(
            (1, 1, 1), 4, 4, stem="cifar", input_shape=(32, 32, 3)
        )
    )


def test_a_thousand_classes_are_imagenets(thousand, classifier, tmp_path):
    """In a file where nothing says otherwise."""
    thousand.save(tmp_path / "plain.keras")
    assert Classifier.load(tmp_path / "plain.keras").labels == imagenet.labels()
    own = [f"own {i}" for i in range(1000)]
    Classifier(thousand, own).save(tmp_path / "own.keras")
    assert Classifier.load(tmp_path / "own.keras").labels == own
    Classifier(classifier.model).save(tmp_path / "ten.keras")
    assert Classifier.load(tmp_path / "ten.keras").labels is None


@pytest.mark.parametrize("classes", [1000, 7])
def test_a_file_of_weights(classes, pictures, thousand, tmp_path):
    """The file has the number of classes; the transform is the default."""
    model = thousand
    if classes != 1000:
        model = keras_resnext.ResNeXt(
            (1, 1, 1), 4, 4, stem="cifar", classes=classes
        )
        randomize(model)
    path = tmp_path / "my.safetensors"
    keras_resnext.export_weights(model, path)
    loaded = Classifier.load("resnext11_4x4d", path)
    assert loaded.transform == EvalTransform.from_crop_pct(32)
    assert loaded.labels == (imagenet.labels() if classes == 1000 else None)
    inputs = np.stack([loaded.transform(x) for x in pictures])
    np.testing.assert_allclose(
        stacked(loaded.predict(pictures)),
        model.predict(inputs, verbose=0),
        atol=1e-6,
    )


def test_a_file_of_weights_without_classes(tmp_path):
    model = keras_resnext.ResNeXt(
        (1, 1, 1), 4, 4, stem="cifar", include_top=False
    )
    keras_resnext.export_weights(model, tmp_path / "my.safetensors")
    with pytest.raises(ValueError, match="`weights` must have a classifier"):
        Classifier.load("resnext11_4x4d", str(tmp_path / "my.safetensors"))


def test_file_objects(classifier, folder):
    path = list_images(folder)[0]
    unnamed = io.BytesIO(path.read_bytes())
    with path.open("rb") as file:
        named, other = classifier.predict([file, unnamed])
    assert (named.name, other.name) == (str(path), "1")
    (alone,) = classifier.predict(path)
    for found in (named, other):
        np.testing.assert_allclose(
            found.probabilities, alone.probabilities, atol=1e-6
        )
    bad = io.BytesIO(b"no picture")
    bad.name = "-"
    (found,) = classifier.predict([bad], on_bad_image="skip")
    assert "`source` must be an image file; -: unknown format" in found.error


def test_parts_must_fit(small_model, pictures, tmp_path):
    for labels in (["a"], "ab", 5, range(10)):
        with pytest.raises(ValueError, match="`labels` must be"):
            Classifier(small_model, labels)
    with pytest.raises(ValueError, match="`transform` must be an EvalTr"):
        Classifier(small_model, None, EvalTransform.from_crop_pct(17))
    with pytest.raises(ValueError, match="`model` must be a keras.Model"):
        Classifier("resnext50")
    classifier = Classifier(small_model)
    for images, changes, message in (
        ([], {}, "`images` must be image files"),
        (5, {}, "`images` must be image files"),
        (tmp_path, {}, "has none that end in .jpg"),
        (pictures, {"batch_size": 0}, "`batch_size` must be 1 or more"),
        (pictures, {"on_bad_image": "x"}, '`on_bad_image` must be "error"'),
        ([np.zeros((3, 3, 3))], {}, "`image` must be uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier.predict(images, **changes)
    assert len(classifier.predict(x for x in pictures)) == 7
    features = keras_resnext.ResNeXt(
        (1,), 2, 4, stem="cifar", include_top=False, input_shape=(16, 16, 3)
    )
    with pytest.raises(ValueError, match="must end in class probabilities"):
        as_classifier(features).predict(pictures)


def test_given_parts_replace_a_classifiers(classifier):
    other = EvalTransform.from_crop_pct(16)
    changed = as_classifier(classifier, labels=list("abcdefghij"))
    assert changed.labels == list("abcdefghij")
    assert changed.transform is classifier.transform
    changed = as_classifier(classifier, transform=other)
    assert (changed.labels, changed.transform) == (LABELS, other)
    assert changed.model is classifier.model
