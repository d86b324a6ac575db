"""Pixels in, class names out: what stands before and behind the network."""

import functools
import importlib.resources
import json
import os

import keras
import numpy as np

# ImageNet's channel statistics for pixels in [0, 1], RGB; every published
# ResNeXt was trained with them (`torchvision.transforms`, timm's defaults).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def preprocess_input(x, data_format: str | None = None):
    """Turn RGB pixels into what the networks expect.

    `(x / 255 - mean) / std`, with ImageNet's mean and standard deviation of
    each channel. What is passed in is left as it was.

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
        ValueError: if `data_format` is none of these or `x` has not three
            channels.

    Example:

    >>> keras_resnext.preprocess_input(np.full((1, 1, 3), 255))
    array([[[2.2489083, 2.4285715, 2.64     ]]], dtype=float32)
    """
    data_format = data_format or keras.config.image_data_format()
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            '`data_format` must be None, "channels_last" or '
            f'"channels_first"; got {data_format!r}.'
        )
    if not hasattr(x, "shape"):  # a list, or a picture of Pillow's
        x = np.asarray(x)
    axis = -1 if data_format == "channels_last" else -3
    if len(x.shape) < 3 or x.shape[axis] != 3:
        raise ValueError(
            f"`x` must have three channels in axis {axis} "
            f"({data_format}); got shape {tuple(x.shape)}."
        )
    mean = 255 * np.array(IMAGENET_MEAN, "float32")
    std = 255 * np.array(IMAGENET_STD, "float32")
    if axis == -3:
        mean, std = mean[:, None, None], std[:, None, None]
    if isinstance(x, np.ndarray):
        return (x.astype("float32") - mean) / std
    return (keras.ops.cast(x, "float32") - mean) / std


def decode_predictions(
    preds: np.ndarray, top: int = 5
) -> list[list[tuple[str, str, float]]]:
    """Name the most probable ImageNet classes.

    Args:
        preds: Array `(batch, 1000)` of scores.
        top: How many classes to name for each image. Defaults to 5.

    Returns:
        A list for each image of `(wnid, name, score)`, best first.

    Raises:
        ValueError: if `preds` is not of shape `(batch, 1000)`, or `top` not
            from 1 to 1000.

    Example:

    >>> decode_predictions(np.eye(1000)[:1], top=1)
    [[('n01440764', 'tench', 1.0)]]
    """
    preds = np.asarray(preds, "float64")  # unsigned integers have no minus
    if not 1 <= top <= 1000:
        raise ValueError(f"`top` must be from 1 to 1000; got {top!r}.")
    if preds.ndim != 2 or preds.shape[1] != 1000:
        raise ValueError(
            "`preds` must have shape (batch, 1000), one column for each "
            f"ImageNet class; got {preds.shape}."
        )
    classes = _imagenet_classes()
    return [
        [(*classes[i], float(scores[i])) for i in np.argsort(-scores)[:top]]
        for scores in preds
    ]


def resize_and_crop(image, size: int, *, crop: float = 1.0):
    """The centred square of an image, resized to `size` pixels.

    Bilinear with antialiasing: photographs lose detail without aliasing, and
    enlarging is plain bilinear.

    Args:
        image: Tensor `(height, width, channels)` of pixels.
        size: Side of the result, in pixels.
        crop: Share of the image's shorter side that the square has. Defaults
            to 1, the largest square.

    Returns:
        float32 tensor `(size, size, channels)`, in the range of the input.

    Example:

    >>> resize_and_crop(photo, 224).shape
    TensorShape([224, 224, 3])
    """
    if crop < 1:
        height, width = keras.ops.shape(image)[:2]
        shorter = keras.ops.cast(keras.ops.minimum(height, width), "float32")
        side = keras.ops.cast(keras.ops.round(crop * shorter), "int32")
        top, left = (height - side) // 2, (width - side) // 2
        image = image[top : top + side, left : left + side]
    return keras.ops.image.resize(
        keras.ops.cast(image, "float32"),
        (size, size),
        interpolation="bilinear",
        antialias=True,
        crop_to_aspect_ratio=True,
        data_format="channels_last",
    )


def read_image(
    path: str | os.PathLike, size: int, *, crop: float = 1.0
) -> np.ndarray:
    """Read an image file as the square of pixels that a network looks at.

    Args:
        path: A JPEG, PNG, GIF or BMP file (a GIF's first frame).
        size: Side of the result, in pixels.
        crop: See `resize_and_crop`. Defaults to 1, the largest square.

    Returns:
        float32 array `(size, size, 3)` of RGB in [0, 255].

    Raises:
        ValueError: if the file is no image that can be read.

    Example:

    >>> read_image("photo.jpg", 224).shape
    (224, 224, 3)
    """
    photo = read_photo(path)
    return keras.ops.convert_to_numpy(resize_and_crop(photo, size, crop=crop))


def read_photo(path: str | os.PathLike) -> np.ndarray:
    """Read an image file as it is, held as the camera was.

    Args:
        path: A JPEG, PNG, GIF or BMP file (a GIF's first frame).

    Returns:
        uint8 array `(height, width, 3)` of RGB.

    Raises:
        ValueError: if the file is no image that can be read.

    Example:

    >>> read_photo("photo.jpg").shape
    (3024, 4032, 3)
    """
    from PIL import Image
    from PIL import ImageOps

    try:
        with Image.open(path) as image:
            # Phones store how they were held beside the picture.
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                # 16 bits a pixel, of which Pillow's conversion cuts off all
                # above 255.
                levels = np.asarray(upright) >> 8
                upright = Image.fromarray(levels.astype("uint8"))
            return np.asarray(upright.convert("RGB"))
    # SyntaxError is what Pillow has for damaged PNG files.
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"`path` must be an image file; {path}: {error}."
        ) from error


def imagenet_labels() -> list[str]:
    """Names of ImageNet's 1000 classes, in the order of the outputs.

    Example:

    >>> imagenet_labels()[:2]
    ['tench', 'goldfish']
    """
    return [name for _, name in _imagenet_classes()]


@functools.cache
def _imagenet_classes():
    text = (
        importlib.resources.files("keras_resnext") / "imagenet_classes.json"
    ).read_text()
    return [tuple(record) for record in json.loads(text)]
