"""Rewrite a built model, weights intact: other forms, folded batch norms.

Each function makes a new model with layers and weights of its own and leaves
the one it is given as it was. They know how blocks name their layers
(`keras_resnext.blocks`) and nothing of the variants built from them.
"""

import re

import keras
import numpy as np

from keras_resnext import blocks
from keras_resnext.layers import FusedBatchNormalization
from keras_resnext.layers import GroupedConv2D

# Layers inside a block's transform, whichever its form: "<block>_<part>" and,
# in the explicit forms, the path.
_PART = re.compile(
    r"(?P<block>.+)_(?P<part>1_conv|1_bn|1_relu|2_pad|2_conv|2_bn|2_relu"
    r"|2_concat|3_conv|3_sum|3_bn)(?P<path>_path\d+)?"
)

_STOCK_LAYERS = {
    GroupedConv2D: keras.layers.Conv2D,
    FusedBatchNormalization: keras.layers.BatchNormalization,
}


def convert_form(model: keras.Model, form: str) -> keras.Model:
    """The same network with its blocks in another form.

    Args:
        model: A functional or sequential `keras.Model` with blocks of any
            form, trained or not, at its top level or in models inside it.
        form: `"grouped"` (paper, Fig. 3c), `"concatenated"` (3b) or
            `"branches"` (3a).

    Returns:
        A functional `keras.Model` of the same name, inputs, outputs and
        weights; kernels of the paths are slices of the grouped ones. Layers
        inside blocks are made anew as the builders make them and keep their
        data type, layout and `trainable`.

    Raises:
        ValueError: if `form` is none of these, the model has no such blocks
            or is no functional or sequential one, or a block is used twice.

    Example:

    >>> explicit = convert_form(keras_resnext.ResNeXt50(weights=None),
    ...                         "branches")

    Reference:
        arXiv 1611.05431, section 3.3 and Fig. 3.
    """
    if form not in blocks.TRANSFORMS:
        raise ValueError(
            f"`form` must be one of {', '.join(map(repr, blocks.TRANSFORMS))}"
            f"; got {form!r}."
        )
    model = _as_functional(model)
    if not _has_blocks(model):
        raise ValueError(
            "`model` must have blocks built by `keras_resnext`, or models "
            f"inside it that do; {model.name} has none."
        )
    parts = _parts(model)
    built = set()

    def make(layer):
        if layer.name in parts:
            return keras.layers.Identity(name=layer.name)
        if _is_nested(layer) and _has_blocks(layer):
            return convert_form(layer, form)
        return _copy(layer)

    def call(layer, *args, **kwargs):
        if layer.name not in parts:
            return layer(*args, **kwargs)
        # A block's input passes through all that was inside it; where paths
        # meet, they all bring the same.
        x = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
        block, part = parts[layer.name]
        if part != "3_bn":
            return x
        if block in built:
            raise ValueError(
                f"`model` must use each block once; {model.name} shares the "
                f"layers of {block}."
            )
        built.add(block)
        return _build_transform(model, block, form, x)

    new = keras.models.clone_model(
        model, clone_function=make, call_function=call
    )
    _copy_weights(model, new)
    return new


def to_stock_layers(model: keras.Model) -> keras.Model:
    """The same network and weights from layers of Keras alone.

    Its `.keras` file opens where this package is not installed, at the price
    of Keras' slow grouped convolutions; in the explicit forms there are none.

    Args:
        model: A functional or sequential `keras.Model`.

    Returns:
        A functional `keras.Model` of the same name, inputs, outputs and
        weights.

    Raises:
        ValueError: if the model is no functional or sequential one.

    Example:

    >>> to_stock_layers(model).save("plain.keras")
    """
    model = _as_functional(model)

    def make(layer):
        for ours, stock in _STOCK_LAYERS.items():
            if isinstance(layer, ours):
                return stock.from_config(layer.get_config())
        return to_stock_layers(layer) if _is_nested(layer) else _copy(layer)

    new = keras.models.clone_model(model, clone_function=make)
    _copy_weights(model, new)
    return new


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """The same network for inference, without batch norms.

    In inference a batch norm is a scale and a shift of each channel. The
    convolution before it absorbs both; where the paths of the branches form
    meet in a sum, each of their last convolutions takes the scale and the
    first the shift. Outputs agree to float32's rounding.

    Args:
        model: A functional or sequential `keras.Model`.

    Returns:
        A functional `keras.Model` of the same name, inputs and outputs.
        Training it would train another network.

    Raises:
        ValueError: if a batch norm does not follow a convolution, or a sum of
            convolutions, that nothing else reads; it names the layer. Or if
            the model is no functional or sequential one.

    Example:

    >>> fast = fold_batch_norm(keras_resnext.ResNeXt50(weights=None))
    """
    model = _as_functional(model)
    plan = _folding_plan(model)
    firsts = {convs[0] for convs in plan.values()}
    folded = {conv for convs in plan.values() for conv in convs}

    def make(layer):
        if layer.name in folded:
            config = layer.get_config()
            config["use_bias"] = layer.use_bias or layer.name in firsts
            return type(layer).from_config(config)
        if layer.name in plan:
            return keras.layers.Identity(name=layer.name)
        return fold_batch_norm(layer) if _is_nested(layer) else _copy(layer)

    def call(layer, *args, **kwargs):
        return args[0] if layer.name in plan else layer(*args, **kwargs)

    new = keras.models.clone_model(
        model, clone_function=make, call_function=call
    )
    _copy_weights(model, new, without=folded)
    for norm, convs in plan.items():
        scale, shift = _scale_and_shift(model.get_layer(norm))
        for conv in convs:
            kernel, *bias = model.get_layer(conv).get_weights()
            bias = [scale * b for b in bias]
            if conv == convs[0]:
                bias = [shift + b for b in bias] or [shift]
            new.get_layer(conv).set_weights([kernel * scale, *bias])
    return new


def _as_functional(model):
    if isinstance(model, keras.Sequential) and model.built:
        return keras.Model(model.inputs, model.outputs, name=model.name)
    if isinstance(model, keras.Sequential) or not _is_nested(model):
        raise ValueError(
            "`model` must be a functional or a built sequential keras.Model; "
            f"got {model!r}."
        )
    return model


def _is_nested(layer):
    """Whether a layer is itself a model made of layers."""
    # Only models that are graphs have operations.
    return isinstance(layer, keras.Model) and hasattr(layer, "operations")


def _copy(layer):
    return type(layer).from_config(layer.get_config())


def _parts(model):
    """Layer -> (block, part), for the layers inside blocks' transforms."""
    names = {layer.name for layer in model.layers}
    matches = {name: _PART.fullmatch(name) for name in names}
    return {
        name: (match["block"], match["part"])
        for name, match in matches.items()
        if match
        and f"{match['block']}_3_bn" in names
        and f"{match['block']}_out" in names
    }


def _has_blocks(model):
    return bool(_parts(model)) or any(
        _has_blocks(layer) for layer in model.layers if _is_nested(layer)
    )


def _build_transform(model, block, form, x):
    """A block's transform in another form, on a new tensor."""
    paths = [
        layer
        for layer in model.layers
        if layer.name.partition("_path")[0] == f"{block}_2_conv"
    ]
    conv, norm = paths[0], model.get_layer(f"{block}_3_bn")
    cardinality = len(paths) * conv.groups
    policy = keras.config.dtype_policy()
    data_format = keras.config.image_data_format()
    keras.config.set_dtype_policy(conv.dtype_policy)
    keras.config.set_image_data_format(conv.data_format)
    try:
        return blocks.TRANSFORMS[form](
            x,
            cardinality,
            len(paths) * conv.filters // cardinality,
            norm.moving_mean.shape[0],
            conv.strides[0],
            conv.dilation_rate[0],
            block,
        )
    finally:
        keras.config.set_dtype_policy(policy)
        keras.config.set_image_data_format(data_format)


def _copy_weights(source, target, without=()):
    """Weights and `trainable` by name, between any two forms.

    The paths' parts are joined, then cut as the target has them. Models
    inside have theirs already.
    """
    parts, target_parts = _parts(source), _parts(target)
    joined, wanted = {}, {}
    for layer in source.layers:
        joined.setdefault(parts.get(layer.name, layer.name), []).append(layer)
    for layer in target.layers:
        key = target_parts.get(layer.name, layer.name)
        wanted.setdefault(key, []).append(layer)
    for key, layers in wanted.items():
        sources = joined.get(key, [])
        if not sources or _is_nested(layers[0]) or layers[0].name in without:
            continue
        # Paths meet in the third convolution: there it is the inputs that
        # belong to a path, everywhere else the outputs.
        axis = 2 if key[1] == "3_conv" else -1
        whole = [
            np.concatenate(arrays, axis) if len(arrays) > 1 else arrays[0]
            for arrays in zip(
                *(layer.get_weights() for layer in sources), strict=True
            )
        ]
        for i, layer in enumerate(layers):
            layer.trainable = sources[0].trainable
            layer.set_weights(
                [np.split(w, len(layers), axis)[i] for w in whole]
                if len(layers) > 1
                else whole
            )


def _folding_plan(model):
    """Batch norm -> the convolutions that take it in, by name."""
    layers = {layer.name: layer for layer in model.layers}
    producers, readers = _edges(model)
    plan = {}
    for norm in layers.values():
        if not isinstance(norm, keras.layers.BatchNormalization):
            continue
        if len(producers[norm.name]) != 1:
            raise ValueError(
                f"`model` must use each batch norm once; {norm.name} is used "
                f"{len(producers[norm.name])} times."
            )
        (source,) = producers[norm.name]
        convs = [source]
        if isinstance(layers.get(source), keras.layers.Add):
            convs = producers[source]
        for name in convs:
            found = layers.get(name)
            if (
                not isinstance(found, keras.layers.Conv2D)
                or found.activation is not keras.activations.linear
                or len(readers[name]) > 1
                or len(readers[source]) > 1
            ):
                raise ValueError(
                    "`model` must have linear convolutions, read by nothing "
                    f"else, before its batch norms; {norm.name} reads {name} "
                    f"({type(found).__name__})."
                )
        plan[norm.name] = convs
    return plan


def _edges(model):
    """What each layer reads, and what reads it, from the model's config."""
    config = model.get_config()
    producers, readers = {}, {}
    for entry in config["layers"]:
        name = entry["config"]["name"]
        producers[name] = _sources(entry["inbound_nodes"])
        for source in producers[name]:
            readers.setdefault(source, []).append(name)
    for name in _output_layers(config["output_layers"]):
        readers.setdefault(name, []).append("the model's output")
    return producers, readers


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


def _scale_and_shift(norm):
    """A batch norm in inference, as `y = scale * x + shift`."""

    def value(variable):
        return keras.ops.convert_to_numpy(variable).astype("float64")

    scale = 1 / np.sqrt(value(norm.moving_variance) + norm.epsilon)
    if norm.scale:
        scale = scale * value(norm.gamma)
    shift = -value(norm.moving_mean) * scale
    if norm.center:
        shift = shift + value(norm.beta)
    return scale, shift
