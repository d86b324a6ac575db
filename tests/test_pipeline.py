"""Input pipelines: batches for training and evaluation."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.datasets import load_sample_images

from keras_resnext.images import decode
from keras_resnext.training import augment
from keras_resnext.training import datasets
from keras_resnext.training import pipeline
from keras_resnext.training.pipeline import InputShard
from keras_resnext.training.presets import RECIPES
from keras_resnext.training.recipe import Recipe
from keras_resnext.transforms import EvalTransform
from keras_resnext.transforms import preprocess_input

RECIPE = Recipe(image_size=8, batch_size=100, crop_padding=0)
TRANSFORM = EvalTransform.from_crop_pct(8)


def collect(batches):
    """Images and labels of all batches, without what fills the last one."""
    parts = zip(*batches.as_numpy_iterator(), strict=True)
    images, labels, weights = map(np.concatenate, parts)
    if labels.ndim == 2:
        assert set(labels.ravel()) == {0, 1}
        labels = labels.argmax(-1)
    return images[weights > 0], labels[weights > 0]


def test_digits_are_split_by_class(digits):
    _, labels = collect(
        pipeline.evaluation_batches(digits, "test", TRANSFORM, 50)
    )
    counts = np.bincount(labels)
    share = np.bincount(load_digits().target) * 0.2
    assert np.all(np.abs(counts - share) < 1)


def test_evaluated_images_come_once_in_order_for_the_network(digits):
    images, labels = collect(
        pipeline.evaluation_batches(digits, "test", TRANSFORM, 50)
    )
    assert images.shape == (360, 8, 8, 3)
    raw = list(
        tfds.load(
            "digits", split="test", as_supervised=True
        ).as_numpy_iterator()
    )
    pixels = np.repeat([image for image, _ in raw], 3, axis=-1)
    np.testing.assert_allclose(images, preprocess_input(pixels), atol=1e-5)
    np.testing.assert_array_equal(labels, [label for _, label in raw])


@pytest.mark.integration
def test_epochs_are_shuffles_that_can_be_repeated(digits):
    first = collect(pipeline.training_batches(digits, RECIPE, 0))
    again = collect(pipeline.training_batches(digits, RECIPE, 0))
    second = collect(pipeline.training_batches(digits, RECIPE, 1))
    assert len(first[1]) == 1400  # the last 37 do not fill a batch
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.any(first[1] != second[1])


@pytest.mark.integration
def test_augmentation_follows_seed_and_epoch(digits):
    shifted = dataclasses.replace(RECIPE, crop_padding=2)
    plain = collect(pipeline.training_batches(digits, RECIPE, 0))
    one = collect(pipeline.training_batches(digits, shifted, 0))
    same = collect(pipeline.training_batches(digits, shifted, 0))
    other = collect(
        pipeline.training_batches(
            digits, dataclasses.replace(shifted, seed=1), 0
        )
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


@pytest.mark.integration
def test_half_of_the_images_are_flipped(digits):
    flipping = dataclasses.replace(RECIPE, flip=True)
    plain, labels = collect(pipeline.training_batches(digits, RECIPE, 0))
    found, same = collect(pipeline.training_batches(digits, flipping, 0))
    np.testing.assert_array_equal(labels, same)
    straight = np.all(found == plain, axis=(1, 2, 3))
    mirrored = np.all(found == plain[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(straight | mirrored)
    # 1400 fair coins: four standard deviations are 75.
    assert abs(mirrored.sum() - 700) < 80


@pytest.mark.integration
def test_seeds_and_epochs_do_not_repeat_each_other(digits):
    tf.random.set_seed(0)
    first, second = (
        collect(pipeline.training_batches(digits, recipe, epoch))[1]
        for recipe, epoch in (
            (RECIPE, 1),
            (dataclasses.replace(RECIPE, seed=1), 0),
        )
    )
    assert np.any(first != second)


@pytest.mark.integration
@pytest.mark.parametrize("name", ["digits", "folder"])
def test_an_epoch_goes_on_at_any_step(name, digits, request):
    found, recipe = digits, dataclasses.replace(RECIPE, crop_padding=2)
    if name == "folder":
        found = datasets.open_dataset(
            str(request.getfixturevalue("image_folder"))
        )
        recipe = dataclasses.replace(recipe, batch_size=3)
    images, labels = collect(pipeline.training_batches(found, recipe, 1))
    for step in (1, 3):
        rest = pipeline.training_batches(found, recipe, 1, first_step=step)
        done = step * recipe.batch_size
        more, same = collect(rest)
        np.testing.assert_array_equal(more, images[done:])
        np.testing.assert_array_equal(same, labels[done:])


@pytest.mark.integration
@pytest.mark.parametrize(("replicas", "pipelines"), [(2, 1), (2, 2), (4, 2)])
def test_shares_are_parts_of_the_same_batches(replicas, pipelines, digits):
    recipe = dataclasses.replace(RECIPE, crop_padding=2, flip=True)
    images, _ = collect(pipeline.training_batches(digits, recipe, 0))
    shares = [
        pipeline.training_batches(
            digits,
            recipe,
            0,
            shard=InputShard(replicas, pipelines, number),
        )
        for number in range(pipelines)
    ]
    parts = [[x for x, _, _ in s.as_numpy_iterator()] for s in shares]
    each = replicas // pipelines  # batches a step from each pipeline
    for step in range(14):
        batch = images[100 * step : 100 * (step + 1)]
        found = np.concatenate(
            [x for p in parts for x in p[each * step : each * (step + 1)]]
        )
        assert len(found) == 100
        assert {x.tobytes() for x in found} == {x.tobytes() for x in batch}


@pytest.mark.parametrize(("replicas", "pipelines"), [(1, 1), (3, 1), (4, 2)])
@pytest.mark.integration
def test_every_image_is_evaluated_once(replicas, pipelines, digits):
    images, labels = collect(
        pipeline.evaluation_batches(digits, "test", TRANSFORM, 50)
    )
    shares = [
        pipeline.evaluation_batches(
            digits,
            "test",
            TRANSFORM,
            50,
            shard=InputShard(replicas, pipelines, number),
        )
        for number in range(pipelines)
    ]
    # As many batches for everyone, or some would wait for ever.
    counts = {sum(1 for _ in share) for share in shares}
    assert len(counts) == 1
    assert counts.pop() * pipelines % replicas == 0
    parts = [collect(share) for share in shares]
    found = np.concatenate([x for x, _ in parts])
    assert len(found) == 360
    assert {x.tobytes() for x in found} == {x.tobytes() for x in images}
    same = np.concatenate([y for _, y in parts])
    np.testing.assert_array_equal(np.sort(same), np.sort(labels))


@pytest.mark.integration
def test_bad_images_are_named_and_left_out(image_folder):
    bad_name = image_folder / "train" / "grey" / "1.png"
    whole = bad_name.read_bytes()
    bad_name.write_bytes(whole[: len(whole) // 2])
    (image_folder / "val" / "dark" / "0.png").write_text("no image")
    found = datasets.open_dataset(str(image_folder))
    recipe = dataclasses.replace(RECIPE, batch_size=4)
    bad = pipeline.BadImages("skip")
    images, labels = collect(
        pipeline.training_batches(found, recipe, 0, bad=bad)
    )
    assert bad.names == [str(bad_name)]
    assert np.bincount(labels).tolist() == [4, 3, 4]
    # Flat colours: none is half an image.
    assert np.ptp(images.astype(int), axis=(1, 2)).max() == 0
    bad.check()
    # The others are where they would have been.
    bad_name.write_bytes(whole)
    all_images, _ = collect(pipeline.training_batches(found, recipe, 0))
    kept = [
        x.tobytes()
        for x in all_images
        if x.tobytes() in {y.tobytes() for y in images}
    ]
    assert [x.tobytes() for x in images] == kept

    bad = pipeline.BadImages()
    _, labels = collect(
        pipeline.evaluation_batches(found, "val", TRANSFORM, 4, bad=bad)
    )
    assert len(labels) == 5
    with pytest.raises(ValueError, match="cannot decode .*val/dark/0.png"):
        bad.check()


@pytest.mark.integration
def test_modern_augmentation_of_photographs(tmp_path):
    """JPEG and PNG, larger than the network's input, all changes at once."""
    photos = load_sample_images().images
    for split in ("train", "val"):
        for name, photo in zip(("china", "flower"), photos, strict=True):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for i in range(4):
                file = place / f"{i}.{('jpg', 'png')[i % 2]}"
                Image.fromarray(photo).save(file)
    recipe = dataclasses.replace(
        RECIPES["imagenet_modern"],
        dataset=str(tmp_path),
        image_size=64,
        batch_size=4,
        color_jitter=0.4,
        lighting=0.1,
    )
    found = datasets.open_dataset(str(tmp_path))
    bad = pipeline.BadImages()
    one, again, other = (
        list(
            pipeline.training_batches(
                found, recipe, epoch, bad=bad
            ).as_numpy_iterator()
        )
        for epoch in (0, 0, 1)
    )
    assert not bad.names
    for batch, same in zip(one, again, strict=True):
        for values, equal in zip(batch, same, strict=True):
            np.testing.assert_array_equal(values, equal)
    images, labels, weights = one[0]
    assert images.shape == (4, 64, 64, 3)
    assert images.dtype == np.float32  # mixed
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-5)
    assert images.min() >= 0
    assert images.max() <= 255
    assert np.all(weights == 1)
    assert np.any(images != other[0][0])


def save_jpeg(image, path, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(path, exif=exif)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_windows_of_jpegs_are_windows_of_the_upright_image(
    orientation, tmp_path
):
    """Decoding a part, against decoding everything and cutting."""
    photo = load_sample_images().images[0]
    save_jpeg(photo, tmp_path / "x.jpg", orientation)
    encoded = tf.io.read_file(str(tmp_path / "x.jpg"))
    whole = decode(encoded).numpy()
    height, width = photo.shape[:2]
    upright = (height, width) if orientation < 5 else (width, height)
    assert whole.shape == (*upright, 3)
    for i in range(3):
        seed = tf.constant([i, 0])
        top, left, height, width = augment.random_window(
            whole.shape, 0.08, seed
        ).numpy()
        part = pipeline._decode_window(encoded, 0.08, seed).numpy()
        expected = whole[top : top + height, left : left + width]
        # At the edges, colours are interpolated from one side only.
        inner = slice(2, -2)
        np.testing.assert_array_equal(
            part[inner, inner], expected[inner, inner]
        )
        assert np.mean(part != expected) < 0.01


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_in_the_graph_is_evaluation_with_pillow(
    interpolation, tmp_path
):
    """On photographs, one of them rotated; published accuracies are Pillow's.

    One level of 255 where Pillow's fixed-point weights round the other way.
    """
    for name, photo in zip(
        ("china", "flower"), load_sample_images().images, strict=True
    ):
        place = tmp_path / "val" / name
        place.mkdir(parents=True)
        for orientation in (1, 6):
            save_jpeg(photo, place / f"{orientation}.jpg", orientation)
        Image.fromarray(photo).save(place / "x.png")
    transform = EvalTransform(
        image_size=96, resize_size=110, interpolation=interpolation
    )
    data = datasets.open_dataset(tmp_path)
    images, _ = collect(pipeline.evaluation_batches(data, "val", transform, 4))
    paths = sorted(tmp_path.glob("val/*/*"))
    expected = np.stack([transform(path) for path in paths])
    levels = np.abs(images - expected) * np.array(transform.std) * 255
    assert levels.max() < 1.01
    assert np.mean(levels > 0.01) < 0.005
    read, _ = datasets.read_images(data, "val", transform, count=6)
    np.testing.assert_array_equal(transform.normalize(read), expected)
