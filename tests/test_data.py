"""Data sets: the digits through TFDS, and folders of images by class."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from keras_resnext.preprocessing import preprocess_input
from keras_resnext.training import augment
from keras_resnext.training import data
from keras_resnext.training.recipe import Recipe

RECIPE = Recipe(image_size=8, batch_size=100, crop_padding=0)


@pytest.fixture(scope="module")
def digits():
    found = data.open_dataset("digits")
    found.prepare()
    return found


@pytest.fixture
def folder(tmp_path):
    """Three classes of flat colour, sizes of their own, and a stray file."""
    for split, count in (("train", 4), ("val", 2)):
        for shade, name in ((50, "dark"), (120, "grey"), (220, "light")):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for i in range(count):
                size = (20 + 5 * i, 30)
                Image.new("RGB", size, (shade, 0, i)).save(place / f"{i}.png")
            (place / "notes.txt").write_text("not an image")
    return tmp_path


def collect(batches):
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_digits_are_scikit_learns(digits):
    """Every scan once, in one of the two splits, and none changed."""
    expected = load_digits()
    seen = []
    for split in ("train", "test"):
        for image, label in tfds.load(
            "digits", split=split, as_supervised=True
        ).as_numpy_iterator():
            seen.append((*(image[..., 0] / 255 * 16).round().ravel(), label))
    known = np.column_stack([expected.data, expected.target])
    assert sorted(seen) == sorted(map(tuple, known))
    assert digits.num_examples("train") == 1437
    assert digits.num_examples("test") == 360


def test_digits_are_split_by_class(digits):
    _, labels = collect(data.evaluation_batches(digits, "test", 8, 50))
    counts = np.bincount(labels)
    share = np.bincount(load_digits().target) * 0.2
    assert np.all(np.abs(counts - share) < 1)


def test_held_out_images_come_once_in_order_for_the_network(digits):
    images, labels = collect(data.evaluation_batches(digits, "test", 8, 50))
    assert images.shape == (360, 8, 8, 3)
    raw = list(
        tfds.load(
            "digits", split="test", as_supervised=True
        ).as_numpy_iterator()
    )
    pixels = np.repeat([image for image, _ in raw], 3, axis=-1)
    np.testing.assert_allclose(images, preprocess_input(pixels), atol=1e-5)
    np.testing.assert_array_equal(labels, [label for _, label in raw])


def test_epochs_are_shuffles_that_can_be_repeated(digits):
    first = collect(data.training_batches(digits, RECIPE, 0))
    again = collect(data.training_batches(digits, RECIPE, 0))
    second = collect(data.training_batches(digits, RECIPE, 1))
    assert len(first[1]) == 1400  # the last 37 do not fill a batch
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.any(first[1] != second[1])


def test_augmentation_follows_seed_and_epoch(digits):
    shifted = dataclasses.replace(RECIPE, crop_padding=2)
    plain = collect(data.training_batches(digits, RECIPE, 0))
    one = collect(data.training_batches(digits, shifted, 0))
    same = collect(data.training_batches(digits, shifted, 0))
    other = collect(
        data.training_batches(digits, dataclasses.replace(shifted, seed=1), 0)
    )
    np.testing.assert_array_equal(plain[1], one[1])  # the same order
    np.testing.assert_array_equal(one[0], same[0])
    changed = np.any(plain[0] != one[0], axis=(1, 2, 3))
    # 24 of 25 crops move the image.
    assert 0.9 < changed.mean() < 1
    assert np.any(one[1] != other[1])


def test_crops_are_shifts_and_flips_are_mirrors():
    image = tf.reshape(tf.range(1.0, 76.0), (5, 5, 3))
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    windows = {
        padded[y : y + 5, x : x + 5].tobytes()
        for y in range(5)
        for x in range(5)
    }
    crops = {
        augment.pad_and_crop(image, 2, (0, i)).numpy().tobytes()
        for i in range(200)
    }
    assert crops <= windows
    assert len(crops) > 20
    flips = {augment.flip(image, (0, i)).numpy().tobytes() for i in range(20)}
    assert flips == {
        image.numpy().tobytes(),
        image.numpy()[:, ::-1].tobytes(),
    }


def test_half_of_the_images_are_flipped(digits):
    flipping = dataclasses.replace(RECIPE, flip=True)
    plain, labels = collect(data.training_batches(digits, RECIPE, 0))
    found, same = collect(data.training_batches(digits, flipping, 0))
    np.testing.assert_array_equal(labels, same)
    straight = np.all(found == plain, axis=(1, 2, 3))
    mirrored = np.all(found == plain[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(straight | mirrored)
    # 1400 fair coins: four standard deviations are 75.
    assert abs(mirrored.sum() - 700) < 80


def test_seeds_and_epochs_do_not_repeat_each_other(digits):
    tf.random.set_seed(0)
    first, second = (
        collect(data.training_batches(digits, recipe, epoch))[1]
        for recipe, epoch in (
            (RECIPE, 1),
            (dataclasses.replace(RECIPE, seed=1), 0),
        )
    )
    assert np.any(first != second)


def test_names_and_folders_are_told_apart(folder, monkeypatch):
    (folder / "digits").mkdir()
    monkeypatch.chdir(folder)
    assert data.locate("digits") == "digits"
    assert data.locate("./digits") == str(folder / "digits")
    assert data.locate(".") == str(folder)
    assert data.locate("no such name") == "no such name"


def test_one_class_is_none(tmp_path):
    place = tmp_path / "train" / "only"
    place.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(place / "0.png")
    with pytest.raises(ValueError, match="two classes or more; .* has only"):
        data.open_dataset(str(tmp_path))


def test_folder_of_images_by_class(folder):
    found = data.open_dataset(str(folder))
    found.prepare()
    assert found.labels == ["dark", "grey", "light"]
    assert found.held_out_split == "val"
    assert found.num_examples("train") == 12
    batches = found.images("val", 16).batch(6)
    ((images, labels),) = batches.as_numpy_iterator()
    assert images.shape == (6, 16, 16, 3)
    np.testing.assert_allclose(
        images[..., 0].mean(axis=(1, 2)),
        np.array([50, 120, 220])[labels],
        atol=1e-3,
    )


def test_unknown_data_sets_are_refused(tmp_path):
    for name in ("digitz", str(tmp_path / "nowhere")):
        with pytest.raises(
            ValueError, match="`dataset` must be a folder .*got"
        ):
            data.open_dataset(name)
    with pytest.raises(ValueError, match="found no image two folders below"):
        data.open_dataset(str(tmp_path))
    with pytest.raises(ValueError, match="image and label .*; glue has"):
        data.open_dataset("glue")


def test_unknown_splits_are_refused(digits, folder):
    with pytest.raises(
        ValueError, match="`split` must be .*train.*; got 'dev'"
    ):
        digits.images("dev", 8)
    only = folder / "only"
    only.mkdir()
    (folder / "train").rename(only / "train")
    with pytest.raises(
        ValueError, match="images in one of the splits .*has train"
    ):
        _ = data.open_dataset(str(only)).held_out_split
