"""TensorFlow SavedModel: for TensorFlow Serving, and for the converters."""

import os
import pathlib
import tempfile
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_resnext.classifier import Classifier
from keras_resnext.export.session import Session
from keras_resnext.export.session import staged_artifact
from keras_resnext.export.verify import Artifact
from keras_resnext.export.verify import ExportError
from keras_resnext.export.verify import Limits
from keras_resnext.export.verify import check_limits
from keras_resnext.export.verify import verify
from keras_resnext.extras import cannot_write
from keras_resnext.images import MAX_PIXELS
from keras_resnext.images import check_max_pixels
from keras_resnext.images import decode
from keras_resnext.quiet import quiet
from keras_resnext.transforms import EvalTransform


def to_saved_model(
    model: keras.Model | Classifier | Session,
    path: str | os.PathLike[str],
    *,
    preprocessing: str | keras.Layer | None = "auto",
    labels: Sequence[str] | None = None,
    transform: EvalTransform | None = None,
    top: int = 5,
    images: np.ndarray | None = None,
    limits: Limits | None = None,
    max_pixels: int = MAX_PIXELS,
    overwrite: bool = False,
) -> Artifact:
    """Export a model to a SavedModel that loads with TensorFlow alone.

    Each weight is stored once, and batch norms are folded. The signatures
    take any batch size:

    | signature | input |
    |---|---|
    | `serving_default` | `image`, float32 `(batch, height, width, channels)` |
    | `image_uint8` | `image`, the same as uint8, a quarter of the bytes |
    | `image_bytes` | `image_bytes`, strings `(batch,)`: files, see |
    | | `keras_resnext.images` |

    All return `probabilities` `(batch, classes)`; `logits`, `scores` or
    `features` if the model ends in those; several outputs, and those of a
    dict, by their own names. A classifier also returns `top_indices`,
    `top_scores` and, with labels, `top_labels`, each `(batch, top)`, best
    class first. `image_bytes` also returns `valid`, bool `(batch,)`: false for
    a file that is no image or has more than `max_pixels`, whose scores are 0,
    indices -1 and labels empty; the other files are answered all the same.
    Labels and transform are stored as `assets/labels.txt` and
    `assets/transform.json` too.

    Args:
        model: A `keras.Model` with one image input of fixed size, a
            `Classifier`, or a `Session` that shares work between files and
            has preprocessing, labels, transform and images already.
        path: Folder to write.
        preprocessing: What comes before the model, so that the file takes RGB
            pixels in [0, 255]. `"auto"` adds what it needs: nothing to a model
            that normalises pixels itself, otherwise the normalisation of the
            transform, or ImageNet's for networks of this package's builders.
            `"imagenet"`, or a Keras layer or model from pixels to the model's
            input, says it for others. `None` adds nothing; a bare network
            has `serving_default` only.
            Defaults to `"auto"`.
        labels: Class names, in the order of the outputs. Defaults to `None`,
            the labels of the `Classifier`.
        transform: How `image_bytes` turns upright (EXIF), resizes and crops an
            image. Defaults to `None`, the transform of the `Classifier`; for
            a plain model, the largest centred square. Models that do not take
            square RGB images have neither transform nor `image_bytes`.
        top: Number of best classes to return. Defaults to 5.
        images: Inputs to compare on, `(images, height, width, channels)`, in
            [0, 255] unless `preprocessing` says otherwise. Defaults to eight
            drawn ones, see `drawings`.
        limits: How far the outputs may be from Keras'. Defaults to
            `keras_resnext.export.verify.LIMITS[None]`.
        max_pixels: Most pixels that a file for `image_bytes` may have.
            Decoding takes about 6 bytes for each, of as many files at once
            as there are cores, however many are sent. Defaults to
            178,956,970.
        overwrite: Whether to replace an existing SavedModel. Defaults to
            `False`.

    Returns:
        An `Artifact`.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is false, or it is
            something else than a SavedModel.
        ExportError: if TensorFlow's outputs from the folder are not Keras';
            then `path` is as it was before.
        OSError: if it cannot be written; `path` is as it was before.
        ValueError: if an argument is not as described, `"auto"` cannot know
            how the model's images are normalised, or they would be normalised
            twice.

    Example:

    >>> to_saved_model(model, "saved_model", labels=names)
    >>> serve = tf.saved_model.load("saved_model").signatures["image_bytes"]
    >>> photo = pathlib.Path("photo.jpg").read_bytes()
    >>> serve(image_bytes=tf.constant([photo]))["probabilities"].shape
    TensorShape([1, 10])
    """
    session = Session.of(model, preprocessing, labels, transform, images)
    session.check_not_rounded()
    if type(top) is not int or top < 1:
        raise ValueError(f"`top` must be 1 or more; got {top!r}.")
    check_max_pixels(max_pixels)
    limits = check_limits(limits, None)
    with staged_artifact(path, "savedmodel", overwrite=overwrite) as new:
        try:
            _Serving(session, top, max_pixels).save(new)
        except tf.errors.OpError as error:
            raise cannot_write(path, error) from error
        return verify(session, new, path, "savedmodel", None, limits)


def write_saved_model(graph, path, *, batch, dtype="float32"):
    """Write a graph with `serving_default` alone, for converters.

    Args:
        graph: An `ExportGraph`.
        path: Folder to write.
        batch: Batch size, or `None` for any.
        dtype: Data type of the pixels.
    """
    module = tf.Module()
    module.weights = [variable.value for variable in graph.variables]
    module.serve = graph.function(batch, dtype)
    with quiet("tensorflow"):
        tf.saved_model.save(module, str(path), signatures=module.serve)


def _check_operations(function):
    """Refuse operations that only this process has, or that need XLA."""
    definition = function.graph.as_graph_def()
    nodes = [
        *definition.node,
        *(n for f in definition.library.function for n in f.node_def),
    ]
    for node in nodes:
        if node.op in ("PyFunc", "PyFuncStateless", "EagerPyFunc"):
            raise ExportError(
                "`model` must have operations that a SavedModel can store; "
                f"{node.name} is a Python function."
            )
        if "_XlaMustCompile" in node.attr:
            raise ExportError(
                "`model` must have operations that every runtime has; "
                f"{node.name} must be compiled by XLA, as Keras' grouped "
                "convolutions are. keras_resnext.layers.GroupedConv2D computes "
                "the same."
            )


class _Serving(tf.Module):
    """The signatures of a served model."""

    def __init__(self, session, top, max_pixels):
        super().__init__()
        self._max_pixels = max_pixels
        self._graph, self._transform = session.graph, session.transform
        self._top, self._classifies = top, session.classifies
        self._labels = tuple(session.labels or ())
        self._attachments = tuple(session.attachments.items())
        self._takes_pixels = session.takes_pixels and session.shape[2] == 3
        # Keras' own `export` tracks variables twice, and stores them twice.
        self.weights = [variable.value for variable in self._graph.variables]

    def save(self, path):
        """Write the folder."""
        self.pixels = self._function(self._serve, self._graph.spec(None))
        signatures = {"serving_default": self.pixels}
        if self._takes_pixels:
            spec = self._graph.spec(None, "uint8")
            self.uint8 = self._function(self._serve_uint8, spec)
            signatures["image_uint8"] = self.uint8
        if self._takes_pixels and self._transform:
            spec = tf.TensorSpec((None,), tf.string, "image_bytes")
            self.encoded = self._function(self._serve_bytes, spec)
            signatures["image_bytes"] = self.encoded
        _check_operations(self.pixels.get_concrete_function())
        with tempfile.TemporaryDirectory() as folder:
            # Read while saving; they keep their names.
            self.assets = []
            for name, content in self._attachments:
                file = pathlib.Path(folder) / name
                file.write_text(content, encoding="utf-8")
                self.assets.append(tf.saved_model.Asset(str(file)))
            with quiet("tensorflow"):
                tf.saved_model.save(self, str(path), signatures=signatures)

    def _function(self, function, spec):
        return tf.function(function, input_signature=[spec], autograph=False)

    def _serve(self, image):
        outputs = self._graph(image)
        if not self._classifies:
            return outputs
        (scores,) = outputs.values()
        best = tf.math.top_k(scores, min(self._top, scores.shape[-1]))
        outputs["top_scores"], outputs["top_indices"] = best
        if self._labels:
            names = tf.constant(self._labels)
            outputs["top_labels"] = tf.gather(names, best.indices)
        return outputs

    # The other signatures call the first, so that the network is traced,
    # stored and loaded once.

    def _serve_uint8(self, image):
        return self.pixels(tf.cast(image, tf.float32))

    def _serve_bytes(self, image_bytes):
        pixels, valid = self._read_all(image_bytes)
        outputs = self.pixels(pixels)
        answers = {
            name: _where_valid(valid, output)
            for name, output in outputs.items()
        }
        count = tf.size(image_bytes)
        return {
            name: answer[:count]
            for name, answer in (answers | {"valid": valid}).items()
        }

    def _read_all(self, encoded):
        """The pixels of files, zeros for bad ones, and which are good.

        Of no file, those of a blank one: oneDNN convolves no empty batches.
        A graph has no exceptions; only a pipeline goes on after an error.
        """
        count, size = tf.size(encoded, tf.int64), self._transform.image_size
        files = tf.data.Dataset.from_tensor_slices(encoded).enumerate()
        pictures = files.map(
            lambda number, file: (number, self._read(file)),
            num_parallel_calls=tf.data.AUTOTUNE,
        ).ignore_errors()
        # One more, because there may be no other.
        blank = tf.data.Dataset.from_tensors((count, tf.zeros((size, size, 3))))
        numbers, pixels = (
            pictures.concatenate(blank).batch(count + 1).get_single_element()
        )

        def in_place(values):
            rows = tf.concat([[count + 1], tf.shape(values, tf.int64)[1:]], 0)
            placed = tf.scatter_nd(numbers[:, None], values, rows)
            return placed[: tf.maximum(count, 1)]

        return in_place(pixels), in_place(tf.ones_like(numbers)) > 0

    def _read(self, encoded):
        image = decode(
            encoded,
            max_pixels=self._max_pixels,
            shrink_to=self._transform.shrink_to,
        )
        return self._transform.pixels_in_graph(image)


def _where_valid(valid, output):
    """An output with zeros for invalid pictures, and no class: -1 and ""."""
    nothing = {tf.string: "", tf.int32: -1}.get(output.dtype, 0)
    each = tf.reshape(valid, [-1] + [1] * (output.shape.rank - 1))
    return tf.where(each, output, tf.cast(nothing, output.dtype))
