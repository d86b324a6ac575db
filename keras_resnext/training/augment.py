"""Random changes to training images, each a function of image and seed."""

import tensorflow as tf


def pad_and_crop(image, padding, seed):
    """Put black pixels around an image and crop it back at random.

    Args:
        image: Tensor `(height, width, channels)`.
        padding: Pixels on each side.
        seed: Tensor of two integers; the same seed, the same crop.

    Returns:
        Tensor of the shape of `image`.

    Example:

    >>> pad_and_crop(tf.ones((32, 32, 3)), 4, seed=(0, 1)).shape
    TensorShape([32, 32, 3])

    Reference:
        arXiv 1611.05431, section 5.3.
    """
    around = ((padding, padding), (padding, padding), (0, 0))
    return tf.image.stateless_random_crop(
        tf.pad(image, around), tf.shape(image), seed
    )


def flip(image, seed):
    """Mirror an image left to right, or not, with equal chances.

    Args:
        image: Tensor `(height, width, channels)`.
        seed: Tensor of two integers; the same seed, the same choice.

    Returns:
        Tensor of the shape of `image`.

    Example:

    >>> flip(tf.ones((32, 32, 3)), seed=(0, 1)).shape
    TensorShape([32, 32, 3])
    """
    return tf.image.stateless_random_flip_left_right(image, seed)
