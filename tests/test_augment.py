"""Random changes, against torchvision's on Pillow."""

import numpy as np
import pytest
import tensorflow as tf

from keras_resnext.training import augment
from tests import torch_reference

PHOTO = torch_reference.photographs(64)[0]
SEEDS = tf.constant([(0, i) for i in range(200)])


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("step", [3, 17, 30])
@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_operations_are_torchvisions(name, step, sign):
    from PIL import Image

    transforms = torch_reference.torchvision.transforms
    policy = transforms.TrivialAugmentWide()
    magnitudes, signed = policy._augmentation_space(31)[name]
    magnitude = float(magnitudes[step]) if magnitudes.ndim else 0.0
    theirs = transforms.autoaugment._apply_op(
        Image.fromarray(PHOTO),
        name,
        magnitude * (sign if signed else 1),
        interpolation=transforms.InterpolationMode.NEAREST,
        fill=None,
    )
    ours = augment.OPERATIONS[name](
        tf.constant(PHOTO, tf.float32),
        tf.constant(step / 30, tf.float32),
        tf.constant(sign, tf.float32),
    ).numpy()
    difference = np.abs(ours - np.asarray(theirs, "float32"))
    if name.startswith(("Shear", "Rotate")):
        # Where a pixel lies between two, either may be the nearer; at 135
        # degrees those of a whole line do.
        assert np.mean(difference > 0) < 1 / 64
    else:  # Pillow rounds means and tables to whole numbers
        assert difference.max() <= 1
    # The photograph has every level already, and the weakest loses one bit.
    if name not in ("Identity", "AutoContrast"):
        assert np.abs(ours - PHOTO).max() >= 1


def test_trivial_augment_does_all_of_them():
    image = tf.constant(PHOTO, tf.float32)
    augmented = tf.function(augment.trivial_augment)
    found = {augmented(image, seed).numpy().tobytes() for seed in SEEDS}
    # 14 operations in 31 strengths and two signs: 200 draws seldom meet.
    assert 100 < len(found) < 200
    once, again = (augmented(image, SEEDS[5]).numpy() for _ in range(2))
    np.testing.assert_array_equal(once, again)


def test_color_jitter_changes_what_it_says():
    from PIL import Image

    functional = torch_reference.torchvision.transforms.functional
    image = tf.constant(PHOTO, tf.float32)
    for ours, theirs in (
        (augment._brightness, functional.adjust_brightness),
        (augment._contrast, functional.adjust_contrast),
        (augment._saturation, functional.adjust_saturation),
    ):
        for factor in (0.6, 1.3):
            expected = np.asarray(theirs(Image.fromarray(PHOTO), factor))
            found = ours(image, factor).numpy()
            # Pillow cuts off fractions and rounds the mean that contrast
            # is relative to.
            assert np.abs(found - expected).max() <= 1 + 0.5 * 0.4
    jitter = tf.function(lambda seed: augment.color_jitter(image, 0.4, seed))
    results = np.stack([jitter(seed) for seed in SEEDS[:50]])
    assert results.min() >= 0
    assert results.max() <= 255
    means = results.mean((1, 2, 3)) / PHOTO.mean()
    assert 0.5 < means.min() < 0.75
    assert 1.1 < means.max() < 1.5


def test_lighting_shifts_along_the_components():
    image = tf.constant(PHOTO, tf.float32)
    light = tf.function(lambda seed: augment.lighting(image, 0.1, seed))
    shifts = np.stack(
        [
            (light(seed) - image).numpy()[0, 0]
            for seed in tf.constant([(0, i) for i in range(2000)])
        ]
    )
    values, vectors = np.linalg.eigh(np.cov((shifts / 255).T))
    expected = (0.1 * np.array(augment._EIGENVALUES)) ** 2
    # A variance of n draws is off by sqrt(2 / n), three times that here.
    np.testing.assert_allclose(values[::-1], expected, rtol=3 * 0.032)
    first = np.array(augment._EIGENVECTORS)[:, 0]
    assert abs(vectors[:, -1] @ first) > 0.999


def test_erased_rectangles():
    image = tf.ones((40, 60, 3))
    seeds = tf.constant([(1, i) for i in range(1000)])
    erase = tf.function(lambda seed: augment.erase(image, 0.3, seed))
    areas, ratios = [], []
    for seed in seeds:
        erased = erase(seed).numpy()
        gone = erased[..., 0] != 1
        assert np.all(erased[gone] == (124, 116, 104))
        if gone.any():
            rows, columns = gone.any(1).sum(), gone.any(0).sum()
            assert gone.sum() == rows * columns  # one rectangle
            areas.append(gone.mean())
            ratios.append(rows / columns)
    # Three standard deviations of a share of 1000.
    assert abs(len(areas) / 1000 - 0.3) < 3 * (0.3 * 0.7 / 1000) ** 0.5
    assert 0.015 < min(areas) < 0.05
    assert 0.28 < max(areas) < 0.345
    assert min(ratios) < 0.5
    assert max(ratios) > 2


def test_windows_of_crops():
    window = tf.function(
        lambda seed: augment.random_window((300, 500, 3), 0.08, seed)
    )
    windows = np.stack([window(seed) for seed in SEEDS])
    top, left, height, width = windows.T
    assert top.min() >= 0
    assert left.min() >= 0
    assert (top + height).max() <= 300
    assert (left + width).max() <= 500
    area = height * width / (300 * 500)
    assert 0.07 < area.min() < 0.15
    assert 0.7 < area.max() <= 1
    assert (width / height > 0.72).all()
    assert (width / height < 1.37).all()


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0)])
def test_mixed_labels_are_what_images_show(mixup, cutmix):
    """Images of one colour each, so that pixels tell the shares."""
    batch, size = 16, 32
    colours = np.eye(batch, dtype="float32")
    images = np.tile(colours[:, None, None, :], (1, size, size, 1))
    change = augment.make_mix(mixup, cutmix)
    mix = tf.function(lambda seed: change(images, colours, seed))
    blended = 0
    for seed in SEEDS[:20]:
        mixed, labels = (x.numpy() for x in mix(seed))
        np.testing.assert_allclose(labels.sum(1), 1, atol=1e-5)
        # Rounding of a sum; and a rectangle's sides are whole pixels, but
        # its share of the label is not.
        tolerance = size**2 * 2**-24 if mixup else 2.5 / size
        shown = mixed.mean((1, 2))
        np.testing.assert_allclose(shown, labels, atol=tolerance)
        whole = np.isin(mixed, (0, 1)).all()
        assert whole or mixup
        blended += (labels.max(1) < 0.99).sum()
    assert blended > 50
    np.testing.assert_array_equal(mix(SEEDS[0])[0], mix(SEEDS[0])[0])


def test_mixup_and_cutmix_take_turns():
    colours = np.eye(8, dtype="float32")
    images = np.tile(colours[:, None, None, :], (1, 16, 16, 1))
    change = augment.make_mix(1.0, 1.0)
    mix = tf.function(lambda seed: change(images, colours, seed)[0])
    whole = [np.isin(mix(s).numpy(), (0, 1)).all() for s in SEEDS[:60]]
    # Three standard deviations of 60 fair coins.
    assert abs(np.mean(whole) - 0.5) < 0.2
