"""Evaluation images, beside torchvision, timm and Pillow."""

import importlib
import io
import json

import keras
import numpy as np
import PIL
import pytest
import tensorflow as tf
from PIL import Image
from PIL import ImageOps
from sklearn.datasets import load_sample_images

from keras_resnext import transforms
from keras_resnext.imagenet import MEAN
from keras_resnext.imagenet import STD
from keras_resnext.images import decode
from keras_resnext.images import read_image
from keras_resnext.transforms import EvalTransform

PHOTO = load_sample_images().images[0]
NOISE = np.random.default_rng(0).integers(0, 256, (187, 251, 3), "uint8")
TRANSFORM = EvalTransform(image_size=224, resize_size=256)

# Down- and upscaling, even and odd, portrait and landscape.
IMAGES = {
    "landscape": PHOTO,
    "portrait": PHOTO.transpose(1, 0, 2),
    "odd": PHOTO[:333, :211],
    "small": PHOTO[100:199, 100:177],
    "noise": NOISE,
    "large": np.asarray(Image.fromarray(PHOTO).resize((1999, 1501))),
    "as resized": PHOTO[:256, :301],
    "one pixel wide": PHOTO[:40, :1],
    "one pixel high": PHOTO[:1, :40],
    "one pixel": PHOTO[:1, :1],
}

RESAMPLING = {"bilinear": 2, "bicubic": 3}

images = pytest.mark.parametrize(
    "image", [pytest.param(image, id=name) for name, image in IMAGES.items()]
)
interpolations = pytest.mark.parametrize(
    "interpolation", ["bilinear", "bicubic"]
)
sizes = pytest.mark.parametrize(
    ("resize_size", "image_size"), [(256, 224), (232, 224), (329, 288)]
)


def encode(image=PHOTO, kind="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


# ---- EvalTransform


def imported(name):
    """A module that imports torchvision, or the test is skipped."""
    pytest.importorskip("torch", reason="torch is not installed (make peers)")
    # Makes torchvision importable beside PyTorch's CPU build.
    importlib.import_module("tests.torch_reference")
    return pytest.importorskip(name)


@pytest.mark.parametrize(
    ("shape", "resize_size", "size", "corner"),
    [
        # 256 * 640 / 427 = 383.7; (383 - 224) / 2 = 79.5, to the even 80.
        ((427, 640), 256, (383, 256), (80, 16)),
        ((640, 427), 256, (256, 383), (16, 80)),
        # 232 * 333 / 211 = 366.1, (366 - 224) / 2 = 71.
        ((333, 211), 232, (232, 366), (4, 71)),
        ((300, 300), 225, (225, 225), (0, 0)),  # 0.5, to the even 0
    ],
)
@interpolations
def test_as_pillow(shape, resize_size, size, corner, interpolation):
    """Side and corner worked out by hand from torchvision's source."""
    image = np.asarray(Image.fromarray(PHOTO).resize(shape[::-1]))
    resized = Image.fromarray(image).resize(size, RESAMPLING[interpolation])
    left, top = corner
    expected = np.asarray(resized)[top : top + 224, left : left + 224]
    transform = EvalTransform(
        image_size=224, resize_size=resize_size, interpolation=interpolation
    )
    np.testing.assert_array_equal(transform.pixels(image), expected)
    expected = expected.astype("float64") / 255
    expected = (expected - MEAN) / STD
    # Values up to 2.7 after three roundings and a division by 0.22.
    np.testing.assert_allclose(transform(image), expected, atol=2e-6)


@pytest.mark.integration
@images
@interpolations
@sizes
def test_as_torchvision(image, resize_size, image_size, interpolation):
    """Bit for bit, pixels and normalised."""
    theirs = imported("torchvision.transforms")
    steps = [
        theirs.Resize(resize_size, theirs.InterpolationMode(interpolation)),
        theirs.CenterCrop(image_size),
        theirs.ToTensor(),
        theirs.Normalize(MEAN, STD),
    ]
    transform = EvalTransform(
        image_size=image_size,
        resize_size=resize_size,
        interpolation=interpolation,
    )
    picture = Image.fromarray(image)
    expected = np.asarray(theirs.Compose(steps[:2])(picture))
    found = transform.pixels(image)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
    expected = theirs.Compose(steps)(picture).numpy().transpose(1, 2, 0)
    found = transform(image)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.integration
@interpolations
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 224 / 235, 1.0])
def test_as_timm(crop_pct, interpolation):
    factory = imported("timm.data.transforms_factory")
    theirs = factory.transforms_imagenet_eval(
        224, crop_pct=crop_pct, interpolation=interpolation
    )
    transform = EvalTransform.from_crop_pct(
        224, crop_pct, interpolation=interpolation
    )
    expected = theirs(Image.fromarray(PHOTO)).numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(transform(PHOTO), expected)


@images
@interpolations
@sizes
def test_the_graph_agrees_with_pillow(
    image, resize_size, image_size, interpolation
):
    """Both round to whole levels after each pass.

    TensorFlow's float32 weights and Pillow's fixed-point ones part where the
    exact value lies midway between two levels. Few do: most where the ratio is
    simple, so that exact ties are common. From 256 to 232, 32:29, it is 0.8%
    of the values, elsewhere 0.25% at most.
    """
    transform = EvalTransform(
        image_size=image_size,
        resize_size=resize_size,
        interpolation=interpolation,
    )
    expected = transform.pixels(image).astype("float32")
    found = transform.pixels_in_graph(tf.constant(image))
    assert found.dtype == tf.float32
    assert found.shape == (image_size, image_size, 3)
    np.testing.assert_array_equal(found, np.round(found))
    levels = np.abs(found - expected)
    assert levels.max() <= 1
    assert np.mean(levels > 0) < 0.01


@pytest.mark.skipif(
    int(PIL.__version__.partition(".")[0]) < 13,
    reason="Pillow reduced the width first before 13.0",
)
@interpolations
@pytest.mark.parametrize("height", [150, 151, 400])
def test_the_graph_takes_the_order_of_pillow(height, interpolation):
    """In the other order, a quarter of the values are others, by up to 9."""
    transform = EvalTransform.from_crop_pct(48, interpolation=interpolation)
    image = NOISE[:, :75]
    image = np.tile(image, (-(-height // len(image)), 1, 1))[:height]
    levels = np.abs(
        transform.pixels_in_graph(tf.constant(image))
        - transform.pixels(image).astype("float32")
    )
    assert levels.max() <= 1
    assert np.mean(levels > 0) < 0.02


@interpolations
def test_long_images_are_not_resized_whole(interpolation):
    """(256, 51200000, 3) would take 39 GB, and (256, 200000, 3) 0.6 GB."""
    image = np.tile(NOISE[:, :1], (1100, 1, 1))[:200_000]
    transform = EvalTransform(
        image_size=224, resize_size=256, interpolation=interpolation
    )
    found = transform.pixels_in_graph(tf.constant(image)).numpy()
    assert found.shape == (224, 224, 3)
    wide = transform.pixels_in_graph(tf.constant(image.transpose(1, 0, 2)))
    np.testing.assert_allclose(wide, found.transpose(1, 0, 2), atol=1)
    # The middle 224 rows lie between two rows of the image.
    middle = Image.fromarray(image[99_990:100_010])
    middle = middle.resize((256, 256 * 20), RESAMPLING[interpolation])
    expected = np.asarray(middle)[2448:2672, 16:240]
    for pixels in found, transform.pixels(image).astype("float32"):
        assert np.abs(pixels - expected).max() <= 1


def test_normalising_in_the_graph():
    """Values up to 2.7 after three roundings and a division by 0.22."""
    pixels = TRANSFORM.pixels(PHOTO)
    found = TRANSFORM.normalize_in_graph(tf.constant(pixels))
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, TRANSFORM(PHOTO), atol=2e-6)


def test_other_statistics():
    transform = EvalTransform(
        image_size=8, resize_size=8, mean=(0, 0.5, 1), std=[1, 0.5, 2]
    )
    white = np.full((8, 8, 3), 255, "uint8")
    np.testing.assert_array_equal(transform(white)[0, 0], [1, 1, 0])
    found = transform.normalize_in_graph(tf.constant(white))
    np.testing.assert_allclose(found[0, 0], [1, 1, 0], atol=1e-6)


def test_kinds_of_images(tmp_path):
    """Path, bytes, file, picture and array: the same pixels."""
    content = Image.Exif()
    content[0x0112] = 6
    encoded = encode(exif=content)
    path = tmp_path / "x.jpg"
    path.write_bytes(encoded)
    expected = TRANSFORM.pixels(read_image(encoded))
    for image in (
        path,
        str(path),
        encoded,
        bytearray(encoded),
        io.BytesIO(encoded),
        Image.open(path),
        ImageOps.exif_transpose(Image.open(path)),
        decode(encoded),
    ):
        np.testing.assert_array_equal(TRANSFORM.pixels(image), expected)


@pytest.mark.parametrize(
    "image",
    [
        PHOTO.astype("float32"),
        PHOTO[None],
        PHOTO[..., :1],
        PHOTO[:0],
        [[1, 2]],
        None,
    ],
)
def test_what_is_no_array_of_pixels(image):
    with pytest.raises(ValueError, match="`image` must be uint8"):
        TRANSFORM.pixels(image)


def test_config_survives_json():
    for transform in (
        TRANSFORM,
        EvalTransform(
            image_size=np.int64(288),
            resize_size=329,
            interpolation="bicubic",
            mean=np.float32([0.5] * 3),
            std=(1, 2, 3),
        ),
    ):
        config = json.loads(json.dumps(transform.to_config()))
        assert config == transform.to_config()
        assert EvalTransform.from_config(config) == transform
        assert hash(EvalTransform.from_config(config)) == hash(transform)


def test_bad_configs():
    config = TRANSFORM.to_config()
    for bad in (
        config | {"crop": 1},
        {key: config[key] for key in list(config)[:-1]},
        {},
        None,
    ):
        with pytest.raises(ValueError, match="`config` must be a dict with"):
            EvalTransform.from_config(bad)
    with pytest.raises(ValueError, match="`image_size` must be a positive"):
        EvalTransform.from_config(config | {"image_size": "224"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "`image_size` must be a positive integer; got 0."),
        ({"image_size": True}, "`image_size` must be a positive integer"),
        ({"image_size": 2.0}, "`image_size` must be a positive integer"),
        ({"resize_size": None}, "`resize_size` must be a positive integer"),
        ({"resize_size": 7}, "`resize_size` must be `image_size` or more"),
        ({"interpolation": "nearest"}, '`interpolation` must be "bilinear" or'),
        ({"interpolation": []}, '`interpolation` must be "bilinear" or'),
        ({"mean": (0, 0)}, "`mean` must be three finite numbers; got"),
        ({"mean": 0.5}, "`mean` must be three finite numbers"),
        ({"mean": (0, 0, float("nan"))}, "`mean` must be three finite numbers"),
        ({"std": ("a", 1, 1)}, "`std` must be three finite numbers"),
        ({"std": (1, 1, float("inf"))}, "`std` must be three finite numbers"),
        ({"std": (1, 0, 1)}, "`std` must be above 0; got"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        EvalTransform(**({"image_size": 8, "resize_size": 8} | arguments))


def test_crop_pct():
    assert EvalTransform.from_crop_pct(224).resize_size == 224
    assert EvalTransform.from_crop_pct(224, 0.875).resize_size == 256
    assert EvalTransform.from_crop_pct(224, 0.95).resize_size == 235
    assert TRANSFORM.crop_pct == 0.875
    for image_size in (32, 224, 288):
        for resize_size in range(image_size, 2 * image_size):
            transform = EvalTransform.from_crop_pct(
                image_size, image_size / resize_size
            )
            assert transform.resize_size == resize_size
    for crop_pct in (0, -1, 1.01, "1", None, float("nan")):
        with pytest.raises(ValueError, match=r"`crop_pct` must be in \(0, 1\]"):
            EvalTransform.from_crop_pct(224, crop_pct)


# ---- preprocess_input


def test_pixels_for_a_model_that_normalises_them_itself():
    transform = EvalTransform.from_crop_pct(8, 0.5, mean=None, std=None)
    assert not transform.normalizes
    assert TRANSFORM.normalizes
    config = json.loads(json.dumps(transform.to_config()))
    assert (config["mean"], config["std"]) == (None, None)
    assert EvalTransform.from_config(config) == transform
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), "uint8")
    pixels = transform.pixels(image)
    for same in (
        transform(image),
        transform.normalize(pixels),
        transform.normalize_in_graph(pixels).numpy(),
    ):
        assert same.dtype == "float32"
        np.testing.assert_array_equal(same, pixels)
    others = [(None, (1, 1, 1)), ((0, 0, 0), None)]
    for mean, std in others:
        with pytest.raises(ValueError, match="must both be None, or neither"):
            EvalTransform.from_crop_pct(8, mean=mean, std=std)
    assert [
        t.normalization
        for t in (
            transform,
            TRANSFORM,
            EvalTransform.from_crop_pct(8, mean=(0, 0, 0), std=(1, 1, 1)),
        )
    ] == ["none", "imagenet", "mean (0.0, 0.0, 0.0), std (1.0, 1.0, 1.0)"]


def test_preprocessing_is_that_of_keras_applications():
    image = NOISE.astype("float32")
    expected = keras.applications.imagenet_utils.preprocess_input(
        image.copy(), mode="torch"
    )
    found = transforms.preprocess_input(image)
    assert isinstance(found, np.ndarray)
    assert found.dtype == "float32"
    # Values up to 2.7, a handful of float32 roundings each.
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_array_equal(image, NOISE)
    np.testing.assert_allclose(found, TRANSFORM.normalize(NOISE), atol=2e-6)
    found = transforms.preprocess_input(tf.constant(NOISE))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    first = transforms.preprocess_input(
        NOISE.transpose(2, 0, 1).tolist(), data_format="channels_first"
    )
    np.testing.assert_allclose(first.transpose(1, 2, 0), expected, atol=2e-6)


def test_bad_preprocessing_arguments():
    with pytest.raises(ValueError, match="`x` must have three channels"):
        transforms.preprocess_input(NOISE[..., :1])
    with pytest.raises(ValueError, match="`data_format` must be None"):
        transforms.preprocess_input(NOISE, data_format="NHWC")
