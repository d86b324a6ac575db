"""What a built model is: its graph, its images, its outputs."""

from collections.abc import Iterator

import keras


def ends_in_softmax(model: keras.Model) -> bool:
    """Whether a model's outputs are probabilities.

    Args:
        model: A model with one output.

    Returns:
        True if the layer that makes it, in whatever model inside, is a
        softmax or has one as activation.

    Example:

    >>> ends_in_softmax(keras_resnext.ResNeXt50(weights=None))
    True
    """
    last = output_layer(model)
    activation = getattr(last, "activation", None)
    return (
        isinstance(last, keras.layers.Softmax)
        or activation is keras.activations.softmax
    )


def output_layer(model: keras.Model, index: int = 0) -> keras.Layer:
    """The layer that makes an output, in whatever model inside it is.

    Args:
        model: A functional or sequential model; of others, whose calls are
            not known, it is the last layer, or the model itself.
        index: Which of its outputs. Defaults to 0.

    Returns:
        The layer.

    Example:

    >>> output_layer(keras_resnext.ResNeXt50(weights=None)).name
    'predictions'
    """
    outputs = getattr(model, "outputs", None)
    if outputs:
        layer, _, index = outputs[index]._keras_history
    elif model.layers:
        layer, index = model.layers[-1], 0
    else:
        return model
    if isinstance(layer, keras.Model):
        return output_layer(layer, index)
    return layer


def check_classifier(model: keras.Model) -> None:
    """Refuse a model that does not put out class probabilities.

    Args:
        model: The model.

    Raises:
        ValueError: if it ends in features or logits.

    Example:

    >>> check_classifier(keras_resnext.ResNeXt50(weights=None))
    """
    if len(model.output_shape) != 2 or not ends_in_softmax(model):
        raise ValueError(
            "`model` must end in class probabilities (a softmax); "
            f"{model.name} puts out {model.output_shape} without one."
        )


def image_size(model: keras.Model) -> int:
    """Side of the square images that a model takes, in pixels.

    Args:
        model: A model from `(batch, size, size, 3)`.

    Returns:
        The size.

    Raises:
        ValueError: if the model takes something else.

    Example:

    >>> image_size(keras_resnext.ResNeXt50(weights=None))
    224
    """
    shape = model.input_shape
    if len(shape) != 4 or shape[3] != 3 or not shape[1] or shape[1] != shape[2]:
        raise ValueError(
            "`model` must take square RGB images of one size, (batch, size, "
            f"size, 3); it takes {shape}."
        )
    return shape[1]


def image_shape(model):
    """`(height, width, channels)` of the model's input.

    Raises:
        ValueError: if it is no model or one of them is not fixed.
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


def output_names(model):
    """What the model's outputs are, in their order.

    `"probabilities"` of a softmax, `"logits"` of a dense layer (`"scores"` if
    that has another activation), or `"features"`; if there are several, the
    names of the layers that make them; of a dict, its keys.

    Raises:
        ValueError: if they are nested.
    """
    # A sequential model may have none.
    output = getattr(model, "output", None)
    if isinstance(output, dict):
        parts, names = list(output.values()), sorted(output)
    elif len(model.outputs) > 1:
        parts, names = output or model.outputs, _layer_names(model)
    else:
        parts, names = model.outputs, [_meaning(model)]
    if not all(isinstance(part, keras.KerasTensor) for part in parts):
        raise ValueError(
            "`model` must put out a tensor, or a list or dict of some; "
            f"{model.name} nests them."
        )
    return names


def _layer_names(model):
    """A name of its own for each output."""
    # A sequential model has none; those of a model inside are all its name.
    names = [str(name) for name in getattr(model, "output_names", ())]
    if len(set(names)) < len(model.outputs):
        outputs = range(len(model.outputs))
        names = [output_layer(model, i).name for i in outputs]
    if len(set(names)) < len(names):
        names = [f"{name}_{i}" for i, name in enumerate(names)]
    return names


def _meaning(model):
    if ends_in_softmax(model):
        return "probabilities"
    last = output_layer(model)
    if not isinstance(last, keras.layers.Dense):
        return "features"
    plain = last.activation is keras.activations.linear
    return "logits" if plain else "scores"


def puts_out_probabilities(model):
    """Whether the only output is that of a softmax, whatever its name."""
    return len(model.outputs) == 1 and ends_in_softmax(model)


def classifies(model):
    """Whether a model puts out one score for each class."""
    return (
        len(model.outputs) == 1
        and len(model.outputs[0].shape) == 2
        and _meaning(model) != "features"
    )


def layers_of(model: keras.Model) -> Iterator[keras.Layer]:
    """All layers of a model, those of models inside it too.

    Args:
        model: The model.

    Yields:
        The layers; a model inside before its own.

    Example:

    >>> {layer.compute_dtype for layer in layers_of(model)}
    {'float32'}
    """
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from layers_of(layer)


def is_graph(layer):
    """Whether a layer is itself a model made of layers."""
    if isinstance(layer, keras.Sequential):
        return layer.built
    # Only models that are graphs have operations.
    return isinstance(layer, keras.Model) and hasattr(layer, "operations")


def always_training(model):
    """Names of layers that are called with `training=True`."""
    return {
        entry["name"]
        for entry in graph_config(model)["layers"]
        for node in entry["inbound_nodes"]
        if node["kwargs"].get("training")
    }


def edges(model):
    """What each layer reads, and what reads it, from the model's config."""
    config = graph_config(model)
    producers, readers = {}, {}
    for entry in config["layers"]:
        name = entry["name"]
        producers[name] = _sources(entry["inbound_nodes"])
        for source in producers[name]:
            readers.setdefault(source, []).append(name)
    for name in _output_layers(config["output_layers"]):
        readers.setdefault(name, []).append("the model's output")
    return producers, readers


def graph_config(model):
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
