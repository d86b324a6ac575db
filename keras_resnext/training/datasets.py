"""Labelled images as batches: TensorFlow Datasets, or a folder by class."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Collection

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_resnext.training import digits as _digits  # noqa: F401 (registers)
from keras_resnext.transforms import EvalTransform
from keras_resnext.transforms import decode

# The split to watch and to judge by, whatever a data set calls it. ImageNet's
# "test" carries no labels, so it comes last.
VAL_SPLITS = ("validation", "val", "valid", "test")
_SHUFFLE_BUFFER = 4096  # images
_SUFFIXES = (".jpg", ".jpeg", ".png")  # those of `tfds.ImageFolder`


@dataclasses.dataclass(frozen=True)
class ImageData:
    """A data set that was found; its images may still have to be prepared.

    Made by `open_dataset`.

    Args:
        name: What it was opened by: a TFDS name or a folder.
        builder: The TFDS builder behind it.
        folder: The folder of images, or `None`.
    """

    name: str
    builder: tfds.core.DatasetBuilder
    folder: str | None = None

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of their indices.

        Some data sets know them only once they are prepared, and have the
        indices instead until then.
        """
        return list(self.builder.info.features["label"].names)

    @property
    def val_split(self) -> str:
        """Name of the split that is not trained on; it holds images."""
        for split in VAL_SPLITS:
            if split in self.builder.info.splits and self.num_examples(split):
                return split
        raise ValueError(
            "`dataset` must have images in one of the splits "
            f"{_listed(VAL_SPLITS)}; {self.builder.name} has "
            f"{_listed(self.builder.info.splits)}."
        )

    def num_examples(self, split: str) -> int:
        """Number of images in a split.

        Raises:
            ValueError: if there is no such split.
        """
        splits = self.builder.info.splits
        if split not in splits:
            raise ValueError(
                f"`split` must be one of those of {self.builder.name}, "
                f"{_listed(splits)}; got {split!r}."
            )
        return splits[split].num_examples

    def prepare(self) -> None:
        """Download and write what is not there yet; a folder is as it is."""
        if not self.folder:
            try:
                self.builder.download_and_prepare()
            except AssertionError as error:
                # How TFDS says that files must be fetched by hand first.
                raise FileNotFoundError(str(error)) from error

    def encoded(
        self, split: str, *, shuffle_seed: int | None = None, skip: int = 0
    ) -> tf.data.Dataset:
        """All images of a split as they are stored.

        A folder is shuffled as a whole. A TFDS data set, which is stored in
        files to be read from the beginning, is shuffled in three: the files,
        by reading several at a time, and a few thousand images at a time.

        Args:
            split: Name of the split.
            shuffle_seed: Seed of the order; `None` for the data set's own.
                Defaults to `None`.
            skip: How many to leave out at the beginning. Defaults to 0.

        Returns:
            A `tf.data.Dataset` of an image's name, its encoded bytes, and its
            label, int64.

        Raises:
            ValueError: if there is no such split.
        """
        self.num_examples(split)  # says so if there is no such split
        if self.folder:
            names, labels = self._files(split)
            order = np.arange(len(names))
            if shuffle_seed is not None:
                order = np.random.default_rng(shuffle_seed).permutation(order)
            order = order[skip:]
            return tf.data.Dataset.from_tensor_slices(
                (names[order], labels[order])
            ).map(lambda name, label: (name, tf.io.read_file(name), label))
        options = tf.data.Options()
        options.deterministic = True
        with _without_warnings():  # `add_tfds_id` calls what TensorFlow renamed
            examples = self.builder.as_dataset(
                split=split,
                decoders={"image": tfds.decode.SkipDecoding()},
                shuffle_files=shuffle_seed is not None,
                read_config=tfds.ReadConfig(
                    shuffle_seed=shuffle_seed, options=options, add_tfds_id=True
                ),
            )
        if shuffle_seed is not None:
            # Encoded images take a small part of the memory of pixels.
            examples = examples.shuffle(
                _SHUFFLE_BUFFER,
                seed=shuffle_seed,
                reshuffle_each_iteration=False,
            )
        return examples.skip(skip).map(
            lambda example: (
                example["tfds_id"],
                example["image"],
                example["label"],
            )
        )

    def _files(self, split):
        """Paths and labels of a folder's images, the same on every machine."""
        found = [
            (str(path), label)
            for label, name in enumerate(self.labels)
            for path in sorted(pathlib.Path(self.folder, split, name).glob("*"))
            if path.suffix.lower() in _SUFFIXES
        ]
        expected = self.num_examples(split)
        if len(found) != expected:
            raise ValueError(
                f"`dataset` must stay as it is; {self.folder} had {expected} "
                f"images in {split}, now {len(found)}."
            )
        names, labels = zip(*found, strict=True)
        return np.array(names), np.array(labels, "int64")

    def pixels(
        self,
        split: str,
        transform: EvalTransform,
        *,
        without: Collection[str] = (),
    ) -> tf.data.Dataset:
        """All images of a split as the network sees them, in order.

        Args:
            split: Name of the split.
            transform: What resizes and crops the images.
            without: Names of images to leave out, such as the bad images of
                an evaluation. Defaults to none.

        Returns:
            A `tf.data.Dataset` of RGB pixels in [0, 255], float32
            `(image_size, image_size, 3)`, and labels, int64.
        """
        examples = self.encoded(split)
        if without:
            examples = examples.filter(
                lambda name, *_: tf.reduce_all(name != tf.constant([*without]))
            )
        return examples.map(
            lambda name, encoded, label: (
                transform.pixels_in_graph(decode(encoded)),
                label,
            ),
            num_parallel_calls=tf.data.AUTOTUNE,
        )


def read_images(
    data: ImageData,
    split: str,
    transform: EvalTransform,
    *,
    count: int,
    shuffle_seed: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Read some images of a split into memory.

    Args:
        data: An `ImageData`, prepared.
        split: Name of the split.
        transform: What resizes and crops the images.
        count: Number of images, if there are so many.
        shuffle_seed: Seed of the choice; `None` for the first images.
            Defaults to `None`.

    Returns:
        RGB pixels in [0, 255], float32 `(images, image_size, image_size, 3)`,
        and labels, `(images,)`.

    Raises:
        ValueError: if one cannot be decoded, or there is no such split.

    Example:

    >>> transform = EvalTransform.from_crop_pct(16)
    >>> images, labels = read_images(data, "train", transform, count=100)
    """
    examples = data.encoded(split, shuffle_seed=shuffle_seed).take(count)
    images, labels = [], []
    for name, encoded, label in examples.as_numpy_iterator():
        try:
            images.append(transform.pixels(encoded).astype("float32"))
        except ValueError as error:
            raise ValueError(
                "`dataset` must have images that can be decoded; cannot decode "
                f"{name.decode()}."
            ) from error
        labels.append(label)
    if not images:
        raise ValueError(
            f"`dataset` must have images; the split {split} has none."
        )
    return np.stack(images), np.array(labels)


def locate(name: str | os.PathLike) -> str:
    """A data set's name as it is, a folder's as an absolute path.

    A bare name that TFDS knows is that data set, even where a folder is
    called the same; `./name` is the folder.

    Args:
        name: Name of a TFDS builder, or path of a folder.

    Returns:
        The name, or the path.

    Example:

    >>> locate("digits")
    'digits'
    """
    name = os.fspath(name)
    folder = pathlib.Path(name).expanduser()
    is_name = os.path.basename(name) == name and name in tfds.list_builders()
    return str(folder.resolve()) if folder.is_dir() and not is_name else name


def open_dataset(
    name: str | os.PathLike, data_dir: str | os.PathLike | None = None
) -> ImageData:
    """Find a data set by name or folder; nothing is downloaded yet.

    Args:
        name: Name of a TFDS builder with an image and a label, such as
            `"digits"` (part of this package) or `"cifar10"`; or path of a
            folder `<split>/<class>/<image>.jpg` or `.png` with the splits
            train and validation (or val, valid, test), see `locate`.
        data_dir: Where TFDS keeps its data sets. Defaults to `None`, its own
            default: `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Returns:
        An `ImageData`.

    Raises:
        ValueError: if there is no such data set, or it is not one of images
            with one label each.

    Example:

    >>> open_dataset("digits").labels[:3]
    ['0', '1', '2']
    """
    name = locate(name)
    if os.path.isdir(name):
        data = ImageData(name, tfds.ImageFolder(name), name)
        splits = data.builder.info.splits
        if not any(split.num_examples for split in splits.values()):
            raise ValueError(
                "`dataset` must be a folder of <split>/<class>/<image>.jpg or "
                f".png; found no image two folders below {name}."
            )
        return _check_classes(data, name)
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except (
        tfds.core.DatasetNotFoundError,
        AssertionError,  # no such version
        ValueError,  # no such configuration
    ) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            "`dataset` must be a folder of images by class or a name that "
            f"tfds.list_builders() knows, such as digits or cifar10; "
            f"got {name!r} ({reason})"
        ) from error
    if not (
        {"image", "label"} <= set(builder.info.features)
        and isinstance(builder.info.features["label"], tfds.features.ClassLabel)
    ):
        raise ValueError(
            "`dataset` must have the features image and label (one class); "
            f"{name} has {_listed(builder.info.features)}."
        )
    return _check_classes(ImageData(name, builder), name)


@contextlib.contextmanager
def _without_warnings():
    """Keep TensorFlow's own to itself."""
    logger = tf.get_logger()
    before = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(before)


def _check_classes(data, name):
    if len(data.labels) < 2:
        raise ValueError(
            f"`dataset` must have two classes or more; {name} has "
            f"{_listed(data.labels)}."
        )
    return data


def _listed(names):
    return ", ".join(names)
