"""Find and open data sets: TensorFlow Datasets, or a folder by class."""

import dataclasses
import os
import pathlib
from collections.abc import Collection

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_resnext.extras import first_line
from keras_resnext.quiet import quiet
from keras_resnext.training import digits as _digits  # noqa: F401 (registers)
from keras_resnext.transforms import EvalTransform
from keras_resnext.transforms import decode

# The validation split's name, by preference. ImageNet's "test" has no labels,
# so it comes last.
VAL_SPLITS = ("validation", "val", "valid", "test")
_SHUFFLE_BUFFER = 4096  # images
_SUFFIXES = (".jpg", ".jpeg", ".png")  # those of `tfds.ImageFolder`


@dataclasses.dataclass(frozen=True)
class ImageData:
    """A labelled data set, as `open_dataset` returns it.

    Args:
        name: Its name or folder.
        builder: Its TFDS builder.
        is_folder: Whether it is a folder of images by class. Defaults to
            `False`.
    """

    name: str
    builder: tfds.core.DatasetBuilder
    is_folder: bool = False

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of their indices.

        Some data sets have indices for names until they are prepared.
        """
        return list(self.builder.info.features["label"].names)

    @property
    def val_split(self) -> str:
        """Name of the validation split."""
        for split in VAL_SPLITS:
            if split in self.builder.info.splits and self.num_examples(split):
                return split
        raise ValueError(
            "`dataset` must have images in one of the splits "
            f"{_listed(VAL_SPLITS)}; {self.name} has "
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
                f"`split` must be one of those of {self.name}, "
                f"{_listed(splits)}; got {split!r}."
            )
        return splits[split].num_examples

    def write_split(self, path):
        pass

    def class_counts(self, split):
        import collections

        labels = [int(l) for *_, l in self.encoded(split).as_numpy_iterator()]
        c = collections.Counter(labels)
        return {n: c[i] for i, n in enumerate(self.labels)}

    def prepare(self) -> None:
        """Download and prepare the data set, unless that is done.

        Raises:
            FileNotFoundError: if files must first be downloaded by hand; the
                message says which, and where to put them.
        """
        if self.is_folder:
            return
        # They are nested, and overwrite each other and everybody else's.
        tfds.disable_progress_bar()
        try:
            self.builder.download_and_prepare()
        except AssertionError as error:
            # What TFDS raises when files must be downloaded by hand.
            raise FileNotFoundError(str(error)) from error

    def encoded(
        self,
        split: str,
        *,
        shuffle_seed: int | None = None,
        skip: int = 0,
        names: Collection[str] | None = None,
    ) -> tf.data.Dataset:
        """The encoded images of a split.

        A folder is shuffled as a whole. TFDS data sets, which must be read
        sequentially, are shuffled by file, by interleaving several files, and
        by a buffer of some thousand images.

        Args:
            split: Name of the split.
            shuffle_seed: Seed of the order; `None` for the stored order.
                Defaults to `None`.
            skip: Number of images to skip at the beginning. Defaults to 0.
            names: Names of the images to read. Defaults to `None`, all.

        Returns:
            A `tf.data.Dataset` of name, encoded bytes, and label, int64.

        Raises:
            ValueError: if there is no such split.
        """
        self.num_examples(split)  # refuses unknown splits
        if self.is_folder:
            files, labels = self._files(split)
            order = np.arange(len(files))
            if shuffle_seed is not None:
                order = np.random.default_rng(shuffle_seed).permutation(order)
            order = order[skip:]
            if names is not None:
                order = order[np.isin(files[order], [*names])]
            return tf.data.Dataset.from_tensor_slices(
                (files[order], labels[order])
            ).map(lambda name, label: (name, tf.io.read_file(name), label))
        options = tf.data.Options()
        options.deterministic = True
        with quiet("tensorflow"):  # `add_tfds_id` calls a deprecated function
            examples = self.builder.as_dataset(
                split=split,
                decoders={"image": tfds.decode.SkipDecoding()},
                shuffle_files=shuffle_seed is not None,
                read_config=tfds.ReadConfig(
                    shuffle_seed=shuffle_seed, options=options, add_tfds_id=True
                ),
            )
        if shuffle_seed is not None:
            # Encoded images take far less memory than decoded ones.
            examples = examples.shuffle(
                _SHUFFLE_BUFFER,
                seed=shuffle_seed,
                reshuffle_each_iteration=False,
            )
        examples = examples.skip(skip)
        if names is not None:
            wanted = tf.constant([*names], tf.string)
            examples = examples.filter(
                lambda example: tf.reduce_any(example["tfds_id"] == wanted)
            )
        return examples.map(
            lambda example: (
                example["tfds_id"],
                example["image"],
                example["label"],
            )
        )

    def _files(self, split):
        """Paths and labels of a folder's images, the same on every machine."""
        files = [
            (str(path), label)
            for label, name in enumerate(self.labels)
            for path in sorted(pathlib.Path(self.name, split, name).glob("*"))
            if path.suffix.lower() in _SUFFIXES
        ]
        expected = self.num_examples(split)
        if len(files) != expected:
            raise ValueError(
                f"`dataset` must not change while in use; {self.name} had "
                f"{expected} images in {split}, now {len(files)}."
            )
        names, labels = zip(*files, strict=True)
        return np.array(names), np.array(labels, "int64")

    def pixels(
        self,
        split: str,
        transform: EvalTransform,
        *,
        names: Collection[str] | None = None,
    ) -> tf.data.Dataset:
        """The images of a split, resized and cropped, in order.

        Args:
            split: Name of the split.
            transform: An `EvalTransform`.
            names: Names of the images to read, such as some of
                `Evaluation.image_names`. Defaults to `None`, all.

        Returns:
            A `tf.data.Dataset` of RGB pixels in [0, 255], float32
            `(image_size, image_size, 3)`, and labels, int64.

        Raises:
            ValueError: if there is no such split.
        """
        return self.encoded(split, names=names).map(
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
        data: A prepared `ImageData`.
        split: Name of the split.
        transform: An `EvalTransform`.
        count: Maximum number of images.
        shuffle_seed: Seed of a random choice; `None` for the first images.
            Defaults to `None`.

    Returns:
        RGB pixels in [0, 255], float32 `(images, image_size, image_size, 3)`,
        and labels, int64 `(images,)`.

    Raises:
        ValueError: if an image cannot be decoded, or there are none.

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
                f"{name.decode()}: {error}"
            ) from error
        labels.append(label)
    if not images:
        raise ValueError(
            f"`dataset` must have images; the split {split} has none."
        )
    return np.stack(images), np.array(labels)


def locate(name: str | os.PathLike) -> str:
    """A data set's name unchanged, a folder's as an absolute path.

    A name that TFDS knows is that data set, even if there is a folder of the
    same name; `./name` is the folder.

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
    name: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    *,
    split_file=None,
) -> ImageData:
    """Find a data set by name or folder, without downloading it.

    Args:
        name: Name of a TFDS builder with an image and a label, such as
            `"digits"` (part of this package) or `"cifar10"`; or path of a
            folder `<split>/<class>/<image>.jpg` or `.png` with the splits
            train and validation (or val, valid, test), see `locate`.
        data_dir: Where TFDS keeps its data sets. Defaults to `None`, TFDS'
            own default: `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Returns:
        An `ImageData`.

    Raises:
        ValueError: if there is no such data set, or it does not have images
            with one label each.

    Example:

    >>> open_dataset("digits").labels[:3]
    ['0', '1', '2']
    """
    name = locate(name)
    data = (
        _open_folder(name)
        if os.path.isdir(name)
        else _open_tfds(name, data_dir)
    )
    if len(data.labels) < 2:
        raise ValueError(
            f"`dataset` must have two classes or more; {name} has "
            f"{_listed(data.labels)}."
        )
    return data


def _open_folder(name):
    """A folder of images by class."""
    data = ImageData(name, tfds.ImageFolder(name), is_folder=True)
    splits = data.builder.info.splits
    if not any(split.num_examples for split in splits.values()):
        raise ValueError(
            "`dataset` must be a folder of <split>/<class>/<image>.jpg or "
            f".png; there is no image two folders below {name}."
        )
    return data


def _open_tfds(name, data_dir):
    """A data set of TensorFlow Datasets."""
    try:
        builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except (
        tfds.core.DatasetNotFoundError,
        AssertionError,  # no such version
        ValueError,  # no such configuration
    ) as error:
        raise ValueError(
            "`dataset` must be a folder of images by class or a name that "
            f"tfds.list_builders() knows, such as digits or cifar10; "
            f"got {name!r} ({first_line(error)})"
        ) from error
    if not (
        {"image", "label"} <= set(builder.info.features)
        and isinstance(builder.info.features["label"], tfds.features.ClassLabel)
    ):
        raise ValueError(
            "`dataset` must have the features image and label (one class); "
            f"{name} has {_listed(builder.info.features)}."
        )
    return ImageData(name, builder)


def _listed(names):
    return ", ".join(names)
