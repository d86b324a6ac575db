"""Drawn images to verify files on where no others are given."""

import numpy as np

_COUNT = 8


def drawn_images(shape: tuple[int, int, int]) -> np.ndarray:
    """Gradients, stripes and discs of varied colour and contrast.

    Networks answer each of them differently, as they do photographs, so that a
    file that normalises twice, or not at all, is told from a right one; the
    README of this package compares them with noise.

    Args:
        shape: `(height, width, channels)` of an image.

    Returns:
        float32 array `(8, height, width, channels)` of whole numbers in
        [0, 255], always the same.

    Example:

    >>> drawn_images((224, 224, 3)).shape
    (8, 224, 224, 3)
    """
    rng = np.random.default_rng(0)
    return np.stack([_draw(i, shape, rng) for i in range(_COUNT)])


def _draw(number, shape, rng):
    """One image: a pattern between two random colours."""
    height, width, channels = shape
    y, x = np.meshgrid(
        np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij"
    )
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(angle) * x + np.sin(angle) * y
    ramp = (ramp - ramp.min()) / max(np.ptp(ramp), 1e-6)
    centre_x, centre_y = rng.uniform(0.3, 0.7, 2)
    disc = np.hypot(x - centre_x, y - centre_y) < rng.uniform(0.15, 0.4)
    stripes = np.sin(2 * np.pi * rng.uniform(2, 6) * ramp) > 0
    patterns = ramp, stripes, disc, np.where(disc, 1 - ramp, stripes * ramp)
    one, other = rng.uniform(0, 255, (2, channels))
    share = np.asarray(patterns[number % len(patterns)], "float32")[..., None]
    return np.round(one + (other - one) * share).astype("float32")
