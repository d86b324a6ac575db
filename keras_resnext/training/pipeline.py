"""Batches of images: training's and evaluation's."""

import dataclasses

import numpy as np
import tensorflow as tf

from keras_resnext.training import augment
from keras_resnext.training import digits as _digits  # noqa: F401 (registers)
from keras_resnext.training.datasets import ImageData
from keras_resnext.training.recipe import Recipe
from keras_resnext.transforms import JPEG_METHOD
from keras_resnext.transforms import EvalTransform
from keras_resnext.transforms import decode
from keras_resnext.transforms import exif_orientation
from keras_resnext.transforms import stored_window
from keras_resnext.transforms import upright
from keras_resnext.transforms import upright_shape

_MIX = -1  # no image's number


_NO_LABEL = -1  # of what only fills the last batch


@dataclasses.dataclass(frozen=True)
class InputShard:
    """Which images of each batch one input pipeline reads.

    Args:
        replicas: Replicas in all, each of which takes a batch at a time.
        pipelines: Input pipelines in all, one for each machine.
        pipeline: Number of this one, from 0.

    Example:

    >>> InputShard(replicas=8, pipelines=2, pipeline=1)  # of two machines
    """

    replicas: int = 1
    pipelines: int = 1
    pipeline: int = 0


WHOLE_INPUT = InputShard()


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
        stored = tf.io.extract_jpeg_shape(encoded)
        orientation = exif_orientation(encoded)
        shape = tf.concat([upright_shape(stored, orientation), [3]], axis=0)
        window = augment.random_window(shape, smallest_area, seed)
        image = tf.io.decode_and_crop_jpeg(
            encoded,
            stored_window(window, stored, orientation),
            channels=3,
            dct_method=JPEG_METHOD,
        )
        return upright(image, orientation)

    def other():
        image = decode(encoded)
        window = augment.random_window(tf.shape(image), smallest_area, seed)
        top, left, height, width = tf.unstack(window)
        return image[top : top + height, left : left + width]

    image = tf.cond(tf.io.is_jpeg(encoded), jpeg, other)
    return tf.ensure_shape(image, (None, None, 3))


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
        .shard(shard.pipelines, shard.pipeline)
    )
    nothing = tf.zeros((size, size, 3), tf.uint8), tf.zeros(classes)
    local_size = recipe.batch_size // shard.replicas
    batches = (bad or BadImages()).guard(examples, load, nothing, local_size)
    if recipe.mixup or recipe.cutmix:
        mix = augment.make_mix(recipe.mixup, recipe.cutmix)
        first = ((epoch * steps + first_step) * shard.replicas) + shard.pipeline

        def mixed(number, batch):
            images, labels, weights = batch
            seed = tf.random.experimental.stateless_fold_in(
                tf.constant([recipe.seed, _MIX], tf.int64), number
            )
            images = tf.cast(images, tf.float32)
            return *mix(images, labels, seed), weights

        numbers = tf.data.Dataset.counter(first, shard.pipelines)
        batches = tf.data.Dataset.zip(numbers, batches).map(
            mixed, num_parallel_calls=tf.data.AUTOTUNE
        )
    return batches.prefetch(tf.data.AUTOTUNE)


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
        image = transform.pixels_in_graph(decode(encoded))
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
    transform: EvalTransform,
    batch_size: int,
    *,
    bad: BadImages | None = None,
    shard: InputShard = WHOLE_INPUT,
) -> tf.data.Dataset:
    """Every image of a split once, in order, as input of the network.

    Args:
        data: An `ImageData`, prepared.
        split: Name of the split.
        transform: What turns a stored image into the network's input.
        batch_size: Images in a batch of all replicas together, rounded up to
            a multiple of them.
        bad: Notes the images that cannot be decoded; they have a weight of 0.
            Defaults to `None`.
        shard: The part that this pipeline reads. Defaults to all.

    Returns:
        A `tf.data.Dataset` of inputs, float32 `(batch, image_size,
        image_size, 3)`, labels, int64 `(batch,)`, below 0 for padding of the
        last batch, and weights, float32 `(batch,)`, 0 for padding.
    """

    def load(name, encoded, label):
        pixels = tf.cond(
            label == _NO_LABEL,
            lambda: nothing[0],
            lambda: transform.pixels_in_graph(decode(encoded)),
        )
        return transform.normalize_in_graph(pixels), label

    def unpadded(images, labels, weights):
        weights *= tf.cast(labels != _NO_LABEL, tf.float32)
        return images, labels, weights

    size = transform.image_size
    nothing = tf.zeros((size, size, 3)), tf.constant(0, tf.int64)
    local_size = -(-batch_size // shard.replicas)
    steps = -(-data.num_examples(split) // (local_size * shard.replicas))
    # All replicas take the same number of steps, or some would wait forever.
    none = tf.constant(_NO_LABEL, tf.int64)
    padding = tf.data.Dataset.from_tensors(("", "", none)).repeat()
    examples = (
        data.encoded(split)
        .shard(shard.pipelines, shard.pipeline)
        .concatenate(padding)
        .take(steps * local_size * shard.replicas // shard.pipelines)
    )
    batches = (bad or BadImages()).guard(examples, load, nothing, local_size)
    return batches.map(unpadded).prefetch(tf.data.AUTOTUNE)
