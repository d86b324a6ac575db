"""Evaluation: every image of a split once."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnext import imagenet
from keras_resnext.classifier import Classifier
from keras_resnext.classifier import as_classifier
from keras_resnext.extras import first_line
from keras_resnext.inspection import check_classifier
from keras_resnext.training import step as steps
from keras_resnext.training.datasets import ImageData
from keras_resnext.training.datasets import open_dataset
from keras_resnext.training.pipeline import BadImages
from keras_resnext.training.pipeline import evaluation_batches
from keras_resnext.training.recipe import Recipe
from keras_resnext.training.strategy import distributed_batches
from keras_resnext.transforms import EvalTransform


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """What a model says of every image of a split.

    The probabilities are kept in memory: 4 bytes for each image and class,
    200 MB for ImageNet's validation split. The images are not; those that
    are shown are read again.

    Args:
        split: Name of the split.
        loss: Mean cross-entropy, in nats.
        labels: True classes, int64 `(examples,)`.
        probabilities: Of each class, float32 `(examples, classes)`.
        class_names: Names of the classes.
        image_names: Names of the images, paths in a folder of images.
        bad_images: Names of images that could not be decoded; they are not
            counted. Defaults to none.
        data: The `ImageData` that was evaluated, to read images from.
            Defaults to `None`.
        transform: The `EvalTransform` it was evaluated with. Defaults to
            `None`.

    Raises:
        ValueError: if the numbers of images or classes differ.

    Example:

    >>> evaluation = Evaluation(
    ...     split="test", loss=0.9, labels=np.array([0, 1]),
    ...     probabilities=np.array([[0.7, 0.3], [0.6, 0.4]]),
    ...     class_names=["cat", "dog"], image_names=["a.jpg", "b.jpg"])
    >>> evaluation.accuracy, evaluation.predictions
    (0.5, array([0, 0]))
    """

    split: str
    loss: float
    labels: np.ndarray
    probabilities: np.ndarray
    class_names: Sequence[str]
    image_names: Sequence[str]
    bad_images: Sequence[str] = ()
    data: ImageData | None = None
    transform: EvalTransform | None = None

    def __post_init__(self):
        expected = len(self.labels), len(self.class_names)
        if np.shape(self.probabilities) != expected:
            raise ValueError(
                "`probabilities` must have a row for each label and a column "
                f"for each class name, {expected}; got "
                f"{np.shape(self.probabilities)}."
            )
        if len(self.image_names) != self.examples:
            raise ValueError(
                f"`image_names` must name {self.examples} images; got "
                f"{len(self.image_names)}."
            )

    @property
    def examples(self) -> int:
        """Number of images."""
        return len(self.labels)

    @functools.cached_property
    def predictions(self) -> np.ndarray:
        """Predicted classes, int64 `(examples,)`."""
        return self.probabilities.argmax(axis=1)

    @functools.cached_property
    def in_top5(self) -> np.ndarray:
        """Whether the true class is among the five most probable.

        Bool `(examples,)`. Of equally probable classes the first comes first,
        as in `predictions`: a confident network has many probabilities of 0.
        """
        labels = self.labels[:, None]
        own = np.take_along_axis(self.probabilities, labels, axis=1)
        ahead = ~(self.probabilities <= own)  # so written, NaN is no hit
        earlier = np.arange(len(self.class_names)) < labels
        ahead |= earlier & (self.probabilities == own)
        return ahead.sum(axis=1) < 5

    @property
    def accuracy(self) -> float:
        """Fraction of images whose predicted class is the true one."""
        return float(np.mean(self.labels == self.predictions))

    @property
    def top5_accuracy(self) -> float:
        """Fraction of images whose class is among the five most probable."""
        return float(np.mean(self.in_top5))

    def images(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read some of the images again, as the model saw them.

        Args:
            numbers: Which, as indices into `labels`.

        Returns:
            RGB pixels in [0, 255], float32 `(len(numbers), image_size,
            image_size, 3)`, not normalised.

        Raises:
            ValueError: if `data` or `transform` is `None`, or the data set
                has changed since.

        Example:

        >>> result = evaluate(Classifier.load("runs/digits"), "digits")
        >>> mistakes = np.flatnonzero(result.labels != result.predictions)
        >>> result.images(mistakes[:5]).shape
        (5, 8, 8, 3)
        """
        if self.data is None or self.transform is None:
            raise ValueError(
                "`data` and `transform` must be given to read images; got "
                f"{self.data} and {self.transform}."
            )
        # They come in the order of the split, each once.
        distinct, places = np.unique(numbers, return_inverse=True)
        names = [self.image_names[i] for i in distinct]
        pixels = self.data.pixels(self.split, self.transform, names=names)
        try:
            read = [image for image, _ in pixels.as_numpy_iterator()]
        except tf.errors.NotFoundError as error:
            raise ValueError(
                f"`data` must not change while in use: {first_line(error)}"
            ) from error
        if len(read) != len(names):
            raise ValueError(
                f"`data` must have the {len(names)} images asked for; "
                f"{self.data.name} has {len(read)} of them."
            )
        return np.stack(read)[places]

    def report(
        self, folder: str | os.PathLike[str], *, title: str | None = None
    ) -> dict[str, Any]:
        """Write a report: `report.html`, `report.json` and pictures.

        Accuracy with Wilson's 95 % interval, top-5 accuracy if there are more
        than five classes, loss, the confusion matrix, precision, recall and F1
        of each class, the most confused pairs with images of these mistakes,
        and a reliability diagram with the expected calibration error (15 bins
        of equal width) and the temperature that minimises the loss. That
        temperature is fitted on the same images.

        The page contains its pictures and opens offline. The folder is
        written atomically.

        Args:
            folder: Where the report goes. An earlier report there is replaced;
                any other folder or file is refused.
            title: Heading of the page. Defaults to the split and the data
                set.

        Returns:
            The content of `report.json`.

        Raises:
            FileExistsError: if `folder` exists and is not an earlier report.
            ModuleNotFoundError: if matplotlib or scikit-learn is missing.
            ValueError: if a probability is not finite.

        Example:

        >>> result = evaluate(Classifier.load("runs/digits"), "digits")
        >>> numbers = result.report("report")
        >>> numbers["accuracy"]["interval"]
        [0..., 0...]
        """
        from keras_resnext.training.report import write_report

        return write_report(self, folder, title=title)


def evaluate(
    model: keras.Model | Classifier,
    dataset: str | os.PathLike[str] | ImageData,
    *,
    split: str | None = None,
    batch_size: int = 64,
    data_dir: str | os.PathLike[str] | None = None,
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
        data,
        split,
        classifier.transform,
        batch_size,
        bad=bad,
        with_names=True,
    )
    columns = _classify(classifier.model, batches, bad)
    labels, names, losses, probabilities = columns
    _check_count(split, len(labels) + len(bad.names), data, len(labels))
    return Evaluation(
        split=split,
        loss=float(losses.astype("float64").mean()),
        labels=labels,
        probabilities=probabilities.astype("float32", copy=False),
        class_names=classifier.labels or data.labels,
        image_names=[name.decode() for name in names],
        bad_images=bad.names,
        data=data,
        transform=classifier.transform,
    )


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
    """Labels, names, losses and probabilities of all images."""
    classify = steps.make_classify(model)
    rows = []
    for images, labels, weights, names in batches:
        bad.check()
        values = (labels, names, *classify(images, tf.maximum(labels, 0)))
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
        self._data, self._bad = data, bad
        replicas = strategy.num_replicas_in_sync
        self._batch_size = -(-recipe.batch_size // replicas) * replicas
        self._steps = steps.make_evaluation_steps(strategy, model)
        # The same in every epoch; to build it takes longer than a small split.
        self._batches = distributed_batches(
            strategy,
            evaluation_batches,
            data,
            data.val_split,
            recipe.eval_transform,
            self._batch_size,
            bad=bad,
        )

    def run(self, steps_per_execution: int) -> tuple[float, float]:
        """Evaluate the model.

        Args:
            steps_per_execution: Batches per compiled call.

        Returns:
            Mean loss and accuracy.
        """
        split, batches = self._data.val_split, iter(self._batches)
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
