"""TensorFlow SavedModel: for TensorFlow Serving, and for the converters."""

import os
import pathlib
import tempfile
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_resnext.classifier import Classifier
from keras_resnext.classifier import as_classifier
from keras_resnext.export import artifact
from keras_resnext.export.graph import ExportGraph
from keras_resnext.transforms import EvalTransform
from keras_resnext.transforms import decode


def to_saved_model(
    model: keras.Model | Classifier,
    path: str | os.PathLike,
    *,
    preprocessing: str | keras.Layer | None = "imagenet",
    labels: Sequence[str] | None = None,
    top: int = 5,
    transform: EvalTransform | None = None,
    images: np.ndarray | None = None,
    limits: artifact.Limits | None = None,
    overwrite: bool = False,
) -> artifact.Artifact:
    """Export a model to a SavedModel that loads with TensorFlow alone.

    Each weight is stored once, batch norms are folded. Signatures, for any
    batch:

    | signature | input |
    |---|---|
    | `serving_default` | `image`, float32 `(batch, height, width, channels)` |
    | `image_uint8` | `image`, the same as uint8, a quarter of the bytes |
    | `image_bytes` | `image_bytes`, strings `(batch,)`: JPEG, PNG, GIF or BMP |

    All put out `probabilities` `(batch, classes)` (`logits`, `scores` or
    `features` of a model that ends in those; several, and those of a dict, by
    their own names), and of a classifier `top_indices`,
    `top_scores` and, with labels, `top_labels`, each `(batch, top)` with the
    best class first. `labels` become `assets/labels.txt` too.

    Args:
        model: A `keras.Model` with one image input of fixed size.
        path: Folder to write.
        preprocessing: `"imagenet"` if the file shall take RGB pixels in
            [0, 255], a Keras layer or model from such pixels to the network's
            input, or `None` for the bare network, which has `serving_default`
            only. Defaults to `"imagenet"`.
        labels: Class names, in the order of the outputs. Defaults to `None`.
        top: Best classes to put out. Defaults to 5.
        transform: How `image_bytes` resizes and crops. Defaults to the
            classifier's, or to the largest centred square; a model that does
            not take squares has no `image_bytes`.
        images: Inputs to compare on, `(images, height, width, channels)`, in
            [0, 255] unless `preprocessing` says otherwise. Defaults to eight
            images of noise.
        limits: What the comparison is held against. Defaults to
            `keras_resnext.export.artifact.LIMITS[None]`.
        overwrite: Whether to replace what is there. Defaults to `False`.

    Returns:
        An `Artifact`.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is false.
        ExportError: if TensorFlow's outputs from the folder are not Keras';
            then there is no folder, or the one that was there before.
        ValueError: if an argument is not one of the above.

    Example:

    >>> to_saved_model(model, "resnext50", labels=imagenet_labels())
    >>> serve = tf.saved_model.load("resnext50").signatures["image_bytes"]
    >>> serve(image_bytes=tf.constant([open("cat.jpg", "rb").read()]))
    """
    artifact.check_place(path, "savedmodel", overwrite=overwrite)
    if type(top) is not int or top < 1:
        raise ValueError(f"`top` must be 1 or more; got {top!r}.")
    classifier = as_classifier(model, labels, transform)
    model = classifier.model
    graph = ExportGraph(model, preprocessing)
    labels = artifact.check_labels(classifier.labels, model)
    serving = _Serving(graph, labels, top, classifier.transform)
    whole = preprocessing is not None and graph.shape[2] == 3
    return artifact.export(
        model,
        path,
        format="savedmodel",
        write=lambda new: serving.save(new, whole=whole),
        preprocessing=preprocessing,
        images=images,
        limits=limits,
        overwrite=overwrite,
    )


def write_saved_model(graph: ExportGraph, path, *, batch, dtype="float32"):
    """Write a graph with `serving_default` alone, for converters.

    Args:
        graph: An `ExportGraph`.
        path: Folder to write.
        batch: Batch size, or `None` for any.
        dtype: Of the pixels.
    """
    module = tf.Module()
    module.weights = [variable.value for variable in graph.variables]
    module.serve = graph.function(batch, dtype)
    with artifact.quiet("tensorflow"):
        tf.saved_model.save(module, str(path), signatures=module.serve)


def _check_operations(function):
    """Refuse what runs in this process only, and what converters break on."""
    definition = function.graph.as_graph_def()
    nodes = [
        *definition.node,
        *(n for f in definition.library.function for n in f.node_def),
    ]
    for node in nodes:
        if node.op in ("PyFunc", "PyFuncStateless", "EagerPyFunc"):
            raise artifact.ExportError(
                "`model` must have operations that a SavedModel holds; "
                f"{node.name} is a function of Python's."
            )
        if "_XlaMustCompile" in node.attr:
            raise artifact.ExportError(
                "`model` must have operations that every runtime has; "
                f"{node.name} must be compiled by XLA, as Keras' grouped "
                "convolutions. keras_resnext.layers.GroupedConv2D computes "
                "the same."
            )


class _Serving(tf.Module):
    """The signatures of a served model."""

    def __init__(self, graph, labels, top, transform):
        super().__init__()
        self._graph, self._labels, self._top = graph, labels, top
        self._transform = transform
        self._classifies = graph.classifies
        # Keras' own `export` tracks variables twice, and stores them so.
        self.weights = [variable.value for variable in graph.variables]

    def save(self, path, *, whole):
        """Write the folder; `whole` adds what takes pictures of any kind."""
        self.pixels = self._function(self._serve, self._graph.spec(None))
        signatures = {"serving_default": self.pixels}
        if whole:
            spec = self._graph.spec(None, "uint8")
            self.uint8 = self._function(self._serve, spec)
            signatures["image_uint8"] = self.uint8
        if whole and self._transform:
            spec = tf.TensorSpec((None,), tf.string, "image_bytes")
            self.encoded = self._function(self._serve_bytes, spec)
            signatures["image_bytes"] = self.encoded
        _check_operations(self.pixels.get_concrete_function())
        with tempfile.TemporaryDirectory() as folder:
            if self._labels:
                # Read while saving, and its name kept.
                source = pathlib.Path(folder) / "labels.txt"
                text = "\n".join(self._labels) + "\n"
                source.write_text(text, encoding="utf-8")
                self.asset = tf.saved_model.Asset(str(source))
            with artifact.quiet("tensorflow"):
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

    def _serve_bytes(self, image_bytes):
        def pixels(encoded):
            return self._transform.pixels_in_graph(decode(encoded))

        return self._serve(
            tf.map_fn(pixels, image_bytes, fn_output_signature=tf.float32)
        )
