"""What a built model is: its graph, its images, its outputs."""

from collections.abc import Iterator

import keras

from keras_resnext import private


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
