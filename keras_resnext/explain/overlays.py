"""Heat maps laid over their images."""

import numpy as np
from PIL import Image

from keras_resnext.extras import require
from keras_resnext.extras import suggest


def overlay(
    image: np.ndarray | Image.Image,
    heat: np.ndarray,
    *,
    opacity: float = 0.6,
    colormap: str = "turbo",
) -> np.ndarray:
    """Lay a heat map over its image.

    Heat is scaled to its largest value. Where it is zero, the image is as it
    was, and the hotter, the more colour covers it.

    Args:
        image: uint8 `(height, width, 3)`, or a Pillow image; of a classifier's
            photograph, `classifier.transform.pixels(photo)`.
        heat: What `grad_cam` returned, `(rows, columns)`; or attributions
            `(height, width, channels)`, of which the positive sums count.
        opacity: Share of the colour at the hottest place. Defaults to 0.6.
        colormap: One of Matplotlib's. Defaults to `"turbo"`, whose hot end
            is dark red, which shows on white too.

    Returns:
        uint8 `(height, width, 3)`.

    Raises:
        ValueError: if an argument is not as described.
        ImportError: if Matplotlib is missing.

    Example:

    >>> pixels = classifier.transform.pixels("photo.jpg")
    >>> heat = keras_resnext.explain.grad_cam(classifier, "photo.jpg")
    >>> Image.fromarray(overlay(pixels, heat)).save("heat.png")
    """
    require("matplotlib", extra="train", purpose="The overlay")
    import matplotlib

    if isinstance(image, Image.Image):
        image = image.convert("RGB")
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            "`image` must be uint8 (height, width, 3); got "
            f"{image.dtype} {image.shape}."
        )
    heat = np.asarray(heat, "float32")
    if heat.ndim == 3:
        heat = np.maximum(heat.sum(axis=-1), 0)
    if heat.ndim != 2 or not heat.size or not np.isfinite(heat).all():
        raise ValueError(
            "`heat` must be finite (rows, columns) or (height, width, "
            f"channels); got {heat.shape}."
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must be in [0, 1]; got {opacity!r}.")
    if colormap not in matplotlib.colormaps:
        raise ValueError(
            "`colormap` must be one of Matplotlib's; got "
            f"{colormap!r}.{suggest(colormap, matplotlib.colormaps)}"
        )
    heat = np.maximum(heat, 0) / max(heat.max(), np.finfo("float32").tiny)
    size = image.shape[1], image.shape[0]
    resized = Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC)
    heat = np.clip(resized, 0, 1)
    colors = matplotlib.colormaps[colormap](heat)[..., :3]
    cover = opacity * heat[..., None]
    blended = (1 - cover) * image + cover * 255 * colors
    return blended.round().astype("uint8")
