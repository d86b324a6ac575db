"""From image files to a network's input: one rule, in Pillow and TensorFlow.

`EvalTransform` is the rule. `read_image` and `decode` read the same pixels
from a file, the one with Pillow, the other inside a TensorFlow graph; both
turn them upright as the file's EXIF orientation says.
"""

import dataclasses
import io
import math
import numbers
import operator
import os
import struct
from typing import Any

import numpy as np

from keras_resnext.exif import exif_orientation
from keras_resnext.exif import read_orientation
from keras_resnext.exif import turn
from keras_resnext.exif import upright
from keras_resnext.imagenet import MEAN
from keras_resnext.imagenet import STD

# Of the files that both `read_image` and `decode` read.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp")

# The decoding that Pillow and torchvision use. TensorFlow's default saves a
# twentieth of the time and is off by up to 16 levels.
JPEG_METHOD = "INTEGER_ACCURATE"

# A WebP file with alpha: the flags of the extended format, or the header of
# the simple lossless one. TensorFlow decodes these to four channels only.
_WEBP_WITH_ALPHA = (
    r"RIFF\C{4}WEBP"
    r"(VP8X\C{4}[\x10-\x1f\x30-\x3f]|VP8L\C{4}/\C{3}[\x10-\x1f])\C*"
)

# A BMP file of one byte a pixel, not compressed. TensorFlow returns the bytes,
# whatever colours its palette gives them.
_BMP_WITH_PALETTE = r"BM\C{26}\x08\x00\x00{4}\C*"

# TensorFlow's names of Pillow's filters; "keyscubic" has the same a = -0.5.
_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """The transform of images for evaluation and prediction.

    The shorter side is resized to `resize_size`, the centre cropped to
    `image_size`, and the pixels normalised: what torchvision and timm do when
    they evaluate. Called with an image it gives the network's input, equal to
    theirs bit for bit; `pixels_in_graph` and `normalize_in_graph` do the same
    in TensorFlow, to within one level of 255 in a few pixels of a thousand.

    Args:
        image_size: Side of the square that the network sees, in pixels.
        resize_size: Length of the shorter side before the crop, in pixels; at
            least `image_size`.
        interpolation: `"bilinear"` or `"bicubic"`, both antialiased. Defaults
            to `"bilinear"`.
        mean: Subtracted from pixels in [0, 1], one number for each channel.
            `None`, as `std`, leaves pixels in [0, 255] for a model that
            normalises them itself. Defaults to ImageNet's.
        std: Divisors of the result, one for each channel, or `None` as
            `mean`. Defaults to ImageNet's.

    Raises:
        ValueError: if an argument is not as described.

    Example:

    >>> transform = EvalTransform(image_size=224, resize_size=256)
    >>> transform("photo.jpg").shape
    (224, 224, 3)

    References:
        torchvision 0.28.0, `transforms/functional.py`, `resize` and
        `center_crop`; timm 1.0.31, `data/transforms_factory.py`,
        `transforms_imagenet_eval`.
    """

    image_size: int
    resize_size: int
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] | None = MEAN
    std: tuple[float, float, float] | None = STD

    def __post_init__(self):
        for name in ("image_size", "resize_size"):
            self._set(name, _positive_integer(name, getattr(self, name)))
        if self.resize_size < self.image_size:
            raise ValueError(
                "`resize_size` must be `image_size` or more, "
                f"{self.image_size}; got {self.resize_size}."
            )
        if self.interpolation not in tuple(_KERNELS):
            raise ValueError(
                '`interpolation` must be "bilinear" or "bicubic"; got '
                f"{self.interpolation!r}."
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError(
                "`mean` and `std` must both be None, or neither; got "
                f"{self.mean!r} and {self.std!r}."
            )
        if not self.normalizes:
            return
        for name in ("mean", "std"):
            self._set(name, _three_numbers(name, getattr(self, name)))
        if min(self.std) <= 0:
            raise ValueError(f"`std` must be above 0; got {self.std}.")

    def _set(self, name, value):
        """Replace an argument by its checked form."""
        object.__setattr__(self, name, value)

    @classmethod
    def from_crop_pct(
        cls, image_size: int, crop_pct: float = 1.0, **others: Any
    ) -> "EvalTransform":
        """The transform with timm's `crop_pct`.

        Args:
            image_size: Side of the square that the network sees, in pixels.
            crop_pct: Share of the shorter side that the square has, in
                (0, 1]. Defaults to 1, the largest square.
            **others: `interpolation`, `mean` and `std`.

        Returns:
            The transform, with `resize_size = floor(image_size / crop_pct)`.

        Raises:
            ValueError: if an argument is not as described.

        Example:

        >>> EvalTransform.from_crop_pct(224, 0.875).resize_size
        256
        """
        image_size = _positive_integer("image_size", image_size)
        is_number = isinstance(crop_pct, numbers.Real)
        if not is_number or not 0 < crop_pct <= 1:
            raise ValueError(f"`crop_pct` must be in (0, 1]; got {crop_pct!r}.")
        # 224 / (224 / 232) is 231.99999999999997 in floating point.
        resize_size = math.floor(image_size / crop_pct + 1e-9)
        return cls(image_size=image_size, resize_size=resize_size, **others)

    @property
    def crop_pct(self) -> float:
        """Share of the resized shorter side that the crop has, in (0, 1]."""
        return self.image_size / self.resize_size

    @property
    def normalizes(self) -> bool:
        """Whether there is a `mean` and a `std`; if not, pixels stay."""
        return self.mean is not None

    @property
    def normalization(self) -> str:
        """`mean` and `std` in words: "imagenet", "none" or their values."""
        if not self.normalizes:
            return "none"
        if (self.mean, self.std) == (MEAN, STD):
            return "imagenet"
        return f"mean {self.mean}, std {self.std}"

    def to_config(self) -> dict[str, Any]:
        """The arguments as plain values that JSON can hold.

        Returns:
            A dict that `from_config` takes.

        Example:

        >>> EvalTransform(image_size=224, resize_size=256).to_config()["mean"]
        [0.485, 0.456, 0.406]
        """
        config = dataclasses.asdict(self)
        if self.normalizes:
            config |= {"mean": list(self.mean), "std": list(self.std)}
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "EvalTransform":
        """The transform that `to_config` described.

        Args:
            config: All five arguments, by name.

        Returns:
            The transform.

        Raises:
            ValueError: if one is missing, unknown or not as described.

        Example:

        >>> EvalTransform.from_config(transform.to_config()) == transform
        True
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(config, dict) or set(config) != set(names):
            keys = list(config) if isinstance(config, dict) else config
            raise ValueError(
                f"`config` must be a dict with the keys {names}; got {keys!r}."
            )
        return cls(**config)

    def __call__(self, image: Any) -> np.ndarray:
        """An image as the network's input.

        Args:
            image: See `pixels`.

        Returns:
            float32 array `(image_size, image_size, 3)`.

        Raises:
            ValueError: see `pixels`.

        Example:

        >>> batch = np.stack([transform(path) for path in paths])
        """
        return self.normalize(self.pixels(image))

    def pixels(self, image: Any) -> np.ndarray:
        """An image resized and cropped, with Pillow.

        Args:
            image: uint8 array `(height, width, 3)` of RGB, a Pillow image, or
                what `read_image` takes. All but arrays are turned upright.

        Returns:
            uint8 array `(image_size, image_size, 3)` of RGB.

        Raises:
            ValueError: if `image` is none of these or cannot be read.

        Example:

        >>> transform.pixels("photo.jpg").dtype
        dtype('uint8')
        """
        from PIL import Image

        picture = _as_picture(image)
        width, height = picture.size
        # The longer side is rounded down, the crop's corner to the nearest.
        if width <= height:
            size = (self.resize_size, int(self.resize_size * height / width))
        else:
            size = (int(self.resize_size * width / height), self.resize_size)
        if size != picture.size:
            resampling = Image.Resampling[self.interpolation.upper()]
            picture = picture.resize(size, resampling)
        left, top = (round((side - self.image_size) / 2) for side in size)
        right, bottom = left + self.image_size, top + self.image_size
        return np.array(picture.crop((left, top, right, bottom)))

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels as the network's input: `(pixels / 255 - mean) / std`.

        Without mean and std they stay as they are.

        Args:
            pixels: Array `(..., 3)` of RGB in [0, 255], any dtype.

        Returns:
            float32 array of the same shape.

        Example:

        >>> transform.normalize(np.full((1, 1, 3), 255))
        array([[[2.2489083, 2.4285715, 2.64     ]]], dtype=float32)
        """
        pixels = np.asarray(pixels, "float32")
        if not self.normalizes:
            return pixels
        pixels = pixels / np.float32(255)
        return (pixels - np.float32(self.mean)) / np.float32(self.std)

    def pixels_in_graph(self, image: Any) -> Any:
        """An image resized and cropped, with TensorFlow's operations.

        The two passes of Pillow's resize, each rounded to whole levels. What
        is left of a difference is float32 weights in place of Pillow's fixed
        point: one level, where the exact value lies midway between two.

        Args:
            image: uint8 tensor `(height, width, 3)` of RGB.

        Returns:
            float32 tensor `(image_size, image_size, 3)` of whole numbers in
            [0, 255].

        Example:

        >>> transform.pixels_in_graph(decode(encoded)).shape
        TensorShape([224, 224, 3])
        """
        import tensorflow as tf

        image = tf.convert_to_tensor(image, tf.uint8)
        sides = tf.shape(image)[:2]
        sides = self.resize_size * sides // tf.reduce_min(sides)
        for axis in (1, 0):  # the width first, as Pillow does
            image = self._resize_axis(image, axis, sides[axis])
        return tf.ensure_shape(image, (self.image_size, self.image_size, 3))

    def _resize_axis(self, image, axis, side):
        """The middle of one axis resized to `side`, in whole levels."""
        import tensorflow as tf

        corner = tf.round((side - self.image_size) / 2)
        sides = tf.shape(image)[:2]
        scale = tf.cast(side, tf.float32) / tf.cast(sides[axis], tf.float32)
        chosen = tf.range(2) == axis
        # The operation behind `tf.image.resize`, which has no offset: what
        # the crop leaves out is never made, however long the image is.
        resized = tf.raw_ops.ScaleAndTranslate(
            images=image[None],
            size=tf.where(chosen, self.image_size, sides),
            scale=tf.where(chosen, scale, 1.0),
            translation=tf.where(chosen, -tf.cast(corner, tf.float32), 0.0),
            kernel_type=_KERNELS[self.interpolation],
            antialias=True,
        )[0]
        # Pillow rounds halves up; bicubic overshoots.
        return tf.clip_by_value(tf.floor(resized + 0.5), 0, 255)

    def normalize_in_graph(self, pixels: Any) -> Any:
        """What `normalize` does, with TensorFlow's operations.

        Args:
            pixels: Tensor `(..., 3)` of RGB in [0, 255], any dtype.

        Returns:
            float32 tensor of the same shape.

        Example:

        >>> inputs = transform.normalize_in_graph(tf.stack(images))
        """
        import tensorflow as tf

        pixels = tf.cast(pixels, tf.float32)
        if not self.normalizes:
            return pixels
        return (pixels / 255 - tf.constant(self.mean)) / tf.constant(self.std)


def preprocess_input(x: Any, data_format: str | None = None) -> Any:
    """Normalise RGB pixels as the networks expect.

    `(x / 255 - mean) / std`, with ImageNet's mean and standard deviation of
    each channel. `x` itself is not changed.

    Args:
        x: Array or tensor of pixels in [0, 255], any dtype, of shape
            `(..., height, width, 3)`, or `(..., 3, height, width)` with
            `"channels_first"`.
        data_format: `"channels_last"`, `"channels_first"`, or `None` for
            `keras.config.image_data_format()`. Defaults to `None`.

    Returns:
        float32 of the same shape: an array for an array, a tensor for a
        tensor.

    Raises:
        ValueError: if `data_format` is none of these or `x` does not have
            three channels.

    Example:

    >>> keras_resnext.preprocess_input(np.full((1, 1, 3), 255))
    array([[[2.2489083, 2.4285715, 2.64     ]]], dtype=float32)
    """
    import keras

    data_format = data_format or keras.config.image_data_format()
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            '`data_format` must be None, "channels_last" or '
            f'"channels_first"; got {data_format!r}.'
        )
    if not hasattr(x, "shape"):  # a list, or a Pillow image
        x = np.asarray(x)
    axis = -1 if data_format == "channels_last" else -3
    if len(x.shape) < 3 or x.shape[axis] != 3:
        raise ValueError(
            f"`x` must have three channels in axis {axis} "
            f"({data_format}); got shape {tuple(x.shape)}."
        )
    mean = 255 * np.array(MEAN, "float32")
    std = 255 * np.array(STD, "float32")
    if axis == -3:
        mean, std = mean[:, None, None], std[:, None, None]
    if isinstance(x, np.ndarray):
        return (x.astype("float32") - mean) / std
    return (keras.ops.cast(x, "float32") - mean) / std


def read_image(source: Any) -> np.ndarray:
    """Read an image with Pillow, turned upright.

    Only the EXIF orientation of JPEG, PNG and WebP files counts, where it is
    well formed: `decode` knows no other. Pillow's `exif_transpose` also reads
    it from XMP and from entries of the wrong type.

    Args:
        source: Path of an image file, its content as bytes, or a binary file
            object. JPEG, PNG, GIF (the first frame), BMP, WebP, and what
            else Pillow reads.

    Returns:
        uint8 array `(height, width, 3)` of RGB.

    Raises:
        ValueError: if it is not an image that can be read.

    Example:

    >>> read_image("photo.jpg").shape
    (3024, 4032, 3)
    """
    return np.array(_read_picture(source))


def decode(encoded: Any) -> Any:
    """Decode an image in a TensorFlow graph, turned upright.

    Args:
        encoded: String tensor, scalar: a JPEG, PNG, GIF (the first frame),
            BMP or WebP file. TensorFlow decodes no WebP animations without
            alpha.

    Returns:
        uint8 tensor `(height, width, 3)` of RGB.

    Raises:
        tf.errors.InvalidArgumentError: when it runs, if it is not an image.

    Example:

    >>> decode(tf.io.read_file("photo.jpg")).dtype
    tf.uint8
    """
    import tensorflow as tf

    encoded = tf.convert_to_tensor(encoded)
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, 3, dct_method=JPEG_METHOD),
        lambda: _decode_other(encoded),
    )
    image = tf.ensure_shape(image, (None, None, 3))
    return upright(image, exif_orientation(encoded))


def _decode_other(encoded):
    """Decode an image that is no JPEG, without its alpha."""
    import tensorflow as tf

    def decoded(channels):
        return tf.io.decode_image(encoded, channels, expand_animations=False)

    def starts_as(pattern):
        start = tf.strings.substr(encoded, 0, 64)
        return tf.strings.regex_full_match(start, pattern)

    return tf.case(
        [
            (starts_as(_WEBP_WITH_ALPHA), lambda: decoded(4)[..., :3]),
            (
                starts_as(_BMP_WITH_PALETTE),
                lambda: tf.gather(
                    _bmp_palette(encoded), tf.cast(decoded(3)[..., 0], tf.int32)
                ),
            ),
        ],
        default=lambda: decoded(3),
    )


def _bmp_palette(encoded):
    """The colours of a BMP file's palette, RGB `(colours, 3)`."""
    import tensorflow as tf

    header = tf.io.decode_raw(tf.strings.substr(encoded, 0, 18), tf.int16)
    # Between the header, whose size is at byte 14, and the pixels, which
    # begin where bytes 10 to 13 say.
    start, stop = (
        14 + tf.cast(header[7], tf.int32),
        tf.cast(header[5], tf.int32),
    )
    palette = tf.strings.substr(encoded, start, stop - start)
    colors = tf.reshape(tf.io.decode_raw(palette, tf.uint8), (-1, 4))
    return colors[:, 2::-1]  # stored as BGR and a filler


def _positive_integer(name, value):
    """An argument as an int, or ValueError."""
    is_integer = isinstance(value, numbers.Integral)
    if not is_integer or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer; got {value!r}.")
    return operator.index(value)


def _three_numbers(name, value):
    """An argument as a tuple of three floats, or ValueError."""
    try:
        found = tuple(float(number) for number in value)
    except (TypeError, ValueError):
        found = ()
    if len(found) != 3 or not all(map(math.isfinite, found)):
        raise ValueError(
            f"`{name}` must be three finite numbers; got {value!r}."
        )
    return found


def _read_picture(source):
    """What `read_image` reads, as a Pillow image."""
    from PIL import Image

    name = "the image"
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
    elif hasattr(source, "read"):
        name = getattr(source, "name", name)
    else:
        raise ValueError(
            "`source` must be a path, bytes or a file object; got "
            f"{type(source).__name__}."
        )
    try:
        with Image.open(source) as image:
            return _upright_rgb(image)
    except Image.UnidentifiedImageError as error:
        # Its own message names the object that was read.
        raise ValueError(
            f"`source` must be an image file; {name}: unknown format."
        ) from error
    # SyntaxError is what Pillow has for damaged PNG files.
    except (
        OSError,
        SyntaxError,
        ValueError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(
            f"`source` must be an image file; {name}: {error}."
        ) from error


def _as_picture(image):
    """Any kind of image as an upright Pillow image of RGB."""
    from PIL import Image

    encoded = (str, os.PathLike, bytes, bytearray, memoryview)
    if isinstance(image, encoded) or hasattr(image, "read"):
        return _read_picture(image)
    if isinstance(image, Image.Image):
        return _upright_rgb(image)
    image = np.asarray(image)
    of_pixels = image.dtype == np.uint8 and image.ndim == 3 and image.size
    if not of_pixels or image.shape[2] != 3:
        raise ValueError(
            "`image` must be uint8 (height, width, 3); got "
            f"{image.dtype} {image.shape}."
        )
    return Image.fromarray(image)


def _upright_rgb(image):
    """A Pillow image as RGB, turned upright."""
    from PIL import Image

    # Before the pixels are loaded: a PNG's eXIf chunk behind them is left
    # out, as it is in a graph.
    exif = image.info.get("exif", b"")
    if image.mode.startswith("I"):
        # 16 bits a pixel, of which Pillow's conversion clips all above 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
    return turn(image.convert("RGB"), read_orientation(exif))
