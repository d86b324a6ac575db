"""ImageNet-1K: its channel statistics and the names of its classes."""

import functools
import importlib.resources
import json

import numpy as np

# Of RGB pixels in [0, 1]. Every published ResNeXt was trained with them
# (torchvision's presets, timm's defaults).
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def labels() -> list[str]:
    """Names of the 1000 classes, in the order of the model's outputs.

    Returns:
        A new list of 1000 names.

    Example:

    >>> labels()[:2]
    ['tench', 'goldfish']
    """
    return [name for _, name in _classes()]


def decode_predictions(
    preds: np.ndarray, top: int = 5
) -> list[list[tuple[str, str, float]]]:
    """The ImageNet classes with the highest scores, by name.

    Args:
        preds: Array `(batch, 1000)` of scores.
        top: Number of classes for each image. Defaults to 5.

    Returns:
        For each image a list of `(wnid, name, score)`, highest score first.

    Raises:
        ValueError: if the shape of `preds` is not `(batch, 1000)`, or if
            `top` is not between 1 and 1000.

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
    classes = _classes()
    return [
        [(*classes[i], float(scores[i])) for i in np.argsort(-scores)[:top]]
        for scores in preds
    ]


@functools.cache
def _classes():
    """`(wnid, name)` of each class."""
    text = (
        importlib.resources.files("keras_resnext") / "imagenet_classes.json"
    ).read_text()
    return [tuple(record) for record in json.loads(text)]
