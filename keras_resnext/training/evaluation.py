"""What a model does on a split: every image once."""

import dataclasses
import os
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from keras_resnext.inspection import check_classifier
from keras_resnext.inspection import image_size
from keras_resnext.training import step as steps
from keras_resnext.training.datasets import open_dataset
from keras_resnext.training.pipeline import BadImages
from keras_resnext.training.pipeline import evaluation_batches

NO_IMAGE_DECODED = (
    "`dataset` must have images that can be decoded; the split {} has none."
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a model does on a whole split.

    Args:
        split: Name of the split.
        loss: Mean cross-entropy, in nats.
        labels: True classes, int64 `(examples,)`.
        predictions: Predicted classes, int64 `(examples,)`.
        in_top5: Whether the true class is among the five most probable, bool
            `(examples,)`.
        bad_images: Names of images that could not be decoded and are left
            out of all of these.

    Example:

    >>> evaluate(model, "digits").accuracy
    0.9888888888888889
    """

    split: str
    loss: float
    labels: np.ndarray
    predictions: np.ndarray
    in_top5: np.ndarray
    bad_images: list[str] = dataclasses.field(default_factory=list)

    @property
    def examples(self):
        """Number of images seen."""
        return len(self.labels)

    @property
    def accuracy(self):
        """Share of images classified right."""
        return float(np.mean(self.labels == self.predictions))

    @property
    def top5_accuracy(self):
        """Share of images whose class is among the five most probable."""
        return float(np.mean(self.in_top5))


def evaluate(
    model: keras.Model,
    dataset: str | os.PathLike,
    *,
    split: str | None = None,
    batch_size: int = 64,
    data_dir: str | os.PathLike | None = None,
    transform: Callable | None = None,
    crop: float = 1.0,
    on_bad_image: str = "error",
) -> Evaluation:
    """Classify every image of a split once.

    Args:
        model: A `keras.Model` that ends in class probabilities, for images
            that went through `keras_resnext.preprocess_input`, or through
            `transform`.
        dataset: Name or folder of a data set, see
            `keras_resnext.training.datasets.open_dataset`.
        split: Name of the split. Defaults to the one that is not trained on.
        batch_size: Images in a batch. Defaults to 64.
        data_dir: Where TFDS keeps its data sets. Defaults to TFDS' own.
        transform: What makes the model's input of a stored image, such as a
            weights record's `transform()`. Defaults to `None`: a centred
            square, resized, and `preprocess_input`.
        crop: Share of the shorter side that this square has. Defaults to 1.
        on_bad_image: `"error"`, or `"skip"` to leave out images that cannot
            be decoded. Defaults to `"error"`.

    Returns:
        An `Evaluation` of exactly the split's images.

    Raises:
        ValueError: if there is no such data set or split, or the model has
            another number of classes.
        RuntimeError: if the images seen are not as many as the split has.

    Example:

    >>> evaluate(Run("runs/digits").load_model(), "digits").examples
    360
    """
    check_on_bad_image(on_bad_image)
    data = open_dataset(dataset, data_dir)
    check_classifier(model)
    classes, size = model.output_shape[-1], image_size(model)
    if classes != len(data.labels):
        raise ValueError(
            f"`dataset` must have the model's {classes} classes; {dataset} "
            f"has {len(data.labels)}."
        )
    data.prepare()
    split = split or data.val_split
    bad = BadImages(on_bad_image == "skip")
    batches = evaluation_batches(
        data, split, size, batch_size, transform=transform, crop=crop, bad=bad
    )
    classify = steps.make_classify(model)
    found = []
    for images, labels, weights in batches:
        bad.check()
        judged = (labels, *classify(images, tf.maximum(labels, 0)))
        counts = weights.numpy() > 0
        found.append([values.numpy()[counts] for values in judged])
    labels, losses, predictions, in_top5 = map(
        np.concatenate, zip(*found, strict=True)
    )
    if not len(labels):
        raise ValueError(NO_IMAGE_DECODED.format(split))
    expected = data.num_examples(split) - len(bad.names)
    if len(labels) != expected:
        raise RuntimeError(
            f"Expected {expected} images of the split {split}; saw "
            f"{len(labels)}."
        )
    loss = float(losses.astype("float64").mean())
    return Evaluation(split, loss, labels, predictions, in_top5, bad.names)


def check_on_bad_image(value):
    if value not in ("error", "skip"):
        raise ValueError(
            f'`on_bad_image` must be "error" or "skip"; got {value!r}.'
        )
