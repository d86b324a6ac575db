"""What a photograph goes through before published weights judge it."""

import numpy as np


def resize_crop_normalize(
    image: np.ndarray,
    *,
    resize_size: int,
    image_size: int,
    interpolation: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> np.ndarray:
    """The evaluation transform of torchvision and timm, to the last bit.

    Pillow resizes, as it does there; TensorFlow's antialiased kernels differ
    by several levels.

    Args:
        image: uint8 `(height, width, 3)`, RGB, of any size.
        resize_size: What the shorter side becomes, in pixels.
        image_size: Side of the centre crop, in pixels.
        interpolation: `"bilinear"` or `"bicubic"`.
        mean: Subtracted from pixels in [0, 1].
        std: What divides the rest.

    Returns:
        float32 `(image_size, image_size, 3)`.

    Raises:
        ValueError: if `image` is not as described.

    Example:

    >>> record = keras_resnext.get_weights("resnext50", "tv2_in1k")
    >>> record.transform()(photo).shape
    (224, 224, 3)

    Reference:
        torchvision 0.28.0, `transforms/functional.py`, `resize` and
        `center_crop`; timm 1.0.31, `data/transforms_factory.py`,
        `transforms_imagenet_eval`.
    """
    from PIL import Image

    image = np.asarray(image)
    if (
        image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
        or not image.size
    ):
        raise ValueError(
            "`image` must be uint8 (height, width, 3); got "
            f"{image.dtype} {image.shape}."
        )
    height, width = image.shape[:2]
    # The longer side is rounded down, the crop's corner to the nearest.
    if width <= height:
        size = (resize_size, int(resize_size * height / width))
    else:
        size = (int(resize_size * width / height), resize_size)
    picture = Image.fromarray(image)
    if size != (width, height):
        picture = picture.resize(size, Image.Resampling[interpolation.upper()])
    left, top = (round((side - image_size) / 2) for side in size)
    picture = picture.crop((left, top, left + image_size, top + image_size))
    pixels = np.asarray(picture).astype("float32") / np.float32(255)
    return (pixels - np.float32(mean)) / np.float32(std)
