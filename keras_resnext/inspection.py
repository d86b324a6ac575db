"""What a built model is: its graph, its images, its outputs."""

from collections.abc import Iterator

import keras
import numpy as np

from keras_resnext import private
from keras_resnext.fake_quantization import FakeQuantization
from keras_resnext.fake_quantization import QuantizedConv2D
from keras_resnext.names import STEM

# Grey levels that `input_kind` follows through a model, and how far one that
# nothing normalised may come out from where it went in.
_GREYS = np.float32([0, 64, 128, 255])
_NOISE = 0.25
# Normalised pixels span no more than this: their standard deviation was at
# least four levels of 255. Images in [0, 1] would be stretched, not shrunk.
_NORMALIZED_SPAN = 64
# Pixels less their mean go about as far below zero.
_MEAN_LEVEL = 16


def output_layer(model: keras.Model, index: int = 0) -> keras.Layer:
    """The layer that computes an output, looked up in nested models too.

    Args:
        model: A functional or sequential model. Of other models, whose graph
            is not known, it is the last layer, or the model itself.
        index: Which output. Defaults to 0.

    Returns:
        The layer.

    Example:

    >>> output_layer(keras_resnext.ResNeXt50(weights=None)).name
    'predictions'
    """
    outputs = getattr(model, "outputs", None)
    if outputs:
        layer, _, index = private.keras_history(outputs[index])
    elif model.layers:
        layer, index = model.layers[-1], 0
    else:
        return model
    if isinstance(layer, keras.Model):
        return output_layer(layer, index)
    return layer


def output_kind(model: keras.Model) -> str:
    """What a model's output means, judged by the layer that computes it.

    Args:
        model: The model.

    Returns:
        `"probabilities"` (of a softmax), `"logits"` (of a dense layer),
        `"scores"` (of a dense layer with another activation), `"features"`,
        or `"several"` if there is more than one output.

    Example:

    >>> output_kind(keras_resnext.ResNeXt50(weights=None))
    'probabilities'
    """
    if len(getattr(model, "outputs", None) or ()) > 1:
        return "several"
    last = output_layer(model)
    activation = getattr(last, "activation", None)
    if (
        isinstance(last, keras.layers.Softmax)
        or activation is keras.activations.softmax
    ):
        return "probabilities"
    if not isinstance(last, keras.layers.Dense):
        return "features"
    return "logits" if activation is keras.activations.linear else "scores"


def puts_out_probabilities(model):
    """Whether the model's only output is a softmax's."""
    return output_kind(model) == "probabilities"


def classifies(model):
    """Whether a model's only output has one number for each class."""
    kind = output_kind(model)
    return kind not in ("features", "several") and (
        len(model.outputs[0].shape) == 2
    )


def check_classifier(model: keras.Model) -> None:
    """Refuse a model that does not end in class probabilities.

    Args:
        model: The model.

    Raises:
        ValueError: if it ends in features or logits.

    Example:

    >>> check_classifier(keras_resnext.ResNeXt50(weights=None))
    """
    if len(model.output_shape) != 2 or output_kind(model) != "probabilities":
        raise ValueError(
            "`model` must end in class probabilities (a softmax); "
            f"{model.name} puts out {model.output_shape} without one."
        )


def input_kind(model: keras.Model) -> str:
    """What a model's images are: plain pixels, or pixels already normalised.

    Judged by the graph, so that it holds for a loaded `.keras` file, another
    head, a converted form and a model inside another. Grey images are followed
    from the input to the first layers with weights, through whatever comes
    before: `keras_resnext.preprocess_input` and those of `keras.applications`,
    `Rescaling`, `Normalization`, augmentation, models of such layers.

    Args:
        model: The model.

    Returns:
        `"pixels"` if the model takes pixels in [0, 255] and normalises them
        itself; `"normalized"` if it starts with a stem of this package's
        builders, which takes the result of `keras_resnext.preprocess_input`;
        `"unknown"` if the graph does not say.

    Example:

    >>> network = keras_resnext.ResNeXt50(weights=None)
    >>> input_kind(network)
    'normalized'
    >>> inputs = keras.Input((224, 224, 3))
    >>> x = network(keras_resnext.preprocess_input(inputs))
    >>> input_kind(keras.Model(inputs, x))
    'pixels'
    """
    inputs = getattr(model, "inputs", None) or ()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or not is_graph(model):
        return "unknown"
    if "int" in str(inputs[0].dtype):
        return "pixels"  # normalised ones are fractions
    # 64 pixels where any number will do.
    greys = grey_images([side or 64 for side in inputs[0].shape[1:]])
    kinds = {
        "pixels"
        if _are_normalized(values)
        else "normalized"
        if is_stem and changes_nothing(values)
        else "unknown"
        for is_stem, values in _first_readings(model, greys)
    }
    return kinds.pop() if len(kinds) == 1 else "unknown"


def grey_images(shape: tuple[int, ...]) -> np.ndarray:
    """Grey images in [0, 255] from black to white, for `changes_nothing`.

    Args:
        shape: Their shape, `(height, width, channels)` or channels first.

    Returns:
        float32 array `(4, *shape)`.

    Example:

    >>> grey_images((2, 2, 3))[:, 0, 0, 0]
    array([  0.,  64., 128., 255.], dtype=float32)
    """
    return np.ones((1, *shape), "float32") * _GREYS[:, None, None, None]


def changes_nothing(values: np.ndarray) -> bool:
    """Whether what became of `grey_images` is as grey as they are."""
    return bool((abs(_levels(values) - _GREYS) < _NOISE).all())


def output_names(model):
    """A name for each of the model's outputs, in their order.

    Of a single output, its kind; of several, the names of the layers that
    compute them; of a dict, its keys.

    Raises:
        ValueError: if outputs are nested.
    """
    # A sequential model may have no `output`.
    output = getattr(model, "output", None)
    if isinstance(output, dict):
        parts, names = list(output.values()), sorted(output)
    elif len(model.outputs) > 1:
        parts, names = output or model.outputs, _layer_names(model)
    else:
        parts, names = model.outputs, [output_kind(model)]
    if not all(isinstance(part, keras.KerasTensor) for part in parts):
        raise ValueError(
            "`model` must return a tensor, or a list or dict of tensors; "
            f"the outputs of {model.name} are nested."
        )
    return names


def _layer_names(model):
    """A different name for each output."""
    # A sequential model has none; a nested model's outputs share its name.
    names = [str(name) for name in getattr(model, "output_names", ())]
    if len(set(names)) < len(model.outputs):
        outputs = range(len(model.outputs))
        names = [output_layer(model, i).name for i in outputs]
    if len(set(names)) < len(names):
        names = [f"{name}_{i}" for i, name in enumerate(names)]
    return names


def image_shape(model: keras.Model) -> tuple[int, int, int]:
    """Shape of the images that a model takes.

    Args:
        model: A model with one image input.

    Returns:
        `(height, width, channels)`.

    Raises:
        ValueError: if the input is not one image of fixed size.

    Example:

    >>> image_shape(keras_resnext.ResNeXt50(weights=None))
    (224, 224, 3)
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model; got {model!r}.")
    inputs = getattr(model, "inputs", None) or ()
    shapes = [tuple(tensor.shape[1:]) for tensor in inputs]
    if len(shapes) != 1 or len(shapes[0]) != 3 or None in shapes[0]:
        raise ValueError(
            "`model` must have one image input of fixed size; its inputs are "
            f"{shapes}. Build it with `input_shape`."
        )
    return shapes[0]


def image_size(model: keras.Model) -> int:
    """Side of the square RGB images that a model takes, in pixels.

    Args:
        model: A model with one input `(batch, size, size, 3)`.

    Returns:
        The size.

    Raises:
        ValueError: if the model takes something else.

    Example:

    >>> image_size(keras_resnext.ResNeXt50(weights=None))
    224
    """
    height, width, channels = image_shape(model)
    if height != width or channels != 3:
        raise ValueError(
            "`model` must take square RGB images, (batch, size, size, 3); "
            f"it takes {(None, height, width, channels)}."
        )
    return height


def is_quantization_aware(model: keras.Model) -> bool:
    """Whether a model comes from `keras_resnext.quantization_aware`.

    Args:
        model: The model.

    Returns:
        Whether it has a `FakeQuantization`.

    Example:

    >>> is_quantization_aware(keras_resnext.ResNeXt50(weights=None))
    False
    """
    return any(isinstance(x, FakeQuantization) for x in layers_of(model))


def layers_of(model: keras.Model) -> Iterator[keras.Layer]:
    """All layers of a model and of the models nested in it.

    Args:
        model: The model.

    Yields:
        The layers; a nested model before its own layers.

    Example:

    >>> {layer.compute_dtype for layer in layers_of(model)}
    {'float32'}
    """
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from layers_of(layer)


def is_graph(layer):
    """Whether a layer is a functional or a built sequential model."""
    if isinstance(layer, keras.Sequential):
        return layer.built
    # Subclassed models have no operations.
    return isinstance(layer, keras.Model) and hasattr(layer, "operations")


def check_graph(model):
    """Refuse a model whose graph of layers is not known."""
    if not is_graph(model):
        raise ValueError(
            "`model` must be a functional or a built sequential keras.Model; "
            f"got {model!r}."
        )


def check_plain_weights(layer):
    """Refuse a layer with LoRA or quantised weights."""
    quantized = getattr(layer, "quantization_mode", None)
    if quantized or getattr(layer, "lora_enabled", False):
        raise ValueError(
            "`model` must have plain float weights; those of "
            f"{layer.name} are "
            + (f"quantized to {quantized}." if quantized else "LoRA's.")
        )


def called_in_training(model):
    """Names of the layers that are called with `training=True`."""
    return {
        entry["name"]
        for entry in graph_config(model)["layers"]
        for node in entry["inbound_nodes"]
        if node["kwargs"].get("training")
    }


def edges(model):
    """The layers before and after each layer, by name."""
    config = graph_config(model)
    sources, readers = {}, {}
    for entry in config["layers"]:
        name = entry["name"]
        sources[name] = _sources(entry["inbound_nodes"])
        for source in sources[name]:
            readers.setdefault(source, []).append(name)
    for name in _output_layers(config["output_layers"]):
        readers.setdefault(name, []).append("the model's output")
    return sources, readers


def graph_config(model):
    """The model's config, or an error that names `model`."""
    try:
        return model.get_config()
    except NotImplementedError as error:  # of one of its layers
        raise ValueError(
            f"`model` must have layers with a config; {error}"
        ) from error


def _sources(tree):
    """Names of the layers whose tensors a piece of config mentions."""
    if isinstance(tree, dict):
        if tree.get("class_name") == "__keras_tensor__":
            return [tree["config"]["keras_history"][0]]
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return [name for part in tree for name in _sources(part)]
    return []


def _output_layers(tree):
    """Names in a config's structure of (layer, node, tensor) triples."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree[0], str):
        return [tree[0]]
    return [name for part in tree for name in _output_layers(part)]


def _levels(values):
    """One number for each image: padding and differing channels aside."""
    values = keras.ops.convert_to_numpy(values).astype("float32")
    return np.median(values.reshape(len(values), -1), axis=1)


def _are_normalized(values):
    """Whether what became of `grey_images` is centred or scaled down."""
    levels = _levels(values)
    span = abs(levels[-1] - levels[0])
    below, above = min(levels), max(levels)
    centred = below <= -_MEAN_LEVEL and above >= _MEAN_LEVEL
    return 0 < span <= _NORMALIZED_SPAN or (
        centred and span <= _GREYS[-1] + _NOISE
    )


def _first_readings(model, images):
    """What the first layers with weights read when a model gets `images`.

    Yields:
        Whether the layer is a stem of the builders, and an array.
    """
    found = _first_tensors(model)
    if not found:
        return
    # The name keeps Keras from counting this model among the unnamed.
    probe = keras.Model(
        model.inputs[0], [tensor for _, tensor in found], name="probe"
    )
    values = keras.tree.flatten(probe(images, training=False))
    for (layer, _), value in zip(found, values, strict=True):
        if is_graph(layer) and len(layer.inputs) == 1:
            yield from _first_readings(layer, value)
        else:
            yield _is_stem(layer, model), value


def _first_tensors(model):
    """The first layers with weights, each with a tensor that it reads."""
    found, plain = [], {}
    waiting = list(model.outputs)
    while waiting:
        tensor = waiting[-1]
        layer = private.keras_history(tensor)[0]
        read = private.read_tensors(tensor)
        missing = [t for t in read if id(t) not in plain]
        if missing:
            waiting += missing
            continue
        waiting.pop()
        if id(tensor) in plain:
            continue
        reads_plain = all(plain[id(t)] for t in read)
        learns = _learns(layer)
        plain[id(tensor)] = reads_plain and not learns
        if reads_plain and learns:
            found += [(layer, t) for t in read]
    return found


def _learns(layer):
    """Whether an operation has weights other than a `Normalization`'s."""
    layers = layers_of(layer) if isinstance(layer, keras.Model) else [layer]
    if isinstance(layer, keras.Model) and not is_graph(layer):
        return True
    return any(
        getattr(x, "weights", ())
        for x in layers
        if not isinstance(x, (keras.Model, keras.layers.Normalization))
    )


def _is_stem(layer, model):
    """Whether a layer is the first convolution of this package's builders.

    Other networks of keras.applications have these names: DenseNet for its
    stem, ResNets for their blocks too, with biases, which only networks
    without any batch norm have here: folded ones.
    """
    layers = {other.name: other for other in model.layers}
    norms = {
        name
        for name, other in layers.items()
        if isinstance(other, keras.layers.BatchNormalization)
    }
    if isinstance(layer, FakeQuantization):  # of the images
        layer = layers.get(STEM, layer)
    return (
        layer.name == STEM
        and isinstance(layer, keras.layers.Conv2D)
        and "conv2_block1_out" in layers
        and (
            isinstance(layer, QuantizedConv2D)
            or (not norms if layer.use_bias else "conv1_bn" in norms)
        )
    )
