"""Decoding, beside Pillow's."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.datasets import load_sample_images

from keras_resnext.images import decode

JPEG = ("JPEG", {"quality": 75})
FINE = ("JPEG", {"quality": 95, "subsampling": 0})
PROGRESSIVE = ("JPEG", {"progressive": True})


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        *(("RGB", *rest) for rest in (JPEG, FINE, PROGRESSIVE)),
        *(("RGB", kind, {}) for kind in ("PNG", "BMP")),
        # A gray BMP has a palette, which TensorFlow refuses.
        *(("L", *rest) for rest in (JPEG, FINE, PROGRESSIVE, ("PNG", {}))),
    ],
)
@pytest.mark.parametrize("in_graph", [False, True])
def test_pixels_are_pillows(mode, kind, options, in_graph):
    for photo in load_sample_images().images:
        file = io.BytesIO()
        photo = Image.fromarray(photo[:101, :75]).convert(mode)
        photo.save(file, kind, **options)
        expected = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
        read = tf.function(decode) if in_graph else decode
        found = read(tf.constant(file.getvalue()))
        assert found.dtype == tf.uint8
        np.testing.assert_array_equal(found, np.asarray(expected))


def test_a_gif_is_its_first_picture():
    frames = [Image.new("RGB", (5, 4), color) for color in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    found = decode(tf.constant(file.getvalue()))
    np.testing.assert_array_equal(found, np.full((4, 5, 3), [255, 0, 0]))


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0half"])
def test_what_is_no_image(content):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(tf.constant(content))
