"""Images as vectors, and the ones most alike."""

import contextlib
from typing import Any

import keras
import numpy as np

from keras_resnext import private
from keras_resnext.classifier import Classifier
from keras_resnext.classifier import named_images
from keras_resnext.classifier import read_ahead
from keras_resnext.explain.probe import are_probabilities
from keras_resnext.explain.probe import check_model
from keras_resnext.explain.probe import intercepted
from keras_resnext.explain.probe import is_index
from keras_resnext.extras import require
from keras_resnext.inspection import output_layer


def embed(
    model: keras.Model | Classifier, images: Any, *, batch_size: int = 32
) -> np.ndarray:
    """The features that a network's classifier sees, one vector an image.

    Args:
        model: A `Classifier` or a `keras.Model`. A dense layer at the end,
            also with a softmax after it, is the classifier, and the vectors are
            what it reads; else they are the model's outputs, `(batch,
            features)`.
        images: For a classifier, whatever its `predict` takes: files, a
            folder, or arrays. For a model, its input, `(batch, height, width,
            channels)`.
        batch_size: Images at once. Defaults to 32.

    Returns:
        float32 `(images, features)`.

    Raises:
        ValueError: if an image cannot be read, or the model ends in anything
            else.

    Example:

    >>> vectors = embed(classifier, "photos/")
    >>> indices, similarities = nearest_neighbors(vectors, vectors[:1], 3)
    >>> indices.shape, int(indices[0, 0])
    ((1, 3), 0)
    """
    if not is_index(batch_size) or batch_size < 1:
        raise ValueError(
            f"`batch_size` must be an integer from 1 up; got {batch_size!r}."
        )
    model, batches = _model_and_batches(model, images, batch_size)
    head = _dense_head(model)
    vectors, seen = [], []

    def remember(call, inputs, *args, **kwargs):
        seen.append(inputs)
        return call(inputs, *args, **kwargs)

    with contextlib.ExitStack() as stack:
        if head:
            stack.enter_context(intercepted(head, remember))
        for batch in batches:
            seen.clear()
            outputs = model(keras.ops.convert_to_tensor(batch), training=False)
            outputs = keras.ops.convert_to_numpy(seen[0] if head else outputs)
            if outputs.ndim != 2 or (not head and are_probabilities(outputs)):
                raise ValueError(
                    "`model` must end in a dense classifier or in vectors, "
                    f"(batch, features); {model.name} ends in "
                    f"{outputs.shape}"
                    + (", probabilities." if outputs.ndim == 2 else ".")
                )
            vectors.append(outputs.astype("float32"))
    return np.concatenate(vectors)


def _model_and_batches(model, images, batch_size):
    """A Keras model, and its inputs in batches."""
    if isinstance(model, Classifier):
        named = named_images(images)
        read = read_ahead(model.require_transform(), named, batch_size)
        return model.model, (_all_read(inputs) for _, inputs in read)
    check_model(model)
    images = np.asarray(images)
    if images.ndim != 4 or images.dtype.kind not in "fiu" or not len(images):
        raise ValueError(
            "`images` must be inputs of the model, (batch, height, width, "
            f"channels); got {images.dtype} {images.shape}."
        )
    starts = range(0, len(images), batch_size)
    return model, (images[i : i + batch_size] for i in starts)


def _dense_head(model):
    """The dense layer that ends a model, or feeds the softmax that does."""
    last = output_layer(model)
    if isinstance(last, (keras.layers.Softmax, keras.layers.Activation)):
        (source,) = private.read_tensors(last.output)
        last = private.keras_history(source)[0]
        if isinstance(last, keras.Model):
            last = output_layer(last)
    return last if isinstance(last, keras.layers.Dense) else None


def _all_read(inputs):
    """A batch, or the error of the image that could not be read."""
    for error in inputs:
        if isinstance(error, Exception):
            raise error
    return np.stack(inputs)


def nearest_neighbors(
    vectors: np.ndarray, queries: np.ndarray, count: int = 5
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors most like each query, by the angle between them.

    Args:
        vectors: Result of `embed`, `(images, features)`.
        queries: The same of the images to look for, `(queries, features)`.
        count: Number of neighbours. Defaults to 5.

    Returns:
        Indices into `vectors`, int64, and cosine similarities, float32, both
        `(queries, count)`, the nearest first.

    Raises:
        ValueError: if there are fewer vectors than `count`.
        ImportError: if scikit-learn is missing.

    Example:

    >>> vectors = np.array([[1, 0], [3, 4], [0, 1]])
    >>> nearest_neighbors(vectors, [[0, 2]], count=2)
    (array([[2, 1]]), array([[1. , 0.8]], dtype=float32))
    """
    require("sklearn", extra="train", purpose="Looking for neighbours")
    from sklearn.neighbors import NearestNeighbors

    if not is_index(count) or not 1 <= count <= len(vectors):
        raise ValueError(
            f"`count` must be from 1 to the number of vectors, {len(vectors)}; "
            f"got {count!r}."
        )
    search = NearestNeighbors(n_neighbors=count, metric="cosine").fit(vectors)
    distances, indices = search.kneighbors(queries)
    return indices, (1 - distances).astype("float32")
