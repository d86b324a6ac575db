"""Rewrite a built model, weights intact: other forms, folded batch norms.

Each function makes a new model with layers and weights of its own and leaves
the one it is given as it was. They know how blocks name their layers
(`keras_resnext.blocks`) and nothing of the variants built from them.
"""

import re
from collections.abc import Iterator

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
        data type, layout, `trainable`, regularizers and the like. A layer or
        model that is used several times is so in the new model too.

    Raises:
        ValueError: if `form` is none of these, the model has no such blocks
            or is not made of functional and sequential ones, a block is used
            twice or read in its middle, or its layers are not those that the
            builders make; it names the layer.

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
    return _convert_form(model, form, {})


def _convert_form(model, form, done):
    parts = _parts(model)
    _check_blocks(model, parts)

    def make(layer):
        if layer.name in parts:
            return keras.layers.Identity(name=layer.name)
        return _once(layer, done, lambda m: _convert_form(m, form, done))

    def call(layer, *args, **kwargs):
        if layer.name not in parts:
            return layer(*args, **kwargs)
        # A block's input passes through all that was inside it; where paths
        # meet, they all bring the same.
        x = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
        block, part = parts[layer.name]
        if part != "3_bn":
            return x
        if done.setdefault(model.get_layer(layer.name), model) is not model:
            raise ValueError(
                f"`model` must use each block once; {model.name} and "
                f"{done[model.get_layer(layer.name)].name} share {block}."
            )
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
        ValueError: if the model is not made of functional and sequential
            ones; it names the layer.

    Example:

    >>> to_stock_layers(model).save("plain.keras")
    """
    return _to_stock_layers(_as_functional(model), {})


def _to_stock_layers(model, done):
    def make(layer):
        for ours, stock in _STOCK_LAYERS.items():
            if isinstance(layer, ours) and layer not in done:
                done[layer] = stock.from_config(layer.get_config())
        return _once(layer, done, lambda m: _to_stock_layers(m, done))

    new = keras.models.clone_model(model, clone_function=make)
    _copy_weights(model, new)
    return new


def from_stock_layers(model: keras.Model) -> keras.Model:
    """The same network with `GroupedConv2D` for Keras' grouped convolutions.

    Args:
        model: A functional or sequential `keras.Model`.

    Returns:
        The model itself if it has none, or a new functional one.

    Raises:
        ValueError: if there are some, and the model is not made of functional
            and sequential ones; it names the layer.

    Example:

    >>> fast = from_stock_layers(keras.models.load_model("plain.keras"))
    """
    if not any(map(_is_stock_grouped, layers_of(model))):
        return model
    return _from_stock_layers(_as_functional(model), {})


def _from_stock_layers(model, done):
    def make(layer):
        if _is_stock_grouped(layer) and layer not in done:
            done[layer] = GroupedConv2D.from_config(layer.get_config())
        return _once(layer, done, lambda m: _from_stock_layers(m, done))

    new = keras.models.clone_model(model, clone_function=make)
    _copy_weights(model, new)
    return new


def _is_stock_grouped(layer):
    return type(layer) is keras.layers.Conv2D and layer.groups > 1


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
        Training it would train another network. Under a mixed policy the
        convolutions' weights are stored as they are computed with, so that
        `"mixed_bfloat16"` halves them and casts nothing.

    Raises:
        ValueError: if a batch norm does not follow a `Conv2D` or
            `GroupedConv2D`, or a sum of them, that nothing else reads, or
            always trains, or is channels-first (Keras 3.15 adds a bias to the
            wrong axis of images as wide as they have channels); it names the
            layer. Or if the model is not made of functional and sequential
            ones.

    Example:

    >>> fast = fold_batch_norm(keras_resnext.ResNeXt50(weights=None))
    """
    return _fold_batch_norm(_as_functional(model), {})


def _fold_batch_norm(model, done):
    plan = _folding_plan(model)
    firsts = {convs[0] for convs in plan.values()}
    folded = {conv for convs in plan.values() for conv in convs}

    def make(layer):
        if layer.name in plan:
            return keras.layers.Identity(name=layer.name)
        if layer.name in folded and layer not in done:
            config = layer.get_config()
            config["use_bias"] = layer.use_bias or layer.name in firsts
            # Nothing will train them: no need of wider copies of weights.
            config["dtype"] = layer.compute_dtype
            done[layer] = type(layer).from_config(config)
        return _once(layer, done, lambda m: _fold_batch_norm(m, done))

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
    if not _is_graph(model):
        raise ValueError(
            "`model` must be a functional or a built sequential keras.Model; "
            f"got {model!r}."
        )
    # A subclass may have a config of its own; what is rewritten is the graph.
    if "input_layers" not in _config(model):
        trainable = model.trainable
        model = keras.Model(model.input, model.output, name=model.name)
        if not trainable:
            model.trainable = False
    return model


def _is_graph(layer):
    """Whether a layer is itself a model made of layers."""
    if isinstance(layer, keras.Sequential):
        return layer.built
    # Only models that are graphs have operations.
    return isinstance(layer, keras.Model) and hasattr(layer, "operations")


def _once(layer, done, rewrite):
    """What becomes of a layer: the same one wherever the layer is used."""
    if layer not in done:
        hidden = isinstance(layer, keras.Model) or (
            isinstance(layer, keras.layers.Wrapper)
            and isinstance(layer.layer, (keras.Model, *_STOCK_LAYERS))
        )
        if _is_graph(layer):
            done[layer] = rewrite(_as_functional(layer))
        elif hidden:
            raise ValueError(
                "`model` must be made of layers and of functional or built "
                f"sequential models; {layer.name} is a "
                f"{type(layer).__name__} with layers of its own."
            )
        else:
            done[layer] = _copy(layer)
    return done[layer]


def _copy(layer):
    """A layer of the same settings, with weights of its own."""
    try:
        return type(layer).from_config(layer.get_config())
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            "`model` must have layers that their config makes again; "
            f"{layer.name} ({type(layer).__name__}) is none."
        ) from error


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
        _has_blocks(layer) for layer in model.layers if _is_graph(layer)
    )


def _check_blocks(model, parts):
    """Refuse blocks that hold, or hand out, more than the builders' do."""
    producers, readers = _edges(model)
    inputs = {}
    for name, (block, part) in parts.items():
        strides = getattr(model.get_layer(name), "strides", (1, 1))
        if strides != (1, 1) and part != "2_conv":
            raise ValueError(_not_ours(name, "strides", strides))
        for reader in readers.get(name, ()):
            if part != "3_bn" and parts.get(reader, (None,))[0] != block:
                raise ValueError(
                    "`model` must read its blocks at their ends only; "
                    f"{reader} reads {name}."
                )
        inputs.setdefault(block, set()).update(
            source
            for source in producers[name]
            if parts.get(source, (None,))[0] != block
        )
    for block, sources in inputs.items():
        if len(sources) != 1:
            raise ValueError(
                "`model` must use each block once and give it one input; "
                f"{block} reads {', '.join(sorted(sources))}."
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
    """Weights, settings and `trainable` by name, between any two forms.

    The paths' parts are joined, then cut as the target has them. Models
    inside have theirs already.
    """
    if not source.trainable:
        target.trainable = False
    parts, target_parts = _parts(source), _parts(target)
    joined, wanted = {}, {}
    for layer in source.layers:
        key = parts.get(layer.name, (layer.name, None))
        joined.setdefault(key, []).append(layer)
    for layer in target.layers:
        key = target_parts.get(layer.name, (layer.name, None))
        wanted.setdefault(key, []).append(layer)
    for key, layers in wanted.items():
        sources = joined.get(key, [])
        if not sources or _is_graph(layers[0]):
            continue
        if key in target_parts.values():
            _carry_settings(sources, layers)
        for layer in layers:
            layer.trainable = sources[0].trainable
        if layers[0].name in without:
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
            layer.set_weights(
                [np.split(w, len(layers), axis)[i] for w in whole]
                if len(layers) > 1
                else whole
            )
            if hasattr(layer, "finalize_state"):
                layer.finalize_state()  # computes with what it made of them


# What differs between forms, and what may be changed on a built layer.
_STRUCTURE = {"name", "trainable", "filters", "groups"}
_CARRIED = {
    "epsilon",
    "momentum",
    "synchronized",
    "negative_slope",
    "max_value",
    "threshold",
    *(
        f"{weight}_{kind}"
        for weight in ("kernel", "bias", "gamma", "beta")
        for kind in ("initializer", "regularizer", "constraint")
    ),
    "moving_mean_initializer",
    "moving_variance_initializer",
}


def _carry_settings(sources, targets):
    """Set on a block's new layers what was set on the ones they replace."""
    settings = _settings(sources[0])
    for other in sources[1:]:
        if _settings(other) != settings:
            raise ValueError(
                "`model` must treat all paths of a block alike; "
                f"{sources[0].name} and {other.name} differ."
            )
    for target in targets:
        made = _settings(target)
        changed = {
            key
            for key in settings.keys() | made.keys()
            if settings.get(key) != made.get(key)
        }
        if foreign := sorted(changed - _CARRIED):
            key = foreign[0]
            raise ValueError(_not_ours(sources[0].name, key, settings.get(key)))
        for key in changed:
            value = getattr(sources[0], key)
            setattr(target, key, value)
            weight, _, kind = key.rpartition("_")
            if kind in ("regularizer", "constraint"):
                setattr(getattr(target, weight), kind, value)


def _not_ours(layer, key, value):
    return (
        "`model` must have blocks as keras_resnext builds them; in "
        f"{layer}, {key} is {value!r}."
    )


def _settings(layer):
    """What a layer does beside its weights, whichever form it is in."""
    config = layer.get_config()
    settings = {k: v for k, v in config.items() if k not in _STRUCTURE}
    kind = _STOCK_LAYERS.get(type(layer), type(layer))
    return {**settings, "class": kind.__name__}


def _folding_plan(model):
    """Batch norm -> the convolutions that take it in, by name."""
    layers = {layer.name: layer for layer in model.layers}
    producers, readers = _edges(model)
    always_training = _always_training(model)
    plan = {}
    for norm in layers.values():
        if not isinstance(norm, keras.layers.BatchNormalization):
            continue
        if len(producers[norm.name]) != 1:
            raise ValueError(
                f"`model` must use each batch norm once; {norm.name} is used "
                f"{len(producers[norm.name])} times."
            )
        if norm.name in always_training:
            raise ValueError(
                "`model` must call its batch norms without `training=True`; "
                f"{norm.name} is called with it."
            )
        (source,) = producers[norm.name]
        convs = [source]
        if isinstance(layers.get(source), keras.layers.Add):
            convs = producers[source]
        for name in convs:
            found = layers.get(name)
            if (
                type(found) not in (keras.layers.Conv2D, GroupedConv2D)
                or found.activation is not keras.activations.linear
                or found.data_format != "channels_last"
                or found.filters != norm.moving_mean.shape[0]
                or norm.axis not in (-1, 3)
                or len(readers[name]) > 1
                or len(readers[source]) > 1
            ):
                raise ValueError(
                    "`model` must have linear, channels-last convolutions of "
                    "as many filters, read by nothing else, before its batch "
                    f"norms; {norm.name} reads {name} "
                    f"({type(found).__name__})."
                )
        plan[norm.name] = convs
    return plan


def _always_training(model):
    """Names of layers that are called with `training=True`."""
    return {
        entry["name"]
        for entry in _config(model)["layers"]
        for node in entry["inbound_nodes"]
        if node["kwargs"].get("training")
    }


def _edges(model):
    """What each layer reads, and what reads it, from the model's config."""
    config = _config(model)
    producers, readers = {}, {}
    for entry in config["layers"]:
        name = entry["name"]
        producers[name] = _sources(entry["inbound_nodes"])
        for source in producers[name]:
            readers.setdefault(source, []).append(name)
    for name in _output_layers(config["output_layers"]):
        readers.setdefault(name, []).append("the model's output")
    return producers, readers


def _config(model):
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
