"""What all exporters share: the proof, and what it measured.

An exporter writes a file beside its place, opens it in its own runtime, and
compares what comes out with Keras. Only then is it put in place.
"""

import contextlib
import dataclasses
import pathlib
import typing
from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf

from keras_resnext.export.graph import preprocessing_function
from keras_resnext.export.runtimes import OPENERS
from keras_resnext.export.verify import LIMITS
from keras_resnext.export.verify import ExportError
from keras_resnext.export.verify import Limits
from keras_resnext.export.verify import beyond
from keras_resnext.export.verify import compare
from keras_resnext.export.verify import describe_limits as describe_limits
from keras_resnext.export.verify import logits
from keras_resnext.files import check_free
from keras_resnext.files import staged
from keras_resnext.inspection import classifies
from keras_resnext.inspection import image_shape
from keras_resnext.inspection import output_names
from keras_resnext.inspection import puts_out_probabilities

# What TensorFlow and Keras write into the folder of a SavedModel.
_SAVED_MODEL = {
    *("saved_model.pb", "fingerprint.pb", "keras_metadata.pb"),
    *("variables", "assets", "assets.extra"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Artifact:
    """An exported file that its own runtime has opened and agreed on.

    Args:
        path: The file, or the folder of a SavedModel.
        format: `"savedmodel"`, `"tflite"` or `"onnx"`.
        quantize: `None`, `"float16"`, `"dynamic"` or `"int8"`.
        size: All bytes on disk.
        max_logit_difference: Largest difference from Keras' logits (or
            features) on the images compared, see `logits`.
        mean_logit_difference: Mean of its absolute value.
        correlation: Of those logits with Keras'; of constant ones 1 if they
            are equal, or 0.
        centred_correlation: The same after the mean of each logit over the
            images was taken off: about 0 for a file that does not look at
            them, which classes that are likelier than others would hide.
            `None` if Keras' own hardly change from image to image.
        top1_agreement: Share of the images with the same best class; `None`
            for features.
        limits: What these were held against.
        outputs: The runtime's outputs for the images compared, by name.
        layer_errors: Of a quantised TFLite file, a
            `keras_resnext.export.quantization.LayerError` for each layer.

    Example:

    >>> artifact = to_onnx(model, "model.onnx")
    >>> run = artifact.open()
    >>> run(pixels)["probabilities"].shape
    (8, 1000)
    """

    path: pathlib.Path
    format: str
    quantize: str | None
    size: int
    max_logit_difference: float
    mean_logit_difference: float
    correlation: float
    centred_correlation: float | None
    top1_agreement: float | None
    limits: Limits
    outputs: dict[str, np.ndarray] = dataclasses.field(repr=False)
    layer_errors: tuple = dataclasses.field(default=(), repr=False)

    @property
    def scores(self) -> np.ndarray:
        """The first output, for a classifier the only one."""
        return next(iter(self.outputs.values()))

    def open(self, threads: int | None = None) -> typing.Callable:
        """Open the file in its own runtime.

        Args:
            threads: Threads to use. Defaults to `None`, the runtime's choice.

        Returns:
            A function from pixels, float32 `(images, height, width,
            channels)`, to a dict of outputs by name, each `(images, ...)`.
        """
        return in_batches(OPENERS[self.format](self.path, threads))


def check_place(path, format, *, overwrite):
    """Refuse a path before long work.

    Raises:
        FileExistsError: if something else stands there, or anything without
            `overwrite`.
    """
    path = pathlib.Path(path)
    check_free(path, overwrite=overwrite)
    if path.exists() and path.is_dir() != (format == "savedmodel"):
        raise FileExistsError(
            f"`path` must be free or hold {format} to replace; {path} is a "
            f"{'folder' if path.is_dir() else 'file'}."
        )
    if path.is_dir():
        held = {entry.name for entry in path.iterdir()}
        other = sorted(held - _SAVED_MODEL)
        if other or "saved_model.pb" not in held:
            raise FileExistsError(
                "`path` must be free or hold savedmodel to replace; the "
                f"folder {path} holds "
                f"{', '.join(other[:3]) or 'no saved_model.pb'}."
            )


def check_images(model, images, argument="images"):
    """Images as float32, if they fit the model.

    Raises:
        ValueError: if they have another shape, or there are none.
    """
    shape = image_shape(model)
    images = np.asarray(images, "float32")
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise ValueError(
            f"`{argument}` must have shape (images, "
            f"{', '.join(map(str, shape))}); got {images.shape}."
        )
    if not np.isfinite(images).all():
        raise ValueError(f"`{argument}` must be finite; some are not.")
    return images


def export(
    model,
    path,
    *,
    format,
    write,
    preprocessing,
    images,
    overwrite,
    quantize=None,
    limits=None,
):
    """Write a file, prove it, and put it in place.

    Args:
        model: The `keras.Model`.
        path: Where the file shall be.
        format: Name of the format.
        write: A function of a path that writes the file there. It may
            return a dict of what else the `Artifact` is to say.
        preprocessing: See `ExportGraph`.
        images: Pixels to compare on, `(images, height, width, channels)`;
            `None` for eight images of uniform noise.
        overwrite: Whether something may stand at `path` already.
        quantize: How it is quantised.
        limits: `Limits`; `None` for those of `LIMITS`.

    Returns:
        An `Artifact`.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is false.
        ExportError: if the file's outputs are not Keras'; it is removed.
        ValueError: if `images` do not fit the model.
    """
    path = pathlib.Path(path)
    check_place(path, format, overwrite=overwrite)
    images = check_images(model, noise(model) if images is None else images)
    if limits is None:
        limits = LIMITS[quantize]
    if not isinstance(limits, Limits):
        raise ValueError(f"`limits` must be Limits; got {limits!r}.")
    with staged(path, overwrite=overwrite) as new:
        expected, scales = _expected(model, preprocessing, images)
        more = write(new) or {}
        try:
            found = in_batches(OPENERS[format](new))(images)
        except Exception as error:  # each runtime has its own
            raise ExportError(
                f"{path} was not written: its runtime refuses it, "
                f"{first_line(error)}"
            ) from error
        found = {name: found[name] for name in expected}
        agreement, relative = compare(model, expected, found, scales)
        measured = {
            "path": path,
            "format": format,
            "quantize": quantize,
            "size": _size(new),
            "limits": limits,
            "outputs": found,
            **agreement,
            **more,
        }
        if failed := beyond(limits, relative, agreement):
            raise ExportError(
                f"{path} was not written: on {len(images)} images its outputs "
                f"are not Keras', {'; '.join(failed)}.",
                measured,
            )
    return Artifact(**measured)


def first_line(error: BaseException) -> str:
    """What an error says, as far as that fits into one line."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def _expected(model, preprocessing, images):
    """Keras' outputs by name, and what a difference of each is a share of.

    Of a network that is sure of everything, such as a fresh one, probabilities
    show the logits of few classes only; how far float32 rounds follows from
    the largest of all.
    """
    last = model.outputs[0]._keras_history.operation
    inside = isinstance(last, (keras.layers.Dense, keras.layers.Softmax))
    probe = None
    if puts_out_probabilities(model) and inside:
        # A layer that was called on other inputs before has those.
        with contextlib.suppress(ValueError):
            outputs = {"before": last.input, "scores": model.outputs[0]}
            probe = keras.Model(model.inputs, outputs)
    if probe is None:
        outputs = keras_runner(model, preprocessing)(images)
        least = 1.0 if classifies(model) else 1e-30
        return outputs, {
            name: max(least, float(np.abs(logits(model, value)).max()))
            for name, value in outputs.items()
        }
    before, probabilities = keras_runner(probe, preprocessing)(images).values()
    if isinstance(last, keras.layers.Dense):
        kernel, *bias = last.get_weights()
        before = before.astype("float64") @ kernel + sum(bias)
    largest = np.abs(before - before.mean(axis=-1, keepdims=True)).max()
    scale = max(1.0, float(largest))
    (name,) = output_names(model)
    return {name: probabilities}, {name: scale}


def keras_runner(model, preprocessing):
    """Keras' own answer, as a function like that of an opened file.

    Args:
        model: The `keras.Model`.
        preprocessing: See `ExportGraph`.

    Returns:
        A function from pixels `(images, height, width, channels)` to a dict
        of outputs by name.
    """
    preprocess = preprocessing_function(preprocessing)
    names = output_names(model)
    (image,) = model.inputs
    # Not through `ExportGraph`: the proof must not share its mistakes. Nor
    # through `predict`, whose tracing TensorFlow counts over all models of a
    # process, and warns of from the fifth on.
    predict = tf.function(
        lambda x: model(x, training=False),
        input_signature=[tf.TensorSpec((None, *image.shape[1:]), tf.float32)],
    ).get_concrete_function()

    def run(images):
        outputs = predict(tf.cast(preprocess(images), tf.float32))
        if isinstance(outputs, dict):
            return {name: np.asarray(outputs[name]) for name in names}
        flat = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        return dict(zip(names, map(np.asarray, flat), strict=True))

    return in_batches(run)


def in_batches(run, size=64):
    """A function of any number of images from one of at most `size`."""

    def run_all(images):
        parts = np.array_split(images, -(-len(images) // size))
        outputs = [run(part) for part in parts]
        return {
            name: np.concatenate([part[name] for part in outputs])
            for name in outputs[0]
        }

    return run_all


def noise(model):
    """Eight images of uniform noise, pixels in [0, 255], for the proof."""
    shape = (8, *image_shape(model))
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


def check_labels(labels, model):
    """Labels as a list, if they fit the model.

    Raises:
        ValueError: if they are not one for each output.
    """
    if labels is None:
        return None
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise ValueError(f"`labels` must be a list of names; got {labels!r}.")
    labels = list(labels)
    classes = model.output_shape[-1] if classifies(model) else 0
    # A file has one a line.
    names = [
        label
        for label in labels
        if isinstance(label, str) and label.splitlines() == [label]
    ]
    if len(names) != classes or len(labels) != classes:
        raise ValueError(
            f"`labels` must hold the model's {classes} class names, a line "
            f"each; got {labels[:20]}."
        )
    return labels or None


def check_bytes(graph, model, most, format) -> None:
    """Refuse a model whose weights do not fit into one file.

    Args:
        graph: Its `ExportGraph`.
        model: The `keras.Model`.
        most: Bytes that a file of the format can have.
        format: Its name.

    Raises:
        ValueError: if it has more than nine tenths of that.
    """
    if graph.bytes > 0.9 * most:
        raise ValueError(
            f"`model` must have at most {0.9 * most / 1e9:.2f} GB of weights "
            f"for {format}; {model.name} has {graph.bytes / 1e9:.2f} GB."
        )


def check_quantization(model, quantize, calibration, choices):
    """Calibration images as float32, if they are what `quantize` needs.

    Raises:
        ValueError: if `quantize` is none of `choices`, or `calibration` is
            missing with int8, given without, or of another shape.
    """
    if quantize not in choices:
        raise ValueError(
            f"`quantize` must be one of {', '.join(map(str, choices))}; got "
            f"{quantize!r}."
        )
    if (calibration is None) == (quantize == "int8"):
        raise ValueError(
            "`calibration` must be images with `quantize` int8, and None "
            f"otherwise; `quantize` is {quantize!r}, and `calibration` is "
            f"{'None' if calibration is None else 'given'}."
        )
    if calibration is None:
        return None
    return check_images(model, calibration, "calibration")


def describe_input(preprocessing):
    """What a file takes, in words, for its metadata."""
    if preprocessing is None:
        return "what the bare network takes; nothing is normalized in here"
    kind = preprocessing if isinstance(preprocessing, str) else "own"
    return f"RGB pixels in [0, 255]; normalization ({kind}) is in here"


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


def _size(path):
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
