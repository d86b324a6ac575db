"""What all exporters share: the graph, the proof, and what it measured.

An exporter writes a file beside its place, opens it in its own runtime, and
compares what comes out with Keras. Only then is it put in place.
"""

import contextlib
import dataclasses
import pathlib
import statistics
import time
import typing

import keras
import numpy as np
import tensorflow as tf

from keras_resnext.files import check_free
from keras_resnext.files import staged
from keras_resnext.preprocessing import ends_in_softmax
from keras_resnext.preprocessing import preprocess_input

# float32 carries 24 bits. Sums of some thousand terms, in another order and
# with batch norm folded, lose about 10 of them: 2**-14 is 6e-5.
TOLERANCE = 1e-4


class ExportError(RuntimeError):
    """An exported file did not compute what Keras computes.

    Example:

    >>> try:
    ...     to_onnx(model, "model.onnx")
    ... except ExportError as error:
    ...     print(error)  # and there is no model.onnx
    """


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An exported file that its own runtime has opened and agreed on.

    Args:
        path: The file, or the folder of a SavedModel.
        format: `"savedmodel"`, `"tflite"` or `"onnx"`.
        size: All bytes on disk.
        max_logit_difference: Largest difference from Keras' logits on the
            images compared, see `logits`.
        top1_agreement: Share of the images with the same best class.
        scores: The runtime's outputs for the images compared,
            `(images, classes)`.
        open: A function without arguments that opens the file in its runtime
            and returns a function from pixels, float32 `(batch, height,
            width, channels)`, to outputs `(batch, classes)`.

    Example:

    >>> artifact = to_onnx(model, "model.onnx")
    >>> run = artifact.open()
    >>> run(pixels).shape
    (8, 1000)
    """

    path: pathlib.Path
    format: str
    size: int
    max_logit_difference: float
    top1_agreement: float
    scores: np.ndarray = dataclasses.field(repr=False)
    open: typing.Callable = dataclasses.field(repr=False)


def export(
    model,
    path,
    *,
    format,
    write,
    open_file,
    preprocessing,
    images,
    tolerance,
    overwrite,
):
    """Write a file, prove it, and put it in place.

    Args:
        model: The `keras.Model`.
        path: Where the file shall be.
        format: Name of the format.
        write: A function of a path that writes the file there.
        open_file: A function of a path that opens the file, see `Artifact`.
        preprocessing: See `serving_function`.
        images: Pixels to compare on, `(images, height, width, channels)`;
            `None` for eight images of uniform noise.
        tolerance: Largest difference of logits that passes, relative to the
            largest logit or to 1, whichever is more.
        overwrite: Whether something may stand at `path` already.

    Returns:
        An `Artifact`.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is false.
        ExportError: if the file's outputs are not Keras'; it is removed.
        ValueError: if `images` do not fit the model.
    """
    path = pathlib.Path(path)
    check_free(path, overwrite=overwrite)
    if path.exists() and path.is_dir() != (format == "savedmodel"):
        raise FileExistsError(
            f"`path` must be free or hold a {format} to replace; {path} is a "
            f"{'folder' if path.is_dir() else 'file'}."
        )
    if path.is_dir() and not (path / "saved_model.pb").exists():
        raise FileExistsError(
            "`path` must be free or hold a savedmodel to replace; the folder "
            f"{path} holds something else."
        )
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model; got {model!r}.")
    shape = image_shape(model)
    if images is None:
        images = noise(model)
    images = np.asarray(images, "float32")
    if images.shape[1:] != shape or not len(images):
        raise ValueError(
            f"`images` must have shape (images, {', '.join(map(str, shape))})"
            f"; got {images.shape}."
        )
    reference = keras_runner(model, preprocessing)(images)
    with staged(path, overwrite=overwrite) as new:
        write(new)
        scores = open_file(new)(images)
        expected, found = logits(model, reference), logits(model, scores)
        difference = float(np.max(np.abs(expected - found)))
        limit = tolerance * max(1.0, float(np.max(np.abs(expected))))
        # Written so that a NaN fails too.
        if not difference <= limit:
            raise ExportError(
                f"{path} was not written: its logits must be within "
                f"{limit:.1e} of Keras' on {len(images)} images; they differ "
                f"by {difference:.1e}."
            )
    return Artifact(
        path=path,
        format=format,
        size=_size(path),
        max_logit_difference=difference,
        top1_agreement=float(
            np.mean(np.argmax(scores, -1) == np.argmax(reference, -1))
        ),
        scores=scores,
        open=lambda: open_file(path),
    )


def serving_function(model, preprocessing, batch):
    """The function that is exported: pixels in, named outputs out.

    Args:
        model: The `keras.Model`, with one output.
        preprocessing: `"imagenet"` puts `keras_resnext.preprocess_input` in
            front, so that the file takes RGB pixels in [0, 255]; a layer or
            model is put in front as it is; `None` exports the bare network.
        batch: Batch size, or `None` for any.

    Returns:
        A `tf.function` of `image`, float32 `(batch, height, width,
        channels)`, that returns a dict with the one entry `output_name`.

    Raises:
        ValueError: if `preprocessing` is none of these or the model's input
            has no fixed size.
    """
    preprocess = _preprocessing(preprocessing)
    name = output_name(model)
    spec = tf.TensorSpec((batch, *image_shape(model)), tf.float32, "image")

    @tf.function(input_signature=[spec])
    def serve(image):
        outputs = model(preprocess(image), training=False)
        return {name: tf.cast(outputs, tf.float32)}

    return serve


def image_shape(model):
    """`(height, width, channels)` of the model's input.

    Raises:
        ValueError: if one of them is not fixed.
    """
    shape = tuple(model.input_shape[1:])
    if len(shape) != 3 or None in shape:
        raise ValueError(
            "`model` must have one image input of fixed size; its input shape "
            f"is {model.input_shape}. Build it with `input_shape`."
        )
    return shape


def output_name(model):
    """What the model's output is: `"probabilities"`, or `"outputs"`."""
    return "probabilities" if ends_in_softmax(model) else "outputs"


def logits(model, scores):
    """Outputs as logits, so that differences mean the same for all models.

    Softmax hides the differences of unlikely classes. Its inverse is the
    logarithm, up to a constant for each image that is chosen here such that
    the mean is zero. Outputs of a model without softmax are left as they are.

    Args:
        model: The model they came from.
        scores: Outputs `(images, classes)`.

    Returns:
        float64 array `(images, classes)`.
    """
    scores = np.asarray(scores, "float64")
    if not ends_in_softmax(model):
        return scores
    # Below float32's smallest normal number, runtimes may flush to zero.
    logs = np.log(np.maximum(scores, np.finfo("float32").tiny))
    return logs - logs.mean(axis=-1, keepdims=True)


def keras_runner(model, preprocessing):
    """Keras' own answer, as a function like that of an opened file.

    Args:
        model: The `keras.Model`.
        preprocessing: See `serving_function`.

    Returns:
        A function from pixels `(batch, height, width, channels)` to outputs
        `(batch, classes)`.
    """
    preprocess = _preprocessing(preprocessing)
    # Not through `serving_function`: the proof must not share its mistakes.
    return in_batches(lambda batch: model.predict_on_batch(preprocess(batch)))


def in_batches(run, size=64):
    """A function of any number of images from one of at most `size`."""

    def run_all(images):
        parts = np.array_split(images, -(-len(images) // size))
        return np.concatenate([run(part) for part in parts])

    return run_all


def noise(model):
    """Eight images of uniform noise, pixels in [0, 255], for the proof."""
    shape = (8, *image_shape(model))
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


def latency(run, images, *, calls=50):
    """Median time of one call with one image, in milliseconds.

    Args:
        run: A function of pixels `(1, height, width, channels)`.
        images: Pixels `(images, height, width, channels)`, taken in turn.
        calls: Calls to time, after five that are not. Defaults to 50.

    Returns:
        Milliseconds.
    """
    times = []
    for call in range(-5, calls):
        image = images[call % len(images)][None]
        started = time.perf_counter()
        run(image)
        if call >= 0:
            times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


@contextlib.contextmanager
def quiet(*names):
    """Keep converters' progress notes off the screen; errors still show."""
    import logging

    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _preprocessing(preprocessing):
    if isinstance(preprocessing, str) and preprocessing == "imagenet":
        return preprocess_input
    if preprocessing is None:
        return lambda image: image
    if isinstance(preprocessing, keras.Layer):
        return preprocessing
    raise ValueError(
        '`preprocessing` must be "imagenet", None, or a Keras layer or model '
        f"from pixels to the network's input; got {preprocessing!r}."
    )


def _size(path):
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
