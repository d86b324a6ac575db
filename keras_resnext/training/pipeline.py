"""Input pipelines: batches for training and for evaluation."""

import dataclasses

import numpy as np
import tensorflow as tf

from keras_resnext.classifier import check_on_bad_image
from keras_resnext.exif import exif_orientation
from keras_resnext.exif import stored_window
from keras_resnext.exif import upright
from keras_resnext.exif import upright_shape
from keras_resnext.images import JPEG_METHOD
from keras_resnext.images import decode
from keras_resnext.images import jpeg_shape
from keras_resnext.training import augment
from keras_resnext.training.datasets import ImageData
from keras_resnext.training.recipe import Recipe
from keras_resnext.transforms import EvalTransform

_MIX = -1  # in a seed, where images have their number
_NO_LABEL = -1  # of padding in the last batch

# Traced once per process, not several times in the pipeline of each epoch.
_ENCODED = tf.TensorSpec((), tf.string)
_exif_orientation = tf.function(
    exif_orientation, autograph=False, input_signature=[_ENCODED]
)


@tf.function(
    autograph=False, input_signature=[_ENCODED, tf.TensorSpec((), tf.int32)]
)
def _decode(encoded, shrink_to):
    return decode(encoded, shrink_to=shrink_to)


@dataclasses.dataclass(frozen=True)
class InputShard:
    """Which images of each batch one input pipeline reads.

    Args:
        replicas: Number of replicas, each of which takes a batch per step.
            Defaults to 1.
        pipelines: Number of input pipelines, one per worker. Defaults to 1.
        pipeline: Index of this one. Defaults to 0.

    Example:

    >>> InputShard(replicas=8, pipelines=2, pipeline=1)  # second of two workers
    """

    replicas: int = 1
    pipelines: int = 1
    pipeline: int = 0


WHOLE_INPUT = InputShard()


class BadImages:
    """Collects the names of images that cannot be decoded.

    Args:
        on_bad_image: `"error"`, or `"skip"` to leave them out. Defaults to
            `"error"`.

    Raises:
        ValueError: if `on_bad_image` is neither.

    Example:

    >>> bad = BadImages("skip")
    >>> for images, labels, weights in training_batches(..., bad=bad):
    ...     bad.check()
    >>> bad.names
    ['photos/train/cat/7.jpg']
    """

    def __init__(self, on_bad_image: str = "error"):
        check_on_bad_image(on_bad_image)
        self._skip = on_bad_image == "skip"
        self._names = {}  # a dict keeps the order

    @property
    def names(self) -> list[str]:
        """The names so far, each once."""
        return list(self._names)

    def check(self) -> None:
        """Raise an error that names them, unless they are left out.

        Raises:
            ValueError: if there are any and `on_bad_image` is `"error"`.
        """
        if self._names and not self._skip:
            raise ValueError(
                "`dataset` must have images that can be decoded, or "
                "`on_bad_image` must be skip; cannot decode "
                f"{', '.join(self.names[:5])}."
            )

    def guard(self, examples, load, placeholder, batch_size):
        """Map `load` and batch, with a placeholder for undecodable images.

        Args:
            examples: A `tf.data.Dataset` of tuples that begin with a name and
                encoded bytes; their number is a multiple of `batch_size`.
            load: A function from the parts of such a tuple to a tuple.
            placeholder: Tuple to use if the bytes cannot be decoded.
            batch_size: Examples in a batch.

        Returns:
            A `tf.data.Dataset` of batches of what `load` returns, in order,
            followed by weights: float32, 0 for placeholders, else 1. Other
            errors of `load` are raised.
        """

        load = tf.function(load, autograph=False)  # traced once, not thrice

        def note(name):
            self._names[name.decode()] = True
            return np.float32(0)

        def weighted(*example):
            return *load(*example), 1.0

        def noted(name, *_):
            weight = tf.numpy_function(note, [name], tf.float32)
            return *placeholder, tf.ensure_shape(weight, ())

        def decodes(name, encoded, *_):
            return tf.size(_decode(encoded, 1)) > 0

        def careful(*example):
            this = tf.data.Dataset.from_tensors(example)
            good = this.map(weighted).ignore_errors()
            failed = this.filter(decodes).ignore_errors().map(weighted)
            bad = this.map(noted)
            return good.concatenate(failed).concatenate(bad).take(1)

        def one_batch(*batch):
            each = tf.data.Dataset.from_tensor_slices(batch)
            # Only decoding shows whether an image is bad; a batch with bad
            # images is then loaded one by one.
            fast = each.map(weighted, num_parallel_calls=tf.data.AUTOTUNE)
            fast = fast.batch(batch_size, drop_remainder=True).ignore_errors()
            slow = each.flat_map(careful).batch(batch_size, drop_remainder=True)
            return fast.concatenate(slow).take(1)

        batches = examples.batch(batch_size, drop_remainder=True)
        return batches.interleave(
            one_batch, cycle_length=2, num_parallel_calls=2
        )


def training_batches(
    data: ImageData,
    recipe: Recipe,
    epoch: int,
    *,
    bad: BadImages | None = None,
    first_step: int = 0,
    shard: InputShard = WHOLE_INPUT,
) -> tf.data.Dataset:
    """An epoch of shuffled, augmented batches of pixels.

    The random changes to an image depend on `recipe.seed` and its position in
    training only, not on the shard; mixup and CutMix also depend on the other
    images of a replica's batch. A last, incomplete batch is dropped.

    Args:
        data: A prepared `ImageData`.
        recipe: A `Recipe`.
        epoch: Index of the epoch, from 0.
        bad: Collects images that cannot be decoded; they have a weight of 0.
            Defaults to `None`, which ignores them.
        first_step: Steps of the epoch to skip. Defaults to 0.
        shard: Part of each batch that this pipeline reads. Defaults to all.

    Returns:
        A `tf.data.Dataset` of RGB pixels in [0, 255], `(batch, image_size,
        image_size, 3)`, uint8, or float32 with mixup or CutMix;
        probabilities, float32 `(batch, classes)`; and weights, float32
        `(batch,)`. `batch` is that of one replica.
    """
    size, classes = recipe.image_size, len(data.labels)
    steps = data.num_examples("train") // recipe.batch_size
    before = first_step * recipe.batch_size
    # Hashed, or epoch 1 of seed 0 would equal epoch 0 of seed 1.
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
        .shard(shard.pipelines, shard.pipeline)
    )
    placeholder = tf.zeros((size, size, 3), tf.uint8), tf.zeros(classes)
    local_size = recipe.batch_size // shard.replicas
    bad = bad or BadImages()
    batches = bad.guard(examples, load, placeholder, local_size)
    if recipe.mixup or recipe.cutmix:
        first = ((epoch * steps + first_step) * shard.replicas) + shard.pipeline
        numbers = tf.data.Dataset.counter(first, shard.pipelines)
        batches = tf.data.Dataset.zip(numbers, batches).map(
            _make_mix(recipe), num_parallel_calls=tf.data.AUTOTUNE
        )
    return batches.prefetch(tf.data.AUTOTUNE)


def _make_mix(recipe):
    """Build mixup and CutMix of numbered batches."""
    mix = augment.make_mix(recipe.mixup, recipe.cutmix)

    def mixed(number, batch):
        images, labels, weights = batch
        seed = tf.random.experimental.stateless_fold_in(
            tf.constant([recipe.seed, _MIX], tf.int64), number
        )
        return *mix(images, labels, seed), weights

    return mixed


def _augmented(encoded, recipe, seed):
    """One image of a training batch, uint8."""
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 7))
    size = recipe.image_size
    if recipe.random_resized_crop_scale:
        window = _decode_window(
            encoded, recipe.random_resized_crop_scale, seeds[0]
        )
        image = _resize(window, size, recipe.interpolation)
    else:
        transform = EvalTransform.from_crop_pct(size)
        image = transform.pixels_in_graph(_decode(encoded, transform.shrink_to))
    image = tf.ensure_shape(image, (size, size, 3))
    if recipe.crop_padding:
        image = augment.pad_and_crop(image, recipe.crop_padding, seeds[1])
    if recipe.trivial_augment:
        image = augment.trivial_augment(image, seeds[3])
    if recipe.color_jitter:
        image = augment.color_jitter(image, recipe.color_jitter, seeds[4])
    if recipe.lighting:
        image = augment.lighting(image, recipe.lighting, seeds[5])
    # uint8 is a quarter of the memory to move, here and to an accelerator.
    image = tf.saturate_cast(tf.round(image), tf.uint8)
    if recipe.flip:
        image = augment.flip(image, seeds[2])
    if recipe.random_erasing:
        image = augment.erase(image, recipe.random_erasing, seeds[6])
    return tf.ensure_shape(image, (size, size, 3))


def _decode_window(encoded, smallest_area, seed):
    """A random window of an image; of a JPEG, only the window is decoded."""

    def jpeg():
        shape = jpeg_shape(encoded)
        orientation = _exif_orientation(encoded)
        window = augment.random_window(
            [*tf.unstack(upright_shape(shape, orientation)), 3],
            smallest_area,
            seed,
        )
        part = tf.io.decode_and_crop_jpeg(
            encoded,
            stored_window(window, shape, orientation),
            channels=3,
            dct_method=JPEG_METHOD,
        )
        return upright(part, orientation)

    def other():
        image = _decode(encoded, tf.int32.max)
        window = augment.random_window(tf.shape(image), smallest_area, seed)
        top, left, height, width = tf.unstack(window)
        return image[top : top + height, left : left + width]

    image = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    return tf.ensure_shape(image, (None, None, 3))


def _resize(image, size, interpolation):
    """Resize, antialiased only if the image shrinks to half or less.

    For larger results, antialiasing takes longer than decoding does.
    """
    resized = tf.cond(
        tf.reduce_max(tf.shape(image)[:2]) >= 2 * size,
        lambda: tf.image.resize(
            image, (size, size), interpolation, antialias=True
        ),
        lambda: tf.image.resize(image, (size, size), interpolation),
    )
    return tf.clip_by_value(resized, 0, 255)  # bicubic overshoots


def evaluation_batches(
    data: ImageData,
    split: str,
    transform: EvalTransform,
    batch_size: int,
    *,
    bad: BadImages | None = None,
    shard: InputShard = WHOLE_INPUT,
    with_names: bool = False,
) -> tf.data.Dataset:
    """Every image of a split once, in order, as network input.

    Args:
        data: A prepared `ImageData`.
        split: Name of the split.
        transform: An `EvalTransform`.
        batch_size: Images in a batch of all replicas together, rounded up to
            a multiple of their number.
        bad: Collects images that cannot be decoded; they have a weight of 0.
            Defaults to `None`, which ignores them.
        shard: Part of each batch that this pipeline reads. Defaults to all.
        with_names: Whether batches end with the images' names. Defaults to
            `False`: accelerators take no strings.

    Returns:
        A `tf.data.Dataset` of normalised images, float32 `(batch, image_size,
        image_size, 3)`; labels, int64 `(batch,)`, negative for the padding of
        the last batch; weights, float32 `(batch,)`, 0 for padding; and, if
        `with_names`, names, string `(batch,)`.
    """
    blank = tf.zeros((transform.image_size, transform.image_size, 3))

    def load(name, encoded, label):
        image = tf.cond(
            label == _NO_LABEL,
            lambda: blank,
            lambda: transform.pixels_in_graph(
                _decode(encoded, transform.shrink_to)
            ),
        )
        return (image, label, name) if with_names else (image, label)

    def finish(images, labels, *others):
        *names, weights = others
        weights *= tf.cast(labels != _NO_LABEL, tf.float32)
        return transform.normalize_in_graph(images), labels, weights, *names

    placeholder = blank, tf.constant(0, tf.int64)
    if with_names:
        placeholder += (tf.constant(""),)
    local_size = -(-batch_size // shard.replicas)
    steps = -(-data.num_examples(split) // (local_size * shard.replicas))
    # All replicas must take the same number of steps, or some would hang.
    no_label = tf.constant(_NO_LABEL, tf.int64)
    padding = tf.data.Dataset.from_tensors(("", "", no_label)).repeat()
    examples = (
        data.encoded(split)
        .shard(shard.pipelines, shard.pipeline)
        .concatenate(padding)
        .take(steps * local_size * shard.replicas // shard.pipelines)
    )
    bad = bad or BadImages()
    batches = bad.guard(examples, load, placeholder, local_size)
    return batches.map(finish).prefetch(tf.data.AUTOTUNE)
