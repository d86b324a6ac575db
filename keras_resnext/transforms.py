"""From images to a network's input: one rule, in Pillow and TensorFlow."""

import dataclasses
import math
import numbers
import operator
import os
from typing import Any

import numpy as np

from keras_resnext.imagenet import MEAN
from keras_resnext.imagenet import STD
from keras_resnext.images import MAX_PIXELS
from keras_resnext.images import read_picture
from keras_resnext.images import to_upright_rgb

# TensorFlow's names of Pillow's filters; "keyscubic" has the same a = -0.5.
_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}

# Height by width from which Pillow reduces the height first, since 13.0.
_TALL = 2

# Longer side by shorter from which only the middle is resized, not the whole,
# which would have 100 times the pixels of a square, or 100,000 times.
_LONG = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalTransform:
    """The transform of images for evaluation and prediction.

    The shorter side is resized to `resize_size`, the centre cropped to
    `image_size`, and the pixels normalised: what torchvision and timm do when
    they evaluate. Called with an image it gives the network's input, equal to
    theirs bit for bit (but for JPEGs of 16 times `resize_size` and more, see
    `shrink_to`); `pixels_in_graph` and `normalize_in_graph` do the same in
    TensorFlow, to within one level of 255 in a few pixels of a thousand.

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

    @property
    def shrink_to(self) -> int:
        """What the shorter side of a large JPEG keeps when it is decoded.

        Eight times `resize_size`, of which nothing is left to see after the
        resize, see `keras_resnext.images.read_picture`. It bounds the memory
        of a huge JPEG, but for progressive ones, whose coefficients are kept.
        """
        return 8 * self.resize_size

    def __call__(
        self, image: Any, *, max_pixels: int = MAX_PIXELS
    ) -> np.ndarray:
        """An image as the network's input.

        Args:
            image: See `pixels`.
            max_pixels: See `pixels`.

        Returns:
            float32 array `(image_size, image_size, 3)`.

        Raises:
            ValueError: see `pixels`.

        Example:

        >>> batch = np.stack([transform(path) for path in paths])
        """
        return self.normalize(self.pixels(image, max_pixels=max_pixels))

    def pixels(self, image: Any, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """An image resized and cropped, with Pillow.

        Args:
            image: uint8 array `(height, width, 3)` of RGB, a Pillow image, or
                what `keras_resnext.images.read_image` takes. All but arrays
                are turned upright.
            max_pixels: Most pixels that an image file may have. Defaults to
                178,956,970, Pillow's limit.

        Returns:
            uint8 array `(image_size, image_size, 3)` of RGB.

        Raises:
            ValueError: if `image` is none of these or cannot be read.

        Example:

        >>> transform.pixels("photo.jpg").dtype
        dtype('uint8')
        """
        from PIL import Image

        picture = self._as_picture(image, max_pixels)
        width, height = picture.size
        # The longer side is rounded down, the crop's corner to the nearest.
        if width <= height:
            size = (self.resize_size, int(self.resize_size * height / width))
        else:
            size = (int(self.resize_size * width / height), self.resize_size)
        left, top = (round((side - self.image_size) / 2) for side in size)
        right, bottom = left + self.image_size, top + self.image_size
        resampling = Image.Resampling[self.interpolation.upper()]
        if max(size) > _LONG * min(size):
            x, y = width / size[0], height / size[1]
            box = left * x, top * y, right * x, bottom * y
            square = self.image_size, self.image_size
            return np.array(picture.resize(square, resampling, box))
        if size != picture.size:
            picture = picture.resize(size, resampling)
        return np.array(picture.crop((left, top, right, bottom)))

    def _as_picture(self, image, max_pixels):
        """Any kind of image as an upright Pillow image of RGB."""
        from PIL import Image

        encoded = (str, os.PathLike, bytes, bytearray, memoryview)
        if isinstance(image, encoded) or hasattr(image, "read"):
            return read_picture(
                image, max_pixels=max_pixels, shrink_to=self.shrink_to
            )
        if isinstance(image, Image.Image):
            return to_upright_rgb(image)
        image = np.asarray(image)
        of_pixels = image.dtype == np.uint8 and image.ndim == 3 and image.size
        if not of_pixels or image.shape[2] != 3:
            raise ValueError(
                "`image` must be uint8 (height, width, 3); got "
                f"{image.dtype} {image.shape}."
            )
        return Image.fromarray(image)

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels as the network's input: `(pixels / 255 - mean) / std`.

        Without mean and std they stay as they are.

        Args:
            pixels: Array `(..., 3)` of RGB in [0, 255], any dtype.

        Returns:
            float32 array of the same shape.

        Example:

        >>> transform.normalize(np.full((1, 1, 3), 255)).round(2)
        array([[[2.25, 2.43, 2.64]]], dtype=float32)
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

        >>> from keras_resnext.images import decode
        >>> image = decode(encoded, shrink_to=transform.shrink_to)
        >>> transform.pixels_in_graph(image).shape
        TensorShape([224, 224, 3])
        """
        import tensorflow as tf

        image = tf.convert_to_tensor(image, tf.uint8)
        stored = tf.shape(image, tf.int64)[:2]
        height, width = tf.unstack(
            self.resize_size * stored // tf.reduce_min(stored)
        )

        def width_first():
            # The operation makes a float32 copy of what it does not resize
            # first, the rows; turned, that copy is small.
            turned = tf.transpose(image, (1, 0, 2))
            resized = tf.transpose(self._resize_rows(turned, width), (1, 0, 2))
            return self._resize_rows(resized, height)

        def height_first():
            resized = tf.transpose(self._resize_rows(image, height), (1, 0, 2))
            return tf.transpose(self._resize_rows(resized, width), (1, 0, 2))

        is_tall = (stored[0] > _TALL * stored[1]) & (height < stored[0])
        # A column of pixels would first become `image_size` columns.
        is_long = height > _LONG * width
        resized = tf.cond(is_tall | is_long, height_first, width_first)
        return tf.ensure_shape(resized, (self.image_size, self.image_size, 3))

    def _resize_rows(self, image, side):
        """The middle of the first axis resized to `side`, in whole levels."""
        import tensorflow as tf

        corner = tf.cast(tf.round((side - self.image_size) / 2), tf.float32)
        rows, columns = tf.unstack(tf.shape(image)[:2])
        scale = tf.cast(side, tf.float32) / tf.cast(rows, tf.float32)
        # The operation behind `tf.image.resize`, which has no offset: what
        # the crop leaves out is never made, however long the image is.
        resized = tf.raw_ops.ScaleAndTranslate(
            images=image[None],
            size=[self.image_size, columns],
            scale=[scale, 1.0],
            translation=[-corner, 0.0],
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

    >>> keras_resnext.preprocess_input(np.full((1, 1, 3), 255)).round(2)
    array([[[2.25, 2.43, 2.64]]], dtype=float32)
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
