"""Look inside a classifier: what it looked at, and what it finds alike.

Everything works on TensorFlow, JAX and PyTorch, and for networks of the
builders, models with one of them nested, and others that end in scores of
classes. A `Classifier` is given photographs, a plain model its own input.
"""

import contextlib
import operator
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from PIL import Image

from keras_resnext import private
from keras_resnext.classifier import Classifier
from keras_resnext.classifier import named_images
from keras_resnext.classifier import read_ahead
from keras_resnext.extras import require
from keras_resnext.extras import suggest
from keras_resnext.inspection import layers_of
from keras_resnext.inspection import output_layer

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
    layer = _find_layer(model, layer)
    run = _watched(model, layer)
    scores, maps = run(inputs[None])
    class_index = _choose_class(scores, class_index)
    if len(maps.shape) != 4:
        raise ValueError(
            "`layer` must have a feature map, (batch, height, width, "
            f"channels); that of {layer.name} is {tuple(maps.shape)}."
        )
    gradient = _gradient(
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

    >>> integrated_gradients(classifier, "photo.jpg").shape
    (224, 224, 3)

    Reference:
        Sundararajan et al., arXiv 1703.01365, section 3.
    """
    if not _is_index(steps) or steps < 1:
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
    run = _watched(model)
    class_index = _choose_class(run(inputs[None])[0], class_index)
    for i in range(0, steps, _BATCH):
        way = places[i : i + _BATCH].reshape(-1, 1, 1, 1)
        points = (baseline + way * (inputs - baseline)).astype("float32")
        gradients = _gradient(
            lambda x: keras.ops.sum(run(x)[0][:, class_index]), points
        )
        total += np.tensordot(shares[i : i + _BATCH], gradients, axes=1)
    return ((inputs - baseline) * total).astype("float32")


def overlay(
    image: np.ndarray | Image.Image,
    heat: np.ndarray,
    *,
    opacity: float = 0.6,
    colormap: str = "turbo",
) -> np.ndarray:
    """Lay a heat map over its image.

    Heat is scaled to its largest value. Where it is zero, the image is as it
    was, and the hotter, the more colour covers it.

    Args:
        image: uint8 `(height, width, 3)`, or a Pillow image; of a classifier's
            photograph, `classifier.transform.pixels(photo)`.
        heat: What `grad_cam` returned, `(rows, columns)`; or attributions
            `(height, width, channels)`, of which the positive sums count.
        opacity: Share of the colour at the hottest place. Defaults to 0.6.
        colormap: One of Matplotlib's. Defaults to `"turbo"`, whose hot end
            is dark red, which shows on white too.

    Returns:
        uint8 `(height, width, 3)`.

    Raises:
        ValueError: if an argument is not as described.
        ImportError: if Matplotlib is missing.

    Example:

    >>> pixels = classifier.transform.pixels("photo.jpg")
    >>> Image.fromarray(overlay(pixels, heat)).save("heat.png")
    """
    require("matplotlib", extra="train", purpose="The overlay")
    import matplotlib

    if isinstance(image, Image.Image):
        image = image.convert("RGB")
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(
            "`image` must be uint8 (height, width, 3); got "
            f"{image.dtype} {image.shape}."
        )
    heat = np.asarray(heat, "float32")
    if heat.ndim == 3:
        heat = np.maximum(heat.sum(axis=-1), 0)
    if heat.ndim != 2 or not heat.size or not np.isfinite(heat).all():
        raise ValueError(
            "`heat` must be finite (rows, columns) or (height, width, "
            f"channels); got {heat.shape}."
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f"`opacity` must be in [0, 1]; got {opacity!r}.")
    if colormap not in matplotlib.colormaps:
        raise ValueError(
            "`colormap` must be one of Matplotlib's; got "
            f"{colormap!r}.{suggest(colormap, matplotlib.colormaps)}"
        )
    heat = np.maximum(heat, 0) / max(heat.max(), np.finfo("float32").tiny)
    size = image.shape[1], image.shape[0]
    resized = Image.fromarray(heat).resize(size, Image.Resampling.BICUBIC)
    heat = np.clip(resized, 0, 1)
    colors = matplotlib.colormaps[colormap](heat)[..., :3]
    cover = opacity * heat[..., None]
    blended = (1 - cover) * image + cover * 255 * colors
    return blended.round().astype("uint8")


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
    >>> nearest_neighbors(vectors, vectors[:1], count=3)[0]
    array([[ 0, 17,  4]])
    """
    if not _is_index(batch_size) or batch_size < 1:
        raise ValueError(
            f"`batch_size` must be an integer from 1 up; got {batch_size!r}."
        )
    model, batches = _model_and_batches(model, images, batch_size)
    _check_one_output(model)
    head = _dense_head(model)
    vectors, seen = [], []

    def remember(call, inputs, *args, **kwargs):
        seen.append(inputs)
        return call(inputs, *args, **kwargs)

    with contextlib.ExitStack() as stack:
        if head:
            stack.enter_context(_intercepted(head, remember))
        for batch in batches:
            seen.clear()
            outputs = model(keras.ops.convert_to_tensor(batch), training=False)
            outputs = keras.ops.convert_to_numpy(seen[0] if head else outputs)
            if outputs.ndim != 2 or (not head and _are_probabilities(outputs)):
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
    _check_model(model)
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

    >>> indices, similarities = nearest_neighbors(vectors, queries)
    """
    require("sklearn", extra="train", purpose="Looking for neighbours")
    from sklearn.neighbors import NearestNeighbors

    if not _is_index(count) or not 1 <= count <= len(vectors):
        raise ValueError(
            f"`count` must be from 1 to the number of vectors, {len(vectors)}; "
            f"got {count!r}."
        )
    search = NearestNeighbors(n_neighbors=count, metric="cosine").fit(vectors)
    distances, indices = search.kneighbors(queries)
    return indices, (1 - distances).astype("float32")


def _model_and_input(model, image):
    """A Keras model, and one input of it, float32."""
    if isinstance(model, Classifier):
        return model.model, model.require_transform()(image)
    _check_model(model)
    _check_one_output(model)
    inputs = np.asarray(image, "float32")
    if inputs.ndim != 3:
        raise ValueError(
            "`image` must be one input of the model, (height, width, "
            f"channels); got the shape {inputs.shape}."
        )
    if not model.built:
        model(keras.ops.convert_to_tensor(inputs[None]), training=False)
    return model, inputs


def _check_model(model):
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"`model` must be a keras.Model or a Classifier; got {model!r}."
        )


def _check_one_output(model):
    outputs = getattr(model, "outputs", None) or ()
    if len(outputs) > 1:
        raise ValueError(
            f"`model` must have one output; {model.name} has {len(outputs)}."
        )


def _find_layer(model, layer):
    """The layer asked for, or the last one with a feature map."""
    layers = list(
        dict.fromkeys(
            x for x in layers_of(model) if not isinstance(x, keras.Model)
        )
    )
    if layer is None:
        for candidate in reversed(layers):
            if _has_map(candidate):
                return candidate
        raise ValueError(
            f"`layer` must be given: no layer of {model.name} is known to have "
            "a feature map, (batch, height, width, channels)."
        )
    if layer in layers:
        return layer
    named = [x for x in layers if x.name == layer]
    if len(named) == 1:
        return named[0]
    if named:
        raise ValueError(
            f"`layer` must be a layer, or a name that only one has; {layer!r} "
            f"is the name of {len(named)} in {model.name}."
        )
    names = [x.name for x in layers]
    raise ValueError(
        f"`layer` must be a layer of {model.name}, or the name of one; got "
        f"{layer!r}.{suggest(layer, names) if isinstance(layer, str) else ''}"
    )


def _has_map(layer):
    """Whether a layer is known to have a feature map of several pixels."""
    try:
        shape = layer.output.shape
    except (AttributeError, ValueError):
        return False  # it is called several times, or in no graph
    first = keras.config.image_data_format() == "channels_first"
    return len(shape) == 4 and (shape[2:] if first else shape[1:3]) != (1, 1)


def _choose_class(scores, class_index):
    """The class asked for, or that of the highest score."""
    scores = keras.ops.convert_to_numpy(scores)
    if scores.ndim != 2:
        raise ValueError(
            "`model` must have outputs (batch, classes); they are "
            f"{scores.shape}."
        )
    if _are_probabilities(scores):
        raise ValueError(
            "`model` must end in logits, or in a layer whose activation is "
            "Keras' softmax or sigmoid; its scores are probabilities, and "
            "their gradients vanish where the model is certain."
        )
    if class_index is None:
        return int(scores[0].argmax())
    if not _is_index(class_index) or not -1 < class_index < scores.shape[1]:
        raise ValueError(
            "`class_index` must be an integer from 0 to the last class, "
            f"{scores.shape[1] - 1}; got {class_index!r}."
        )
    return int(class_index)


def _are_probabilities(scores):
    """Whether all rows are from 0 to 1 and sum to 1, in 8 bits or more."""
    sums = scores.astype("float64").sum(axis=-1)
    return bool((scores >= 0).all() and np.allclose(sums, 1, atol=2**-7))


def _is_index(value):
    """Whether a value is an integer, of Python or NumPy."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, (bool, np.ndarray))


def _watched(model, layer=None):
    """A function that runs a model, without a softmax or sigmoid at its end.

    It returns logits and the layer's output, and adds its second argument to
    that output: a gradient with respect to what is added is one with respect
    to the output, in any framework.
    """
    last = output_layer(model)
    seen, ends = [], []

    def run(inputs, shift=None):
        def watch(call, *args, **kwargs):
            outputs = call(*args, **kwargs)
            seen.append(outputs)
            if shift is None:
                return outputs
            return outputs + keras.ops.cast(shift, outputs.dtype)

        def end(call, *args, **kwargs):
            ends.append(last)
            return _call_without_activation(last, call, *args, **kwargs)

        seen.clear()
        ends.clear()
        with contextlib.ExitStack() as stack:
            if isinstance(last, keras.layers.Layer) and last is not model:
                stack.enter_context(_intercepted(last, end))
            if layer is not None:
                stack.enter_context(_intercepted(layer, watch))
            scores = model(keras.ops.convert_to_tensor(inputs), training=False)
        for name, calls in ((layer, seen), (last, ends)):
            if name is not None and len(calls) > 1:
                raise ValueError(
                    f"`model` must call {name.name} once; {model.name} calls "
                    f"it {len(calls)} times."
                )
        if layer is not None and not seen:
            raise ValueError(
                f"`layer` must be called by {model.name}; {layer.name} is not."
            )
        return keras.ops.cast(scores, "float32"), seen[0] if seen else None

    return run


def _call_without_activation(layer, call, *args, **kwargs):
    """The logits of a layer that ends in a softmax or a sigmoid."""
    if isinstance(layer, keras.layers.Softmax):
        return args[0]
    activation = getattr(layer, "activation", None)
    if activation not in (keras.activations.softmax, keras.activations.sigmoid):
        return call(*args, **kwargs)
    layer.activation = keras.activations.linear
    try:
        return call(*args, **kwargs)
    finally:
        layer.activation = activation


@contextlib.contextmanager
def _intercepted(layer, around: Callable):
    """Call `around(call, ...)` where a layer would be called."""
    quantized = getattr(layer, "quantization_mode", None) is not None
    name = "quantized_call" if quantized else "call"
    call, own = getattr(layer, name), name in vars(layer)
    setattr(layer, name, lambda *args, **kwargs: around(call, *args, **kwargs))
    try:
        yield
    finally:
        if own:
            setattr(layer, name, call)
        else:
            delattr(layer, name)  # the class' own shows again


def _gradient(function, x):
    """Gradient of a number with respect to an array, on any backend."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        gradient = tape.gradient(y, x)
        if gradient is None:
            raise ValueError(
                "`model` must be differentiable; its scores have no gradient."
            )
        return gradient.numpy()
    if backend == "jax":
        import jax

        return np.asarray(jax.grad(function)(x))
    if backend == "torch":
        import torch

        x = keras.ops.convert_to_tensor(x).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(function(x), x)
        return keras.ops.convert_to_numpy(gradient)
    raise NotImplementedError(
        f"Gradients need the backend tensorflow, jax or torch; got {backend}."
    )
