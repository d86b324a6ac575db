"""Labelled images as batches: TensorFlow Datasets, or a folder by class."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_resnext.preprocessing import preprocess_input
from keras_resnext.preprocessing import resize_and_crop
from keras_resnext.training import augment
from keras_resnext.training import digits as _digits  # noqa: F401 (registers)
from keras_resnext.training.recipe import Recipe

# The split to watch and to judge by, whatever a data set calls it. ImageNet's
# "test" carries no labels, so it comes last.
HELD_OUT_SPLITS = ("validation", "val", "valid", "test")
_SHUFFLE_BUFFER = 10_000  # images


@dataclasses.dataclass(frozen=True)
class ImageData:
    """A data set whose classes are known and whose images may yet come.

    Made by `open_dataset`.

    Args:
        builder: The TFDS builder behind it.
    """

    builder: tfds.core.DatasetBuilder

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of their indices.

        Some data sets know them only once they are prepared, and have the
        indices instead until then.
        """
        return list(self.builder.info.features["label"].names)

    @property
    def held_out_split(self) -> str:
        """Name of the split that is not trained on; it holds images."""
        for split in HELD_OUT_SPLITS:
            if split in self.builder.info.splits and self.num_examples(split):
                return split
        raise ValueError(
            "`dataset` must have images in one of the splits "
            f"{_listed(HELD_OUT_SPLITS)}; {self.builder.name} has "
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
        if not isinstance(self.builder, tfds.ImageFolder):
            try:
                self.builder.download_and_prepare()
            except AssertionError as error:
                # How TFDS says that files must be fetched by hand first.
                raise FileNotFoundError(str(error)) from error

    def images(
        self,
        split: str,
        image_size: int,
        *,
        shuffle_seed: int | None = None,
        transform: Callable | None = None,
    ) -> tf.data.Dataset:
        """All images of a split.

        Args:
            split: Name of the split.
            image_size: Side of the images, in pixels.
            shuffle_seed: Seed of the order; `None` for the data set's own.
                Defaults to `None`.
            transform: What makes network input, float32 `(image_size,
                image_size, 3)`, of a stored image, uint8 `(height, width, 3)`,
                both NumPy's. Defaults to `None`, `resize_and_crop`.

        Returns:
            A `tf.data.Dataset` of RGB pixels in [0, 255], float32
            `(image_size, image_size, 3)`, or what `transform` makes of them,
            and labels, int64.
        """
        decode = self.builder.info.features["image"].decode_example
        size = (image_size, image_size, 3)

        def load(example):
            image = decode(example["image"])
            if transform is None:
                image = resize_and_crop(image, image_size)
            if image.shape[-1] == 1:
                image = tf.image.grayscale_to_rgb(image)
            if transform is not None:
                image = tf.numpy_function(
                    transform, [image], tf.float32, stateful=False
                )
                image = tf.ensure_shape(image, size)
            return image, example["label"]

        self.num_examples(split)  # says so if there is no such split
        images = self.builder.as_dataset(
            split=split, decoders={"image": tfds.decode.SkipDecoding()}
        )
        if shuffle_seed is not None:
            # Encoded images take a small part of the memory of pixels.
            images = images.shuffle(
                _SHUFFLE_BUFFER,
                seed=shuffle_seed,
                reshuffle_each_iteration=False,
            )
        return images.map(load, num_parallel_calls=tf.data.AUTOTUNE)


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
            train and validation (or val, valid, test), see `locate`. Images
            are taken as they are stored; a photo's note of how the camera was
            held (EXIF) is not followed.
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
        data = ImageData(tfds.ImageFolder(name))
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
    return _check_classes(ImageData(builder), name)


def training_batches(
    data: ImageData, recipe: Recipe, epoch: int
) -> tf.data.Dataset:
    """One epoch of shuffled, augmented batches for the network.

    Every random change follows from `recipe.seed` and `epoch`; so does the
    order, with TensorFlow's global seed, which `train` sets. The last batch is
    left out if it is not full.

    Args:
        data: An `ImageData`, prepared.
        recipe: A `Recipe`.
        epoch: Number of the epoch, from 0.

    Returns:
        A `tf.data.Dataset` of preprocessed images, float32 `(batch_size,
        image_size, image_size, 3)`, and labels, int64 `(batch_size,)`.
    """
    first_image = epoch * data.num_examples("train")

    def change(number, example):
        image, label = example
        seed = tf.stack([tf.constant(recipe.seed, tf.int64), number])
        crop_seed, flip_seed = tf.unstack(
            tf.random.experimental.stateless_split(seed, 2)
        )
        if recipe.crop_padding:
            image = augment.pad_and_crop(image, recipe.crop_padding, crop_seed)
        if recipe.flip:
            image = augment.flip(image, flip_seed)
        return preprocess_input(image), label

    # Hashed, or epoch 1 of seed 0 would be epoch 0 of seed 1.
    (order,) = np.random.SeedSequence((recipe.seed, epoch)).generate_state(1)
    images = data.images("train", recipe.image_size, shuffle_seed=int(order))
    return (
        tf.data.Dataset.zip(tf.data.Dataset.counter(first_image), images)
        .map(change, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(recipe.batch_size, drop_remainder=True)
        .prefetch(tf.data.AUTOTUNE)
    )


def evaluation_batches(
    data: ImageData,
    split: str,
    image_size: int,
    batch_size: int,
    transform: Callable | None = None,
) -> tf.data.Dataset:
    """Every image of a split once, in order, for the network.

    Args:
        data: An `ImageData`, prepared.
        split: Name of the split.
        image_size: Side of the images, in pixels.
        batch_size: Images in a batch; the last one may hold fewer.
        transform: See `ImageData.images`. Defaults to `None`, resizing and
            `preprocess_input`.

    Returns:
        A `tf.data.Dataset` of preprocessed images, float32 `(batch,
        image_size, image_size, 3)`, and labels, int64 `(batch,)`.
    """
    images = data.images(split, image_size, transform=transform)
    if transform is None:
        images = images.map(
            lambda image, label: (preprocess_input(image), label),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    return images.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def _check_classes(data, name):
    if len(data.labels) < 2:
        raise ValueError(
            f"`dataset` must have two classes or more; {name} has "
            f"{_listed(data.labels)}."
        )
    return data


def _listed(names):
    return ", ".join(names)
