"""What a model does on a split: every image once."""

import dataclasses
import os

import keras
import numpy as np
import tensorflow as tf

from keras_resnext.classifier import Classifier
from keras_resnext.classifier import as_classifier
from keras_resnext.classifier import check_on_bad_image
from keras_resnext.inspection import check_classifier
from keras_resnext.inspection import image_size
from keras_resnext.training import step as steps
from keras_resnext.training.datasets import ImageData
from keras_resnext.training.datasets import open_dataset
from keras_resnext.training.pipeline import BadImages
from keras_resnext.training.pipeline import evaluation_batches
from keras_resnext.transforms import EvalTransform

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
    model: keras.Model | Classifier,
    dataset: str | os.PathLike | ImageData,
    *,
    split: str | None = None,
    batch_size: int = 64,
    data_dir: str | os.PathLike | None = None,
    transform: EvalTransform | None = None,
    on_bad_image: str = "error",
) -> Evaluation:
    """Classify every image of a split once.

    Args:
        model: A `Classifier`, or a `keras.Model` that ends in class
            probabilities and takes normalised images.
        dataset: Name or folder of a data set, see
            `keras_resnext.training.datasets.open_dataset`, or what that
            returns.
        split: Name of the split. Defaults to the validation split, or the
            test split if there is none.
        batch_size: Images in a batch. Defaults to 64.
        data_dir: Directory of TFDS' data sets. Defaults to TFDS' own.
        transform: What turns a stored image into the model's input. Defaults
            to the classifier's; for a plain model, to the largest centred
            square and ImageNet's normalisation.
        on_bad_image: `"error"`, or `"skip"` to leave out images that cannot
            be decoded. Defaults to `"error"`.

    Returns:
        An `Evaluation` of exactly the split's images.

    Raises:
        ValueError: if there is no such data set or split, or its classes are
            not the model's.
        RuntimeError: if not every image of the split was seen.

    Example:

    >>> evaluate(Classifier.load("runs/digits"), "digits").examples
    360
    """
    check_on_bad_image(on_bad_image)
    data = dataset
    if not isinstance(data, ImageData):
        data = open_dataset(dataset, data_dir)
    classifier = as_classifier(model, transform=transform)
    check_classifier(classifier.model)
    image_size(classifier.model)  # or its error says what the model takes
    check_classes(classifier, data)
    data.prepare()
    check_classes(classifier, data)  # some names are only known now
    split = split or data.val_split
    bad = BadImages(on_bad_image == "skip")
    batches = evaluation_batches(
        data, split, classifier.transform, batch_size, bad=bad
    )
    classify = steps.make_classify(classifier.model)
    rows = []
    for images, labels, weights in batches:
        bad.check()
        judged = (labels, *classify(images, tf.maximum(labels, 0)))
        counts = weights.numpy() > 0
        rows.append([values.numpy()[counts] for values in judged])
    labels, losses, predictions, in_top5 = map(
        np.concatenate, zip(*rows, strict=True)
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


def check_classes(classifier: Classifier, data: ImageData) -> None:
    """Refuse a data set whose classes are not the classifier's.

    Args:
        classifier: A `Classifier`. ImageNet's names differ from data set to
            data set, so that published weights are held to their number only.
        data: An `ImageData`.

    Raises:
        ValueError: if number, names or order of the classes differ.
    """
    count = classifier.model.output_shape[-1]
    if len(data.labels) != count:
        raise ValueError(
            f"`dataset` must have the model's {count} classes; {data.name} "
            f"has {len(data.labels)}."
        )
    labels = classifier.labels
    named = data.labels != [str(i) for i in range(count)]
    if labels and named and not classifier.record and labels != data.labels:
        raise ValueError(
            "`dataset` must have the classes that the model was trained on, "
            f"{labels[:20]}; {data.name} has {data.labels[:20]}."
        )
