"""Labelled images as batches: TensorFlow Datasets, or a folder by class."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable
from collections.abc import Collection

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_resnext.images import JPEG_METHOD
from keras_resnext.images import decode
from keras_resnext.preprocessing import preprocess_input
from keras_resnext.preprocessing import resize_and_crop
from keras_resnext.training import augment
from keras_resnext.training import digits as _digits  # noqa: F401 (registers)
from keras_resnext.training.recipe import Recipe

# The split to watch and to judge by, whatever a data set calls it. ImageNet's
# "test" carries no labels, so it comes last.
HELD_OUT_SPLITS = ("validation", "val", "valid", "test")
_SHUFFLE_BUFFER = 4096  # images
_SUFFIXES = (".jpg", ".jpeg", ".png")  # those of `tfds.ImageFolder`
_MIX = -1  # no image's number
_NO_LABEL = -1  # of what only fills the last batch


@dataclasses.dataclass(frozen=True)
class Share:
    """Which images of each batch one input pipeline reads.

    Args:
        replicas: Replicas in all, each of which takes a batch at a time.
        pipelines: Input pipelines in all, one for each machine.
        pipeline: Number of this one, from 0.

    Example:

    >>> Share(replicas=8, pipelines=2, pipeline=1)  # the second of two machines
    """

    replicas: int = 1
    pipelines: int = 1
    pipeline: int = 0


WHOLE = Share()


@dataclasses.dataclass(frozen=True)
class ImageData:
    """A data set whose classes are known and whose images may yet come.

    Made by `open_dataset`.

    Args:
        builder: The TFDS builder behind it.
        folder: The folder of images, or `None`.
    """

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
        image_size: int,
        *,
        crop: float = 1.0,
        without: Collection[str] = (),
    ) -> tf.data.Dataset:
        """All images of a split as a network is shown them, in order.

        Args:
            split: Name of the split.
            image_size: Side of the images, in pixels.
            crop: See `Recipe.eval_crop`. Defaults to 1.
            without: Names of images to leave out, such as those that
                `evaluate` found to be none. Defaults to none.

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
                resize_and_crop(decode(encoded), image_size, crop=crop),
                label,
            ),
            num_parallel_calls=tf.data.AUTOTUNE,
        )


def read_images(
    data: ImageData,
    split: str,
    show: Callable,
    *,
    count: int,
    shuffle_seed: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Some images of a split, in memory.

    Args:
        data: An `ImageData`, prepared.
        split: Name of the split.
        show: What makes an array of one size of each, uint8 `(height, width,
            3)`.
        count: How many images, if there are so many.
        shuffle_seed: Seed of which; `None` for the first. Defaults to `None`.

    Returns:
        What `show` returns, stacked, and labels, `(images,)`.

    Raises:
        ValueError: if one cannot be decoded, or there is no such split.

    Example:

    >>> show = functools.partial(resize_and_crop, size=16)
    >>> images, labels = read_images(data, "train", show, count=100)
    """
    examples = data.encoded(split, shuffle_seed=shuffle_seed).take(count)
    images, labels = [], []
    for name, encoded, label in examples.as_numpy_iterator():
        try:
            image = decode(encoded)
        except tf.errors.InvalidArgumentError as error:
            raise ValueError(
                "`dataset` must have images that can be decoded; cannot decode "
                f"{name.decode()}."
            ) from error
        images.append(np.asarray(show(image.numpy()), "float32"))
        labels.append(label)
    if not images:
        raise ValueError(
            f"`dataset` must have images; the split {split} has none."
        )
    return np.stack(images), np.array(labels)


class BadImages:
    """Names of images that could not be decoded.

    Args:
        skip: Whether they are left out, or an error. Defaults to `False`.

    Example:

    >>> bad = BadImages(skip=True)
    >>> for images, labels, weights in training_batches(..., bad=bad):
    ...     bad.check()
    >>> bad.names
    ['photos/train/cat/7.jpg']
    """

    def __init__(self, skip: bool = False):
        self.skip = skip
        self._names = {}  # in the order in which they came up

    @property
    def names(self) -> list[str]:
        """The names found so far, each once."""
        return list(self._names)

    def check(self) -> None:
        """Raise an error that names them, unless they are left out.

        Raises:
            ValueError: if there are any and `skip` is false.
        """
        if self._names and not self.skip:
            raise ValueError(
                "`dataset` must have images that can be decoded, or "
                "`on_bad_image` must be skip; cannot decode "
                f"{', '.join(self.names[:5])}."
            )

    def guard(self, examples, load, nothing, batch_size):
        """Map `load` and batch; `nothing` stands for what does not decode.

        Args:
            examples: A `tf.data.Dataset` of tuples that begin with a name and
                encoded bytes, a multiple of `batch_size`.
            load: A function of such a tuple's parts to a tuple.
            nothing: What stands for that where the bytes are no image.
            batch_size: Examples in a batch.

        Returns:
            A `tf.data.Dataset` of batches of what `load` returns, in order,
            with weights at the end: float32, 0 for no image, else 1. Any
            other failure of `load` is passed on.
        """

        def note(name):
            self._names[name.decode()] = True
            return np.float32(0)

        def weighed(*example):
            return *load(*example), 1.0

        def noted(name, *_):
            weight = tf.numpy_function(note, [name], tf.float32)
            return *nothing, tf.ensure_shape(weight, ())

        def decodes(name, encoded, *_):
            return tf.size(decode(encoded)) > 0

        def careful(*example):
            this = tf.data.Dataset.from_tensors(example)
            good = this.map(weighed).ignore_errors()
            failed = this.filter(decodes).ignore_errors().map(weighed)
            bad = this.map(noted)
            return good.concatenate(failed).concatenate(bad).take(1)

        def one_batch(*batch):
            each = tf.data.Dataset.from_tensor_slices(batch)
            # What is wrong with an image becomes known by decoding it; only
            # a batch that has such images is loaded one by one.
            fast = each.map(weighed, num_parallel_calls=tf.data.AUTOTUNE)
            fast = fast.batch(batch_size, drop_remainder=True).ignore_errors()
            slow = each.flat_map(careful).batch(batch_size, drop_remainder=True)
            return fast.concatenate(slow).take(1)

        batches = examples.batch(batch_size, drop_remainder=True)
        return batches.interleave(
            one_batch, cycle_length=2, num_parallel_calls=2
        )


def _decode_window(encoded, smallest_area, seed):
    """A random window of an image; of a JPEG, nothing else is decoded."""

    def jpeg():
        window = augment.random_window(
            tf.io.extract_jpeg_shape(encoded), smallest_area, seed
        )
        return tf.io.decode_and_crop_jpeg(
            encoded, window, channels=3, dct_method=JPEG_METHOD
        )

    def other():
        image = decode(encoded)
        window = augment.random_window(tf.shape(image), smallest_area, seed)
        top, left, height, width = tf.unstack(window)
        return image[top : top + height, left : left + width]

    image = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    return tf.ensure_shape(image, (None, None, 3))


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
        data = ImageData(tfds.ImageFolder(name), name)
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
    data: ImageData,
    recipe: Recipe,
    epoch: int,
    *,
    bad: BadImages | None = None,
    first_step: int = 0,
    share: Share = WHOLE,
) -> tf.data.Dataset:
    """An epoch of shuffled, augmented batches of pixels.

    Every random change to an image follows from `recipe.seed` and the
    image's place in training, whichever share it is in; only mixup and CutMix
    look at the other images of a replica's batch. The images that would not
    fill the last batch are left out.

    Args:
        data: An `ImageData`, prepared.
        recipe: A `Recipe`.
        epoch: Number of the epoch, from 0.
        bad: Where images that cannot be decoded are noted; they have a weight
            of 0. Defaults to `None`, which nobody looks at.
        first_step: Steps of the epoch that are done already. Defaults to 0.
        share: Which part of each batch this pipeline reads. Defaults to all.

    Returns:
        A `tf.data.Dataset` of RGB pixels in [0, 255], `(batch, image_size,
        image_size, 3)`, uint8, or float32 with mixup or CutMix;
        probabilities, float32 `(batch, classes)`; and weights, float32
        `(batch,)`. `batch` is a replica's.
    """
    size, classes = recipe.image_size, len(data.labels)
    steps = data.num_examples("train") // recipe.batch_size
    before = first_step * recipe.batch_size
    # Hashed, or epoch 1 of seed 0 would be epoch 0 of seed 1.
    (order,) = np.random.SeedSequence((recipe.seed, epoch)).generate_state(1)
    examples = data.encoded("train", shuffle_seed=int(order), skip=before)

    def load(name, encoded, label, number):
        seed = tf.stack([tf.constant(recipe.seed, tf.int64), number])
        image = _augmented(encoded, recipe, seed)
        return image, tf.one_hot(label, classes)

    numbers = tf.data.Dataset.counter(epoch * data.num_examples("train"))
    examples = (
        tf.data.Dataset.zip(examples, numbers.skip(before))
        .map(lambda example, number: (*example, number))
        .take((steps - first_step) * recipe.batch_size)
        .shard(share.pipelines, share.pipeline)
    )
    nothing = tf.zeros((size, size, 3), tf.uint8), tf.zeros(classes)
    local_size = recipe.batch_size // share.replicas
    batches = (bad or BadImages()).guard(examples, load, nothing, local_size)
    if recipe.mixup or recipe.cutmix:
        mix = augment.make_mix(recipe.mixup, recipe.cutmix)
        first = ((epoch * steps + first_step) * share.replicas) + share.pipeline

        def mixed(number, batch):
            images, labels, weights = batch
            seed = tf.random.experimental.stateless_fold_in(
                tf.constant([recipe.seed, _MIX], tf.int64), number
            )
            images = tf.cast(images, tf.float32)
            return *mix(images, labels, seed), weights

        numbers = tf.data.Dataset.counter(first, share.pipelines)
        batches = tf.data.Dataset.zip(numbers, batches).map(
            mixed, num_parallel_calls=tf.data.AUTOTUNE
        )
    return batches.prefetch(tf.data.AUTOTUNE)


def _augmented(encoded, recipe, seed):
    """One image of a training batch, uint8."""
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 7))
    size = recipe.image_size
    if recipe.crop_area:
        window = _decode_window(encoded, recipe.crop_area, seeds[0])
        image = _resize(window, size, recipe.interpolation)
    else:
        image = resize_and_crop(decode(encoded), size)
    image = tf.ensure_shape(image, (size, size, 3))
    if recipe.crop_padding:
        image = augment.pad_and_crop(image, recipe.crop_padding, seeds[1])
    if recipe.trivial_augment:
        image = augment.trivial_augment(image, seeds[3])
    if recipe.color_jitter:
        image = augment.color_jitter(image, recipe.color_jitter, seeds[4])
    if recipe.lighting:
        image = augment.lighting(image, recipe.lighting, seeds[5])
    # A quarter of the memory to move, here and to an accelerator.
    image = tf.saturate_cast(tf.round(image), tf.uint8)
    if recipe.flip:
        image = augment.flip(image, seeds[2])
    if recipe.random_erasing:
        image = augment.erase(image, recipe.random_erasing, seeds[6])
    return tf.ensure_shape(image, (size, size, 3))


def _resize(image, size, interpolation):
    """Antialiased where pixels would be passed over, at half size and less.

    Above that, antialiasing takes longer than decoding does.
    """

    def resize(antialias):
        resized = tf.image.resize(
            image, (size, size), interpolation, antialias=antialias
        )
        return tf.clip_by_value(resized, 0, 255)  # bicubic overshoots

    return tf.cond(
        tf.reduce_max(tf.shape(image)[:2]) >= 2 * size,
        lambda: resize(True),
        lambda: resize(False),
    )


def evaluation_batches(
    data: ImageData,
    split: str,
    image_size: int,
    batch_size: int,
    *,
    transform: Callable | None = None,
    crop: float = 1.0,
    bad: BadImages | None = None,
    share: Share = WHOLE,
) -> tf.data.Dataset:
    """Every image of a split once, in order, for the network.

    Args:
        data: An `ImageData`, prepared.
        split: Name of the split.
        image_size: Side of the images, in pixels.
        batch_size: Images in a batch of all replicas together, rounded up to
            a multiple of them.
        transform: What makes network input, float32 `(image_size,
            image_size, 3)`, of a stored image, uint8 `(height, width, 3)`,
            both NumPy's. Defaults to `None`, `resize_and_crop` and
            `preprocess_input`.
        crop: See `Recipe.eval_crop`. Defaults to 1.
        bad: Where images that cannot be decoded are noted; they have a weight
            of 0. Defaults to `None`, which nobody looks at.
        share: Which part this pipeline reads. Defaults to all.

    Returns:
        A `tf.data.Dataset` of preprocessed images, float32 `(batch,
        image_size, image_size, 3)`, labels, int64 `(batch,)`, below 0 for
        what only fills the last batch, and weights, float32 `(batch,)`, 0 for
        that too.
    """
    shape = (image_size, image_size, 3)

    def load(name, encoded, label):
        image = tf.cond(
            label == _NO_LABEL, lambda: nothing[0], lambda: shown(encoded)
        )
        return image, label

    def shown(encoded):
        image = decode(encoded)
        if transform is None:
            image = resize_and_crop(image, image_size, crop=crop)
            return preprocess_input(image)
        image = tf.numpy_function(
            transform, [image], tf.float32, stateful=False
        )
        return tf.ensure_shape(image, shape)

    def unpadded(images, labels, weights):
        weights *= tf.cast(labels != _NO_LABEL, tf.float32)
        return images, labels, weights

    nothing = tf.zeros(shape), tf.constant(0, tf.int64)
    local_size = -(-batch_size // share.replicas)
    steps = -(-data.num_examples(split) // (local_size * share.replicas))
    # All replicas take as many steps, or some would wait for ever.
    none = tf.constant(_NO_LABEL, tf.int64)
    padding = tf.data.Dataset.from_tensors(("", "", none)).repeat()
    examples = (
        data.encoded(split)
        .shard(share.pipelines, share.pipeline)
        .concatenate(padding)
        .take(steps * local_size * share.replicas // share.pipelines)
    )
    batches = (bad or BadImages()).guard(examples, load, nothing, local_size)
    return batches.map(unpadded).prefetch(tf.data.AUTOTUNE)


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
