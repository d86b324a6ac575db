"""Pixels in, names out."""

import keras
import numpy as np
import pytest
from PIL import Image

import keras_resnext
from keras_resnext.preprocessing import read_image
from keras_resnext.preprocessing import read_photo
from keras_resnext.preprocessing import resize_and_crop


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3))
    return pixels.astype("uint8")


def test_preprocessing_is_that_of_keras_applications(image):
    expected = keras.applications.imagenet_utils.preprocess_input(
        image.astype("float32"), mode="torch"
    )
    before = image.copy()
    found = keras_resnext.preprocess_input(image)
    assert isinstance(found, np.ndarray)
    assert found.dtype == "float32"
    # Values up to 2.7, a handful of float32 roundings each.
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(
        keras_resnext.preprocess_input(image.tolist()), found
    )

    tensor = keras_resnext.preprocess_input(keras.ops.convert_to_tensor(image))
    np.testing.assert_allclose(tensor, expected, atol=2e-6)
    first = keras_resnext.preprocess_input(
        image.transpose(0, 3, 1, 2), data_format="channels_first"
    )
    np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), found)


def test_float_arrays_are_left_alone(image):
    floats = image.astype("float32")
    keras_resnext.preprocess_input(floats)
    np.testing.assert_array_equal(floats, image)


def test_bad_preprocessing_arguments(image):
    with pytest.raises(ValueError, match="`x` must have three channels"):
        keras_resnext.preprocess_input(image[..., :1])
    with pytest.raises(ValueError, match="`data_format` must be None"):
        keras_resnext.preprocess_input(image, data_format="NHWC")


def test_predictions_are_named_in_order():
    scores = np.zeros((2, 1000))
    scores[0, [1, 985]] = 0.2, 0.7
    scores[1, 999] = 1
    named = keras_resnext.decode_predictions(scores, top=2)
    assert named[0] == [
        ("n11939491", "daisy", 0.7),
        ("n01443537", "goldfish", 0.2),
    ]
    assert named[1][0] == ("n15075141", "toilet tissue", 1.0)
    assert len(keras_resnext.decode_predictions(scores)[0]) == 5
    with pytest.raises(
        ValueError, match=r"shape \(batch, 1000\).*got \(2, 9\)"
    ):
        keras_resnext.decode_predictions(scores[:, :9])
    with pytest.raises(
        ValueError, match="`top` must be from 1 to 1000; got -1"
    ):
        keras_resnext.decode_predictions(scores, top=-1)
    counts = (scores * 10).astype("uint8")
    assert keras_resnext.decode_predictions(counts, top=1)[0][0][1] == "daisy"


def test_crop_is_the_centred_square():
    """A gradient from left to right keeps its middle third."""
    wide = np.tile(np.arange(30.0)[None, :, None], (10, 1, 3))
    found = np.asarray(resize_and_crop(wide, 10))
    np.testing.assert_allclose(found, wide[:, 10:20], atol=1e-5)
    tall = wide.transpose(1, 0, 2)
    found = np.asarray(resize_and_crop(tall, 10))
    np.testing.assert_allclose(found, tall[10:20], atol=1e-5)


def test_reducing_does_not_alias():
    """Stripes one pixel wide become grey, wherever they start."""
    stripes = np.tile((np.arange(64) % 2 * 255.0)[None, :, None], (64, 1, 3))
    found = np.asarray(resize_and_crop(stripes, 16))[:, 1:-1]
    np.testing.assert_allclose(found, 127.5, atol=1e-3)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_files_are_read_as_rgb(tmp_path, mode):
    noise = np.random.default_rng(0).integers(0, 256, (12, 20, 3))
    picture = Image.fromarray(noise.astype("uint8")).convert(mode)
    picture.save(tmp_path / "x.png")
    expected = np.asarray(picture.convert("RGB"), "float32")[:, 4:16]
    found = read_image(tmp_path / "x.png", 12)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_photos_are_turned_upright(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 3))
    picture = Image.fromarray(noise.astype("uint8"))
    exif = picture.getexif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees to the right
    picture.save(tmp_path / "x.png", exif=exif)
    found = read_image(tmp_path / "x.png", 12)
    np.testing.assert_allclose(found, np.rot90(noise, -1), atol=1e-3)


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "x.png").write_text("hello")
    for name in ("x.png", "none.png"):
        with pytest.raises(ValueError, match=f"must be an image file.*{name}"):
            read_image(tmp_path / name, 8)


def test_photos_of_16_bits_and_damaged_ones(tmp_path):
    ramp = np.arange(0, 65536, 64, dtype="uint16").reshape(32, 32)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    photo = read_photo(tmp_path / "x.png")
    np.testing.assert_array_equal(photo, (ramp >> 8)[..., None].repeat(3, -1))
    whole = (tmp_path / "x.png").read_bytes()
    damaged = whole.replace(b"IDAT", b"IxAT").replace(b"IEND", b"IxND")
    (tmp_path / "y.png").write_bytes(damaged)
    with pytest.raises(ValueError, match="must be an image file; .*y.png"):
        read_photo(tmp_path / "y.png")
