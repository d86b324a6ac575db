"""TensorFlow SavedModel: for TensorFlow Serving, and for the converters."""

import os
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_resnext.export import artifact


def to_saved_model(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    preprocessing: str | keras.Layer | None = "imagenet",
    labels: Sequence[str] | None = None,
    images: np.ndarray | None = None,
    tolerance: float = artifact.TOLERANCE,
    overwrite: bool = False,
) -> artifact.Artifact:
    """Export a model to a SavedModel that loads with TensorFlow alone.

    It has one signature, `serving_default`, from `image`, float32 `(batch,
    height, width, channels)` with any batch, to `probabilities` (`outputs` if
    the model does not end in softmax). `labels` become `assets/labels.txt`.

    Args:
        model: A `keras.Model` with one image input of fixed size.
        path: Folder to write.
        preprocessing: `"imagenet"` if the file shall take RGB pixels in
            [0, 255], a Keras layer or model from such pixels to the network's
            input, or `None` for the bare network. Defaults to `"imagenet"`.
        labels: Class names, in the order of the outputs. Defaults to `None`.
        images: Inputs to compare on, `(images, height, width, channels)`, in
            [0, 255] unless `preprocessing` says otherwise. Defaults to eight
            images of noise.
        tolerance: Largest difference of logits that passes, relative to the
            largest logit or to 1, whichever is more. Defaults to 1e-4.
        overwrite: Whether to replace what is there. Defaults to `False`.

    Returns:
        An `Artifact`.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is false.
        ExportError: if TensorFlow's outputs from the folder are not Keras';
            then there is no folder, or the one that was there before.
        ValueError: if an argument is not one of the above.

    Example:

    >>> to_saved_model(model, "resnext50").max_logit_difference
    """
    labels = check_labels(labels, model)

    def write(new):
        write_saved_model(
            artifact.serving_function(model, preprocessing, batch=None),
            [model, preprocessing],
            new,
            labels,
        )

    return artifact.export(
        model,
        path,
        format="savedmodel",
        write=write,
        open_file=_open,
        preprocessing=preprocessing,
        images=images,
        tolerance=tolerance,
        overwrite=overwrite,
    )


def write_saved_model(serve, parts, path, labels=None):
    """Write a serving function as a SavedModel, each weight once.

    Keras' own `model.export` tracks the variables twice and doubles the size.

    Args:
        serve: A function of `artifact.serving_function`.
        parts: The model and the preprocessing that it calls.
        path: Folder to write.
        labels: Class names, or `None`.
    """
    module = tf.Module()
    module.weights = [
        variable.value
        for part in parts
        if isinstance(part, keras.Layer)
        for variable in part.variables
    ]
    module.serve = serve
    if labels:
        # An asset's source is read while saving, and its name kept.
        source = path.parent / "labels.txt"
        source.write_text("\n".join(labels) + "\n")
        module.labels = tf.saved_model.Asset(str(source))
    with artifact.quiet("tensorflow"):
        tf.saved_model.save(module, str(path), signatures=serve)


def check_labels(labels, model):
    """Labels as a list, if they fit the model.

    Raises:
        ValueError: if they are not one for each output.
    """
    if labels is None:
        return None
    labels, classes = list(labels), model.output_shape[-1]
    names = [label for label in labels if isinstance(label, str)]
    if len(names) != classes or len(labels) != classes:
        raise ValueError(
            f"`labels` must hold the model's {classes} class names; got "
            f"{labels[:20]}."
        )
    return labels


def _open(path):
    loaded = tf.saved_model.load(str(path))
    serve = loaded.signatures["serving_default"]

    run = artifact.in_batches(
        lambda batch: next(
            iter(serve(image=tf.constant(batch)).values())
        ).numpy()
    )
    # The signature does not keep alive the variables that it reads.
    run.loaded = loaded
    return run
