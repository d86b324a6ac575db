"""Random changes, against torchvision's on Pillow."""

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import ks_2samp

from keras_resnext.training import augment
from tests import torch_reference

pytestmark = pytest.mark.integration

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


def draws(function, count, dtype):
    """Results for as many seeds, in one graph."""

    @tf.function
    def draw(seeds):
        return tf.map_fn(function, seeds, fn_output_signature=dtype)

    return draw(
        tf.stack([tf.zeros(count, tf.int32), tf.range(count)], 1)
    ).numpy()


@pytest.mark.parametrize(
    ("height", "width", "smallest_area"),
    [(28, 28, 0.08), (64, 64, 0.35), (375, 500, 0.08), (40, 400, 0.08)],
)
def test_windows_are_torchvisions(height, width, smallest_area):
    """As distributions; on a strip of 1:10, attempts fail and are replaced.

    Two samples of n from one distribution are further apart than
    1.95 / sqrt(n / 2) once in a thousand times (Kolmogorov and Smirnov).
    """
    count = 20_000
    ours = draws(
        lambda seed: augment.random_window(
            (height, width, 3), smallest_area, seed
        ),
        count,
        tf.int32,
    )
    torch_reference.torch.manual_seed(0)
    crop = torch_reference.torchvision.transforms.RandomResizedCrop
    image = torch_reference.torch.zeros(3, height, width)
    theirs = np.array(
        [
            crop.get_params(image, (smallest_area, 1.0), (3 / 4, 4 / 3))
            for _ in range(count)
        ]
    )
    for measure in (
        lambda top, left, rows, columns: rows * columns,  # area
        lambda top, left, rows, columns: columns / rows,  # aspect ratio
        lambda top, left, rows, columns: top + rows / 2,
        lambda top, left, rows, columns: left + columns / 2,
    ):
        found, expected = measure(*ours.T), measure(*theirs.T)
        assert ks_2samp(found, expected).statistic < 0.0195
    assert len({tuple(window) for window in ours}) > 100
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= (height, width)).all()


@pytest.mark.parametrize("size", [28, 64])
@pytest.mark.parametrize(
    ("kind", "alpha"), [("MixUp", 0.2), ("MixUp", 1.0), ("CutMix", 1.0)]
)
def test_shares_are_torchvisions(kind, alpha, size):
    """Images of one colour each: what is kept shows in the label."""
    count = 20_000
    images, labels = np.zeros((2, size, size, 1)), np.eye(2, dtype="float32")
    change = augment.make_mix(*((alpha, 0) if kind == "MixUp" else (0, alpha)))
    ours = draws(
        lambda seed: change(images, labels, seed)[1][0, 0], count, tf.float32
    )
    torch_reference.torch.manual_seed(0)
    from torchvision.transforms import v2

    theirs = getattr(v2, kind)(alpha=alpha, num_classes=2)
    key = "lam" if kind == "MixUp" else "lam_adjusted"
    image = torch_reference.torch.zeros(2, 1, size, size)
    expected = np.array(
        [theirs.make_params([image])[key] for _ in range(count)]
    )
    if kind == "CutMix":  # whole pixels, whatever was rounded
        ours, expected = ((x * size**2).round() for x in (ours, expected))
    assert ks_2samp(ours, expected).statistic < 0.0195
    # Three standard errors of two means.
    spread = 3 * (2 / count) ** 0.5 * expected.std()
    assert abs(ours.mean() - expected.mean()) < spread


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0)])
def test_mixed_labels_are_what_images_show(mixup, cutmix):
    """Images of one colour each, so that pixels tell the shares."""
    batch, size = 16, 33
    colours = np.eye(batch, dtype="float32")
    images = np.tile(colours[:, None, None, :], (1, size, size, 1))
    change = augment.make_mix(mixup, cutmix)
    mix = tf.function(lambda seed: change(images, colours, seed))
    blended = 0
    for seed in SEEDS[:20]:
        mixed, labels = (x.numpy() for x in mix(seed))
        np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
        assert np.ptp(np.diag(labels)) == 0  # one share for the batch
        np.testing.assert_allclose(
            mixed.mean((1, 2), dtype="float64"), labels, atol=2**-23
        )
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
