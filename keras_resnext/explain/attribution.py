"""Grad-CAM and integrated gradients: what in an image speaks for a class."""

from typing import Any

import keras
import numpy as np

from keras_resnext.classifier import Classifier
from keras_resnext.explain.probe import are_probabilities
from keras_resnext.explain.probe import check_model
from keras_resnext.explain.probe import find_layer
from keras_resnext.explain.probe import gradient_of
from keras_resnext.explain.probe import is_index
from keras_resnext.explain.probe import watch

_BATCH = 10  # images at once while gradients are summed


def grad_cam(
    model: keras.Model | Classifier,
    image: Any,
    class_index: int | None = None,
    layer: str | keras.layers.Layer | None = None,
) -> np.ndarray:
    """Where a network saw a class: Grad-CAM of one image.

    The channels of a layer are weighted by how much the class's logit grows
    with them, on average over the image, and summed; what speaks against the
    class is cut off at zero. A softmax or sigmoid at the end is left out.

    Args:
        model: A `Classifier` or a `keras.Model` with outputs `(batch,
            classes)`.
        image: For a classifier, whatever its `predict` takes: a file, or uint8
            pixels `(height, width, 3)`. For a model, its own input without
            the batch, float `(height, width, channels)`.
        class_index: Number of the class, from 0. Defaults to `None`, the most
            probable one.
        layer: Layer with a feature map, or its name; it may be in a nested
            model. Defaults to `None`, the last one of more than one pixel.

    Returns:
        float32 `(rows, columns)` of the feature map, 0 and above, in units of
        the logit. `overlay` draws it.

    Raises:
        ValueError: if the model, the class or the layer is not as described.

    Example:

    >>> classifier = Classifier.load("resnext50", weights="imagenet")
    >>> heat = grad_cam(classifier, "photo.jpg")
    >>> heat.shape
    (7, 7)

    Reference:
        Selvaraju et al., arXiv 1610.02391, section 3.
    """
    model, inputs = _model_and_input(model, image)
    layer = find_layer(model, layer)
    run = watch(model, layer)
    scores, maps = run(inputs[None])
    class_index = _choose_class(scores, class_index)
    if len(maps.shape) != 4:
        raise ValueError(
            "`layer` must have a feature map, (batch, height, width, "
            f"channels); that of {layer.name} is {tuple(maps.shape)}."
        )
    gradient = gradient_of(
        lambda shift: run(inputs[None], shift)[0][0, class_index],
        np.zeros(maps.shape, "float32"),
    )
    maps = keras.ops.convert_to_numpy(maps).astype("float32")
    if keras.config.image_data_format() == "channels_first":
        maps, gradient = (np.moveaxis(x, 1, -1) for x in (maps, gradient))
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    return np.maximum((weights * maps).sum(axis=-1)[0], 0)


def integrated_gradients(
    model: keras.Model | Classifier,
    image: Any,
    class_index: int | None = None,
    *,
    baseline: np.ndarray | float = 0.0,
    steps: int = 50,
) -> np.ndarray:
    """How much each input value contributes to a class's logit.

    Gradients are averaged on the straight line from the baseline to the
    image, with the Gauss-Legendre rule, and multiplied by the difference
    between the two. The result sums to the difference between their logits, but
    for the error of the rule.

    Args:
        model: See `grad_cam`.
        image: See `grad_cam`.
        class_index: Number of the class. Defaults to `None`, the most
            probable one.
        baseline: Input without information, of the shape of the model's input
            or one number. Defaults to 0: ImageNet's mean colour for networks
            with normalised input, black for pixels.
        steps: Points on the line. Defaults to 50.

    Returns:
        float32 of the model's input, `(height, width, channels)`, positive
        for what speaks for the class.

    Raises:
        ValueError: if the model, the class, the baseline or `steps` is not as
            described.

    Example:

    >>> classifier = Classifier.load("resnext29_8x4d_f64", "fashion_mnist")
    >>> integrated_gradients(classifier, "photo.jpg", steps=8).shape
    (28, 28, 3)

    Reference:
        Sundararajan et al., arXiv 1703.01365, section 3.
    """
    if not is_index(steps) or steps < 1:
        raise ValueError(
            f"`steps` must be an integer from 1 up; got {steps!r}."
        )
    model, inputs = _model_and_input(model, image)
    baseline = np.asarray(baseline)
    if baseline.shape not in ((), inputs.shape) or baseline.dtype.kind not in (
        "fiu"
    ):
        raise ValueError(
            f"`baseline` must be a number or of shape {inputs.shape}; got "
            f"{baseline.dtype} {baseline.shape}."
        )
    places, shares = np.polynomial.legendre.leggauss(steps)
    places, shares = (places + 1) / 2, shares / 2  # from [-1, 1] to [0, 1]
    total = np.zeros(inputs.shape)
    run = watch(model)
    class_index = _choose_class(run(inputs[None])[0], class_index)
    for i in range(0, steps, _BATCH):
        way = places[i : i + _BATCH].reshape(-1, 1, 1, 1)
        points = (baseline + way * (inputs - baseline)).astype("float32")
        gradients = gradient_of(
            lambda x: keras.ops.sum(run(x)[0][:, class_index]), points
        )
        total += np.tensordot(shares[i : i + _BATCH], gradients, axes=1)
    return ((inputs - baseline) * total).astype("float32")


def _model_and_input(model, image):
    """A Keras model, and one input of it, float32."""
    if isinstance(model, Classifier):
        return model.model, model.require_transform()(image)
    check_model(model)
    inputs = np.asarray(image, "float32")
    if inputs.ndim != 3:
        raise ValueError(
            "`image` must be one input of the model, (height, width, "
            f"channels); got the shape {inputs.shape}."
        )
    if not model.built:
        model(keras.ops.convert_to_tensor(inputs[None]), training=False)
    return model, inputs


def _choose_class(scores, class_index):
    """The class asked for, or that of the highest score."""
    scores = keras.ops.convert_to_numpy(scores)
    if scores.ndim != 2:
        raise ValueError(
            "`model` must have outputs (batch, classes); they are "
            f"{scores.shape}."
        )
    if are_probabilities(scores):
        raise ValueError(
            "`model` must end in logits, or in a layer whose activation is "
            "Keras' softmax or sigmoid; its scores are probabilities, and "
            "their gradients vanish where the model is certain."
        )
    if class_index is None:
        return int(scores[0].argmax())
    if not is_index(class_index) or not -1 < class_index < scores.shape[1]:
        raise ValueError(
            "`class_index` must be an integer from 0 to the last class, "
            f"{scores.shape[1] - 1}; got {class_index!r}."
        )
    return int(class_index)
