"""Find and open data sets: TensorFlow Datasets, or a folder by class."""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Collection

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_resnext.extras import first_line
from keras_resnext.extras import suggest
from keras_resnext.images import decode
from keras_resnext.quiet import quiet
from keras_resnext.training import digits as _digits  # noqa: F401 (registers)
from keras_resnext.training.fingerprint import Fingerprint
from keras_resnext.training.fingerprint import Part
from keras_resnext.training.folder_check import check_folder
from keras_resnext.training.folders import VAL_SPLITS
from keras_resnext.training.folders import ImageFolder
from keras_resnext.training.folders import open_folder
from keras_resnext.transforms import EvalTransform

_SHUFFLE_BUFFER = 4096  # images
HELD_OUT = "held_out"  # the split that `val_fraction` makes
# `namespace:name`; a digit or a star begins a version instead.
_COMMUNITY = re.compile(r"[\w-]+:(?![\d*])")


@dataclasses.dataclass(frozen=True)
class ImageData:
    """A labelled data set, as `open_dataset` returns it.

    Args:
        name: Its name or folder.
        builder: Its TFDS builder. Defaults to `None`, for a folder.
        folder: The `ImageFolder`. Defaults to `None`, for TFDS.
        val_fraction: Part of the training split that is the split `held_out`
            instead; of TFDS only. Defaults to 0.

    Example:

    >>> data = open_dataset("photos")
    >>> data.labels, data.val_split, data.num_examples("train")
    (['flower', 'temple'], 'validation', 16)
    """

    name: str
    builder: tfds.core.DatasetBuilder | None = None
    folder: ImageFolder | None = None
    val_fraction: float = 0.0

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of images by class."""
        return self.folder is not None

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of their indices.

        Some data sets have indices for names until they are prepared.
        """
        if self.is_folder:
            return self.folder.labels
        return list(self.builder.info.features["label"].names)

    @property
    def val_split(self) -> str:
        """Name of the validation split."""
        if self.val_fraction:
            return HELD_OUT
        sizes = self._sizes
        for split in VAL_SPLITS:
            if sizes.get(split):
                return split
        raise ValueError(
            "`dataset` must have images in one of the splits "
            f"{_listed(VAL_SPLITS)}; {self.name} has {_listed(sizes)}."
        )

    @property
    def image_size(self) -> int | None:
        """Shorter side of the images in pixels; `None` if they differ."""
        if self.is_folder:
            return None
        height, width, _ = self.builder.info.features["image"].shape
        return min(height, width) if height and width else None

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """What training depends on: of a TFDS data set, once it is prepared."""
        splits = list(dict.fromkeys(["train", self.val_split]))
        if self.is_folder:
            return Fingerprint.of_folder(self.folder, splits)
        sizes = self._sizes
        return Fingerprint(
            self.builder.info.full_name,
            {split: Part(sizes[split], "") for split in splits},
        )

    @property
    def _sizes(self):
        """Number of images in each split."""
        if self.is_folder:
            return self.folder.sizes
        splits = self.builder.info.splits
        if not splits:
            raise ValueError(
                f"`dataset` must be prepared; call `prepare()` of {self.name} "
                "first."
            )
        sizes = {name: split.num_examples for name, split in splits.items()}
        if self.val_fraction and sizes.get("train"):
            images = sizes["train"]
            sizes[HELD_OUT] = round(self.val_fraction * images)
            sizes["train"] -= sizes[HELD_OUT]
            if not (sizes["train"] and sizes[HELD_OUT]):
                raise ValueError(
                    "`val_fraction` must leave images to train and to validate "
                    f"on; got {self.val_fraction} of {images} images."
                )
        return sizes

    def _tfds_split(self, split):
        """A split as TFDS calls it."""
        if not self.val_fraction or split not in ("train", HELD_OUT):
            return split
        trained = self.num_examples("train")
        return (
            f"train[{trained}:]" if split == HELD_OUT else f"train[:{trained}]"
        )

    def num_examples(self, split: str) -> int:
        """Number of images in a split.

        Raises:
            ValueError: if there is no such split, or the data set is not
                prepared.
        """
        sizes = self._sizes
        if split not in sizes:
            raise ValueError(
                f"`split` must be one of those of {self.name}, "
                f"{_listed(sizes)}; got {split!r}."
            )
        return sizes[split]

    def class_counts(self, split: str) -> dict[str, int]:
        """Number of images of each class in a split.

        A folder was counted when it was opened; of a TFDS data set, which
        must be prepared, all labels are read.

        Args:
            split: Name of the split.

        Returns:
            A dict with all classes, in the order of their indices.

        Raises:
            ValueError: if there is no such split.

        Example:

        >>> open_dataset("photos").class_counts("train")
        {'flower': 8, 'temple': 8}
        """
        self.num_examples(split)  # refuses unknown splits
        if self.is_folder:
            return self.folder.class_counts(split)
        labels = self.encoded(split).map(lambda name, image, label: label)
        counts = np.zeros(len(self.labels), "int64")
        for batch in labels.batch(4096).as_numpy_iterator():
            counts += np.bincount(batch, minlength=len(counts))
        return dict(zip(self.labels, counts.tolist(), strict=True))

    def check(self) -> list[str]:
        """Problems that training would not show, see `check_folder`.

        Returns:
            A line of text for each; none for data sets of TFDS.

        Example:

        >>> for line in open_dataset("photos").check():
        ...     print(line)
        """
        return check_folder(self.folder) if self.is_folder else []

    def write_split(self, path: str | os.PathLike[str]) -> None:
        """Write the validation split that was made here, for `open_dataset`.

        Nothing happens if the data set has its own splits.

        Args:
            path: A JSON file, replaced if it exists.

        Example:

        >>> open_dataset("photos").write_split("runs/x/split.json")
        """
        if self.is_folder and self.folder.made_split:
            self.folder.made_split.write(path)

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
            return self._encoded_files(split, shuffle_seed, skip, names)
        options = tf.data.Options()
        options.deterministic = True
        with quiet("tensorflow"):  # `add_tfds_id` calls a deprecated function
            examples = self.builder.as_dataset(
                split=self._tfds_split(split),
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

    def _encoded_files(self, split, shuffle_seed, skip, wanted):
        """What `encoded` returns, of a folder."""
        names, labels = self.folder.splits[split]
        order = np.arange(len(names))
        if shuffle_seed is not None:
            order = np.random.default_rng(shuffle_seed).permutation(order)
        order = order[skip:]
        if wanted is not None:
            relative = [
                os.path.relpath(path, self.name).encode() for path in wanted
            ]
            order = order[np.isin(names[order], relative)]

        def read(name, label):
            path = tf.strings.join([self.name, name], "/")
            return path, tf.io.read_file(path), label

        return tf.data.Dataset.from_tensor_slices(
            (names[order], labels[order])
        ).map(read)

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
                transform.pixels_in_graph(
                    decode(encoded, shrink_to=transform.shrink_to)
                ),
                label,
            ),
            num_parallel_calls=tf.data.AUTOTUNE,
        )


def read_images(
    data: ImageData,
    split: str,
    transform: EvalTransform,
    *,
    count: int | None = None,
    shuffle_seed: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Read some images of a split into memory.

    Args:
        data: A prepared `ImageData`.
        split: Name of the split.
        transform: An `EvalTransform`.
        count: Maximum number of images. Defaults to `None`, all.
        shuffle_seed: Seed of a random choice; `None` for the first images.
            Defaults to `None`.

    Returns:
        RGB pixels in [0, 255], float32 `(images, image_size, image_size, 3)`,
        and labels, int64 `(images,)`.

    Raises:
        ValueError: if an image cannot be decoded, or there are none.

    Example:

    >>> data = open_dataset("digits")
    >>> transform = EvalTransform.from_crop_pct(16)
    >>> images, labels = read_images(data, "train", transform, count=100)
    >>> images.shape
    (100, 16, 16, 3)
    """
    examples = data.encoded(split, shuffle_seed=shuffle_seed)
    if count is not None:
        examples = examples.take(count)
    images, labels = [], []
    for name, encoded, label in examples.as_numpy_iterator():
        try:
            images.append(transform.pixels(encoded).astype("float32"))
        except ValueError as error:
            raise ValueError(
                "`dataset` must have images that can be decoded; cannot decode "
                f"{name.decode()}: {first_line(error)}"
            ) from error
        labels.append(label)
    if not images:
        raise ValueError(
            f"`dataset` must have images; the split {split} has none."
        )
    return np.stack(images), np.array(labels)


def locate(name: str | os.PathLike[str]) -> str:
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
    is_name = os.path.basename(name) == name and name in _known_names()
    return str(folder.resolve()) if folder.is_dir() and not is_name else name


def open_dataset(
    name: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    split_file: str | os.PathLike[str] | None = None,
    val_fraction: float = 0.0,
) -> ImageData:
    """Find a data set by name or folder, without downloading it.

    Args:
        name: Name of a TFDS builder with an image and a label, such as
            `"digits"` (part of this package) or `"cifar10"`; or path of a
            folder `<split>/<class>/<image>`, with the splits train and
            validation (or val, valid, test), or `<class>/<image>`, of which a
            fifth becomes the validation split; see `locate` and
            `keras_resnext.training.folders.open_folder`.
        data_dir: Where TFDS keeps its data sets. Defaults to `None`, TFDS'
            own default: `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
        split_file: What `ImageData.write_split` wrote; used if the file
            exists. Defaults to `None`.
        val_fraction: Part of a TFDS training split that becomes the
            validation split `held_out`, see `Recipe`. Defaults to 0.

    Returns:
        An `ImageData`.

    Raises:
        ValueError: if there is no such data set, it does not have images with
            one label each, or `split_file` does not fit it.

    Example:

    >>> open_dataset("digits").labels[:3]
    ['0', '1', '2']
    """
    name = locate(name)
    if not 0 <= val_fraction < 1:
        raise ValueError(
            f"`val_fraction` must be in [0, 1); got {val_fraction!r}."
        )
    if not os.path.isdir(name):
        data = _open_tfds(name, data_dir, val_fraction)
    elif val_fraction:
        raise ValueError(
            "`val_fraction` must be 0 with a folder, which has its own "
            f"validation split or gets one; got {val_fraction}."
        )
    else:
        data = ImageData(name, folder=open_folder(name, split_file))
    if len(data.labels) < 2:
        raise ValueError(
            f"`dataset` must have two classes or more; {name} has "
            f"{_listed(data.labels)}."
        )
    return data


def _known_names():
    """Names of the data sets that TFDS installs, or that are registered.

    It would ask two buckets of Google's for those of communities.
    """
    return tfds.list_builders(with_community_datasets=False)


def _open_tfds(name, data_dir, val_fraction):
    """A data set of TensorFlow Datasets."""
    if _COMMUNITY.match(name):
        raise ValueError(
            "`dataset` must be a folder of images by class or a data set that "
            "TFDS installs, not one of a community, whose files or code it "
            f"would fetch; got {name!r}."
        )
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
            f"got {name!r}, which is no folder ({first_line(error)})."
            f"{suggest(name, _known_names())}"
        ) from error
    if not (
        {"image", "label"} <= set(builder.info.features)
        and isinstance(builder.info.features["label"], tfds.features.ClassLabel)
    ):
        raise ValueError(
            "`dataset` must have the features image and label (one class); "
            f"{name} has {_listed(builder.info.features)}."
        )
    return ImageData(name, builder, val_fraction=val_fraction)


def _listed(names):
    return ", ".join(names)
