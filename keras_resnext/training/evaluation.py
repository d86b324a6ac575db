"""Evaluation: every image of a split once."""

import dataclasses
import os

import keras
import numpy as np
import tensorflow as tf

from keras_resnext import imagenet
from keras_resnext.classifier import Classifier
from keras_resnext.classifier import as_classifier
from keras_resnext.inspection import check_classifier
from keras_resnext.training import step as steps
from keras_resnext.training.datasets import ImageData
from keras_resnext.training.datasets import open_dataset
from keras_resnext.training.pipeline import BadImages
from keras_resnext.training.pipeline import evaluation_batches
from keras_resnext.training.recipe import Recipe
from keras_resnext.training.strategy import distributed_batches
from keras_resnext.transforms import EvalTransform


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The predictions of a model on a whole split.

    Args:
        split: Name of the split.
        loss: Mean cross-entropy, in nats.
        labels: True classes, int64 `(examples,)`.
        predictions: Predicted classes, int64 `(examples,)`.
        in_top5: Whether the true class is among the five most probable, bool
            `(examples,)`.
        bad_images: Names of images that could not be decoded; they are not
            counted. Defaults to none.

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
    def examples(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def accuracy(self) -> float:
        """Fraction of images whose predicted class is the true one."""
        return float(np.mean(self.labels == self.predictions))

    @property
    def top5_accuracy(self) -> float:
        """Fraction of images whose class is among the five most probable."""
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
            probabilities.
        dataset: Name or folder of a data set, see
            `keras_resnext.training.datasets.open_dataset`, or what that
            returns.
        split: Name of the split. Defaults to the validation split.
        batch_size: Images in a batch. Defaults to 64.
        data_dir: Where TFDS keeps its data sets. Defaults to TFDS' own.
        transform: An `EvalTransform`. Defaults to `None`, that of the
            classifier; for a plain model, see `Classifier`.
        on_bad_image: `"error"`, or `"skip"` to leave out images that cannot
            be decoded. Defaults to `"error"`.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: if there is no such data set or split, or it has other
            classes than the model.
        RuntimeError: if the number of images differs from that of the split.

    Example:

    >>> evaluate(Classifier.load("runs/digits"), "digits").examples
    360
    """
    bad = BadImages(on_bad_image)
    classifier = as_classifier(model, transform=transform)
    check_classifier(classifier.model)
    classifier.require_transform()
    data = dataset
    if not isinstance(data, ImageData):
        data = open_dataset(dataset, data_dir)
    check_classes(classifier, data)  # before anything is downloaded
    data.prepare()
    check_classes(classifier, data)  # some names are not known before
    split = split or data.val_split
    batches = evaluation_batches(
        data, split, classifier.transform, batch_size, bad=bad
    )
    columns = _classify(classifier.model, batches, bad)
    labels, losses, predictions, in_top5 = columns
    _check_count(split, len(labels) + len(bad.names), data, len(labels))
    loss = float(losses.astype("float64").mean())
    return Evaluation(split, loss, labels, predictions, in_top5, bad.names)


def check_classes(classifier: Classifier, data: ImageData) -> None:
    """Refuse a data set whose classes are not the classifier's.

    Args:
        classifier: A `Classifier`. Of ImageNet's classes only the number is
            compared, because data sets name them differently.
        data: An `ImageData`; names are compared only if it has some.

    Raises:
        ValueError: if the classes differ in number, name or order.
    """
    count, labels = classifier.model.output_shape[-1], classifier.labels
    if len(data.labels) != count:
        raise ValueError(
            f"`dataset` must have the model's {count} classes; {data.name} "
            f"has {len(data.labels)}."
        )
    named = data.labels != [str(i) for i in range(count)]
    comparable = labels and named and list(labels) != imagenet.labels()
    if comparable and list(labels) != data.labels:
        raise ValueError(
            "`dataset` must have the classes that the model was trained on, "
            f"{list(labels[:20])}; {data.name} has {data.labels[:20]}."
        )


def _classify(model, batches, bad):
    """Labels, losses, predictions and top-5 hits of all images."""
    classify = steps.make_classify(model)
    rows = []
    for images, labels, weights in batches:
        bad.check()
        values = (labels, *classify(images, tf.maximum(labels, 0)))
        counts = weights.numpy() > 0
        rows.append([value.numpy()[counts] for value in values])
    return [np.concatenate(column) for column in zip(*rows, strict=True)]


def _check_count(split, seen, data, decoded):
    """Refuse a split without images, or of which some were not seen."""
    expected = data.num_examples(split)
    if seen != expected:
        raise RuntimeError(
            f"Expected {expected} images of the split {split}; saw {seen}."
        )
    if not decoded:
        raise ValueError(
            "`dataset` must have images that can be decoded; the split "
            f"{split} has none."
        )


class Validation:
    """Loss and accuracy on the validation split, under a strategy.

    Args:
        strategy: The `tf.distribute.Strategy` that `model` was made under.
        model: A `keras.Model` that ends in class probabilities.
        data: A prepared `ImageData`.
        recipe: A `Recipe`.
        bad: Collects images that cannot be decoded.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        data: ImageData,
        recipe: Recipe,
        bad: BadImages,
    ):
        self._strategy, self._data, self._bad = strategy, data, bad
        self._transform = recipe.eval_transform
        replicas = strategy.num_replicas_in_sync
        self._batch_size = -(-recipe.batch_size // replicas) * replicas
        self._steps = steps.make_evaluation_steps(strategy, model)

    def run(self, steps_per_execution: int) -> tuple[float, float]:
        """Evaluate the model.

        Args:
            steps_per_execution: Batches per compiled call.

        Returns:
            Mean loss and accuracy.
        """
        split = self._data.val_split
        batches = distributed_batches(
            self._strategy,
            evaluation_batches,
            self._data,
            split,
            self._transform,
            self._batch_size,
            bad=self._bad,
        )
        left = -(-self._data.num_examples(split) // self._batch_size)
        totals = np.zeros(4)
        while left:
            count = min(steps_per_execution, left)
            totals += self._steps(batches, count).numpy()
            left -= count
            self._bad.check()
        loss, correct, images, seen = totals
        _check_count(split, int(seen), self._data, images)
        return loss / images, correct / images
