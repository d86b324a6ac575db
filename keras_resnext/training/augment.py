"""Data augmentation: functions of an image and a seed.

Images are pixels in [0, 255], float32 unless noted. A seed is a tensor of two
integers; the same seed gives the same result.
"""

import functools
import math

import tensorflow as tf

# Luma weights of red, green and blue (ITU-R 601), as in Pillow.
_GRAY = (0.299, 0.587, 0.114)
_MEAN = (124, 116, 104)  # ImageNet's mean colour
# Eigenvalues and eigenvectors of ImageNet's colours in [0, 1]: Krizhevsky et
# al. 2012, section 4.1, with the values of fb.resnet.torch.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def pad_and_crop(image, padding, seed):
    """Pad an image with black and crop it back at a random position.

    Args:
        image: Tensor `(height, width, channels)`.
        padding: Pixels on each side.
        seed: Tensor of two integers.

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


def random_window(shape, smallest_area, seed):
    """The window of a random resized crop, of aspect ratio 3:4 to 4:3.

    Args:
        shape: Tensor of an image's height, width and channels.
        smallest_area: Smallest fraction of the image's area.
        seed: Tensor of two integers.

    Returns:
        int32 tensor `(top, left, height, width)`.

    Example:

    >>> random_window((375, 500, 3), 0.08, seed=(0, 1)).shape
    TensorShape([4])

    Reference:
        Szegedy et al., arXiv 1409.4842, section 6, as in torchvision: ten
        attempts with a uniform area and a log-uniform aspect ratio, then the
        largest window in the centre.
    """
    area_seed, aspect_seed, place_seed = _split(seed, 3)
    bounds = tf.cast(shape[:2], tf.float32)
    height, width = tf.unstack(bounds)
    low, high = math.log(3 / 4), math.log(4 / 3)
    area = tf.random.stateless_uniform((10,), area_seed, smallest_area, 1.0)
    area *= height * width
    aspect = tf.random.stateless_uniform((10,), aspect_seed, low, high)
    sides = tf.stack([tf.exp(-aspect), tf.exp(aspect)], axis=1)
    sides = tf.round(tf.sqrt(area[:, None] * sides))
    fits = tf.reduce_all((sides > 0) & (sides <= bounds), axis=1)
    largest = tf.round(tf.minimum(bounds, 4 / 3 * tf.stack([width, height])))
    found = tf.reduce_any(fits)
    size = tf.where(found, sides[tf.argmax(fits)], largest)
    place = tf.random.stateless_uniform((2,), place_seed)
    begin = tf.floor(
        tf.where(found, place * (bounds - size + 1), (bounds - size) / 2)
    )
    return tf.cast(tf.concat([begin, size], axis=0), tf.int32)


def flip(image, seed):
    """Flip an image horizontally with probability 1/2.

    Args:
        image: Tensor `(height, width, channels)`.
        seed: Tensor of two integers.

    Returns:
        Tensor of the shape of `image`.

    Example:

    >>> flip(tf.ones((32, 32, 3)), seed=(0, 1)).shape
    TensorShape([32, 32, 3])
    """
    return tf.image.stateless_random_flip_left_right(image, seed)


def color_jitter(image, strength, seed):
    """Vary brightness, contrast and saturation, in random order.

    Args:
        image: Tensor `(height, width, 3)`.
        strength: Largest relative change.
        seed: Tensor of two integers.

    Returns:
        Tensor of the shape of `image`.

    Example:

    >>> color_jitter(tf.ones((32, 32, 3)), 0.4, seed=(0, 1)).shape
    TensorShape([32, 32, 3])

    Reference:
        fb.resnet.torch, `datasets/transforms.lua`, which
        facebookresearch/ResNeXt uses.
    """
    factor_seed, order_seed = _split(seed, 2)
    low, high = max(0.0, 1 - strength), 1 + strength
    factors = tf.random.stateless_uniform((3,), factor_seed, low, high)
    order = tf.random.experimental.stateless_shuffle(tf.range(3), order_seed)
    for i in range(3):
        factor = factors[i]
        image = tf.switch_case(
            order[i],
            [
                functools.partial(change, image, factor)
                for change in (_brightness, _contrast, _saturation)
            ],
        )
    return image


def lighting(image, deviation, seed):
    """Add noise along the principal components of ImageNet's colours.

    Args:
        image: Tensor `(height, width, 3)`.
        deviation: Standard deviation of the noise, times the eigenvalues.
        seed: Tensor of two integers.

    Returns:
        Tensor of the shape of `image`.

    Example:

    >>> lighting(tf.ones((32, 32, 3)), 0.1, seed=(0, 1)).shape
    TensorShape([32, 32, 3])

    Reference:
        Krizhevsky et al. 2012, section 4.1.
    """
    alpha = tf.random.stateless_normal((3,), seed, stddev=deviation)
    shift = tf.linalg.matvec(_EIGENVECTORS, alpha * _EIGENVALUES)
    return image + 255 * shift


def erase(image, probability, seed):
    """Random erasing: fill a rectangle with ImageNet's mean colour.

    Args:
        image: Tensor `(height, width, 3)`.
        probability: Probability of doing so.
        seed: Tensor of two integers.

    Returns:
        Tensor of the shape of `image`.

    Example:

    >>> erase(tf.ones((32, 32, 3)), 0.1, seed=(0, 1)).shape
    TensorShape([32, 32, 3])

    Reference:
        Zhong et al., arXiv 1708.04896, with torchvision's ranges: 2 to 33 %
        of the area, aspect ratios of 0.3 to 3.3.
    """
    attempts = 10
    chance, area_seed, ratio_seed, place_seed = _split(seed, 4)
    height, width = image.shape[:2]
    area = tf.random.stateless_uniform((attempts,), area_seed, 0.02, 0.33)
    ratio = tf.exp(
        tf.random.stateless_uniform(
            (attempts,), ratio_seed, math.log(0.3), math.log(3.3)
        )
    )
    sides = tf.round(
        tf.sqrt(
            height * width * area[:, None] * tf.stack([ratio, 1 / ratio], 1)
        )
    )
    fits = tf.reduce_all(sides < (height, width), axis=1)
    rows, columns = tf.unstack(sides[tf.argmax(fits)])
    top, left = tf.unstack(tf.random.stateless_uniform((2,), place_seed))
    top = tf.floor(top * (height - rows + 1))
    left = tf.floor(left * (width - columns + 1))
    y = tf.range(height, dtype=tf.float32)[:, None]
    x = tf.range(width, dtype=tf.float32)[None, :]
    inside = (y >= top) & (y < top + rows) & (x >= left) & (x < left + columns)
    happens = tf.random.stateless_uniform((), chance) < probability
    inside &= happens & tf.reduce_any(fits)
    return tf.where(inside[..., None], tf.cast(_MEAN, image.dtype), image)


def make_mix(mixup, cutmix):
    """Build mixup and CutMix, which blend each image with another one.

    All images of a batch keep the same share, drawn from a beta distribution.
    A rectangle of CutMix is clipped where it passes the border, and the share
    of the label is that of the pixels.

    Args:
        mixup: Alpha of mixup, or 0.
        cutmix: Alpha of CutMix, or 0. With both, each batch gets one of them
            with equal probability.

    Returns:
        A function from images `(batch, height, width, channels)`,
        probabilities, float32 `(batch, classes)`, and a seed to images,
        float32, and probabilities of the same shapes.

    Example:

    >>> images, labels = make_mix(0.2, 1.0)(images, labels, seed=(0, 1))

    Reference:
        arXiv 1710.09412 (mixup), arXiv 1905.04899 (CutMix), with the partners
        of torchvision: the image before, and for the first one the last.
    """
    kinds = [(_mixup, mixup)] * bool(mixup) + [(_cutmix, cutmix)] * bool(cutmix)

    def mix(images, labels, seed):
        choice, seed = _split(seed, 2)
        which = tf.random.stateless_uniform((), choice, 0, len(kinds), tf.int32)
        branches = [
            functools.partial(kind, tf.cast(images, tf.float32), alpha, seed)
            for kind, alpha in kinds
        ]
        images, kept = tf.switch_case(which, branches)
        return images, _blend_with_previous(labels, kept)

    return mix


def _mixup(images, alpha, seed):
    """Blended images, and the share that each keeps of itself."""
    kept = _beta(alpha, seed)
    return _blend_with_previous(images, kept), kept


def _cutmix(images, alpha, seed):
    """Images with a rectangle of another one, and the share they keep."""
    share_seed, place_seed = _split(seed, 2)
    size = tf.cast(tf.shape(images)[1:3], tf.float32)
    half = tf.floor(tf.sqrt(1 - _beta(alpha, share_seed)) / 2 * size)
    center = tf.floor(tf.random.stateless_uniform((2,), place_seed) * size)
    top, left = tf.unstack(tf.maximum(center - half, 0))
    bottom, right = tf.unstack(tf.minimum(center + half, size))
    height, width = tf.unstack(size)
    y, x = tf.range(height)[:, None], tf.range(width)[None, :]
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    kept = 1 - (bottom - top) * (right - left) / (height * width)
    previous = tf.roll(images, 1, axis=0)
    return tf.where(inside[..., None], previous, images), kept


def _blend_with_previous(batch, kept):
    return kept * batch + (1 - kept) * tf.roll(batch, 1, axis=0)


def _beta(alpha, seed):
    """One number from the beta distribution with both parameters alpha."""
    # In float64: for a small alpha, float32 would round both gammas to 0.
    one, other = tf.unstack(
        tf.random.stateless_gamma((2,), seed, alpha, dtype=tf.float64)
    )
    return tf.cast(one / (one + other), tf.float32)


def trivial_augment(image, seed):
    """TrivialAugmentWide: one of fourteen operations at random strength.

    Args:
        image: Tensor `(height, width, 3)`.
        seed: Tensor of two integers.

    Returns:
        Tensor of the shape of `image`, of whole numbers.

    Example:

    >>> trivial_augment(tf.ones((32, 32, 3)), seed=(0, 1)).shape
    TensorShape([32, 32, 3])

    Reference:
        Müller and Hutter, arXiv 2103.10158, wide ranges, in torchvision's 31
        steps.
    """
    which_seed, step_seed, sign_seed = _split(seed, 3)
    which = tf.random.stateless_uniform(
        (), which_seed, 0, len(OPERATIONS), tf.int32
    )
    step = tf.random.stateless_uniform((), step_seed, 0, 31, tf.int32)
    sign = tf.random.stateless_uniform((), sign_seed, 0, 2, tf.int32) * 2 - 1
    share, sign = tf.cast(step / 30, tf.float32), tf.cast(sign, tf.float32)
    image = tf.round(image)
    changes = [
        functools.partial(change, image, share, sign)
        for change in OPERATIONS.values()
    ]
    return tf.clip_by_value(tf.switch_case(which, changes), 0, 255)


def _split(seed, parts):
    return tf.unstack(tf.random.experimental.stateless_split(seed, parts))


def _gray(image):
    return tf.linalg.matvec(image, _GRAY)[..., None]


def _blend(image, other, factor):
    return tf.clip_by_value(other + factor * (image - other), 0, 255)


def _brightness(image, factor):
    return _blend(image, tf.zeros_like(image), factor)


def _contrast(image, factor):
    return _blend(image, tf.reduce_mean(_gray(image)), factor)


def _saturation(image, factor):
    return _blend(image, _gray(image), factor)


def _sharpness(image, factor):
    # Pillow's smoothing filter, which leaves the border unchanged.
    weights = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32) / 13
    kernel = tf.tile(weights[..., None, None], (1, 1, 3, 1))
    smooth = tf.nn.depthwise_conv2d(image[None], kernel, (1, 1, 1, 1), "VALID")
    height, width = image.shape[:2]
    inner = tf.pad(tf.ones((height - 2, width - 2, 1), tf.bool), _BORDER)
    smooth = tf.where(inner, tf.pad(tf.round(smooth[0]), _BORDER), image)
    return _blend(image, smooth, factor)


_BORDER = ((1, 1), (1, 1), (0, 0))


def _enhance(change, image, share, sign):
    return tf.floor(change(image, 1 + 0.99 * share * sign))


def _warp(image, matrix):
    """Apply an affine map from output to input: nearest pixel, else black."""
    transform = tf.concat([tf.reshape(matrix, [-1]), [0.0, 0.0]], 0)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=transform[None],
        output_shape=tf.shape(image)[:2],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0]


def _affine(image, matrix, center=(0.0, 0.0)):
    """Apply a linear map around a point, from output to input."""
    # Coordinates are those of pixel centres, half a pixel from the corner.
    about = tf.constant(center) - 0.5
    offset = about - tf.linalg.matvec(matrix, about)
    return _warp(image, tf.concat([matrix, offset[:, None]], axis=1))


def _shear_x(image, share, sign):
    return _affine(image, _matrix(1.0, 0.99 * share * sign, 0.0, 1.0))


def _shear_y(image, share, sign):
    return _affine(image, _matrix(1.0, 0.0, 0.99 * share * sign, 1.0))


def _translate_x(image, share, sign):
    shift = tf.cast(tf.cast(32 * share * sign, tf.int32), tf.float32)
    return _warp(image, tf.reshape([1.0, 0.0, -shift, 0.0, 1.0, 0.0], (2, 3)))


def _translate_y(image, share, sign):
    shift = tf.cast(tf.cast(32 * share * sign, tf.int32), tf.float32)
    return _warp(image, tf.reshape([1.0, 0.0, 0.0, 0.0, 1.0, -shift], (2, 3)))


def _rotate(image, share, sign):
    angle = math.radians(135) * share * sign
    cos, sin = tf.cos(angle), tf.sin(angle)
    height, width = image.shape[:2]
    return _affine(image, _matrix(cos, -sin, sin, cos), (width / 2, height / 2))


def _matrix(*values):
    return tf.reshape(
        tf.stack([tf.cast(v, tf.float32) for v in values]), (2, 2)
    )


def _posterize(image, share, sign):
    bits = 8 - tf.round(6 * share)
    size = tf.pow(2.0, 8 - bits)
    return tf.floor(image / size) * size


def _solarize(image, share, sign):
    return tf.where(image >= 255 * (1 - share), 255 - image, image)


def _auto_contrast(image, share, sign):
    low = tf.reduce_min(image, axis=(0, 1))
    high = tf.reduce_max(image, axis=(0, 1))
    stretched = tf.floor((image - low) * 255 / tf.maximum(high - low, 1))
    return tf.where(high > low, stretched, image)


def _equalize(image, share, sign):
    """Equalise the histogram of each channel, as Pillow does."""
    pixels = tf.cast(image, tf.int32)

    def table(channel):
        counts = tf.math.bincount(channel, minlength=256, maxlength=256)
        last = counts[tf.reduce_max(channel)]
        step = (tf.size(channel) - last) // 255
        below = tf.cumsum(counts, exclusive=True)
        levels = (below + step // 2) // tf.maximum(step, 1)
        return tf.where(step > 0, tf.minimum(levels, 255), tf.range(256))

    channels = [
        tf.gather(table(tf.reshape(channel, [-1])), channel)
        for channel in tf.unstack(pixels, axis=-1)
    ]
    return tf.cast(tf.stack(channels, axis=-1), tf.float32)


# Functions of image, strength in [0, 1], and sign (-1 or 1).
OPERATIONS = {
    "Identity": lambda image, share, sign: image,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
    "Brightness": functools.partial(_enhance, _brightness),
    "Color": functools.partial(_enhance, _saturation),
    "Contrast": functools.partial(_enhance, _contrast),
    "Sharpness": functools.partial(_enhance, _sharpness),
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
}
