"""The three forms of a block, converted into one another."""

import keras

from keras_resnext import blocks
from keras_resnext.extras import suggest
from keras_resnext.inspection import edges
from keras_resnext.inspection import is_quantization_aware
from keras_resnext.inspection import layers_of
from keras_resnext.names import join_paths
from keras_resnext.names import parse_name
from keras_resnext.names import split_paths
from keras_resnext.names import whole_name
from keras_resnext.rewrite.walker import STOCK_LAYERS
from keras_resnext.rewrite.walker import Rules
from keras_resnext.rewrite.walker import as_functional
from keras_resnext.rewrite.walker import rewrite_model

# Parts of a block's transform, in any form.
_PARTS = (
    *("1_conv", "1_bn", "1_relu", "2_pad", "2_conv", "2_bn", "2_relu"),
    *("2_concat", "3_conv", "3_sum", "3_bn"),
)
# Settings that differ between forms.
_STRUCTURE = {"name", "trainable", "filters", "groups"}
# Settings that can be changed on a built layer.
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


def convert_form(model: keras.Model, form: str) -> keras.Model:
    """The same network with its blocks in another form.

    Args:
        model: A functional or sequential `keras.Model` with blocks of any
            form, trained or not, at its top level or in nested models.
        form: `"grouped"` (paper, Fig. 3c), `"concatenated"` (3b) or
            `"branches"` (3a).

    Returns:
        A functional `keras.Model` of the same name, inputs, outputs and
        weights; the kernels of the paths are slices of the grouped ones. The
        layers inside blocks are rebuilt and keep their dtype, data format,
        `trainable`, regularizers and other settings. A layer or nested model
        that is used several times stays shared.

    Raises:
        ValueError: if `form` is none of these, or the model comes from
            `quantization_aware`, has no blocks or folded ones, contains a
            model that is neither functional nor sequential, uses a block
            twice, reads one in its middle, or has layers that are not as the
            builders make them; the message names the layer.

    Example:

    >>> small = keras_resnext.ResNeXt((1, 1, 1), 8, 4, stem="cifar")
    >>> explicit = convert_form(small, "branches")
    >>> explicit.count_params() == small.count_params()
    True

    Reference:
        arXiv 1611.05431, section 3.3 and Fig. 3.
    """
    if form not in blocks.TRANSFORMS:
        raise ValueError(
            f"`form` must be one of {', '.join(map(repr, blocks.TRANSFORMS))}"
            f"; got {form!r}.{suggest(form, blocks.TRANSFORMS)}"
        )
    model = as_functional(model)
    if is_quantization_aware(model):
        raise ValueError(
            "`model` must not come from `quantization_aware`, which knows the "
            f"grouped form alone; {model.name} does."
        )
    _check_has_blocks(model)
    owners = {}

    def rules(graph):
        parts = _block_parts(graph)
        _check_blocks(graph, parts)
        for layer in graph.layers:
            if layer.name not in parts:
                continue
            owner = owners.setdefault(layer, graph)
            if owner is not graph:
                raise ValueError(
                    f"`model` must use each block once; {graph.name} and "
                    f"{owner.name} share {parts[layer.name][0]}."
                )

        def replace(layer):
            if layer.name in parts:
                return keras.layers.Identity(name=layer.name)

        def call(layer, *args, **kwargs):
            if layer.name not in parts:
                return layer(*args, **kwargs)
            # The block's input passes through to its end, where the new
            # transform is built; joined paths all bring the same tensor.
            x = args[0][0] if isinstance(args[0], (list, tuple)) else args[0]
            block, part = parts[layer.name]
            if part != "3_bn":
                return x
            return _build_transform(graph, block, form, x)

        return Rules(replace, call, finish=lambda new: _fill_blocks(graph, new))

    return rewrite_model(model, rules)


def _block_parts(model):
    """Layer name -> (block, part), for the layers of blocks' transforms."""
    names = {layer.name for layer in model.layers}
    parts = {}
    for name in names:
        block, part, _ = parse_name(name) or (None, None, 0)
        if part in _PARTS and {f"{block}_3_bn", f"{block}_out"} <= names:
            parts[name] = block, part
    return parts


def _check_has_blocks(model):
    names = {layer.name for layer in layers_of(model)}
    ends = {n.removesuffix("_out") for n in names if n.endswith("_out")}
    if any(f"{block}_3_bn" in names for block in ends):
        return
    if any(f"{block}_2_conv" in map(whole_name, names) for block in ends):
        raise ValueError(
            "`model` must have its batch norms; those of "
            f"{model.name} are folded. Convert it before folding."
        )
    raise ValueError(
        "`model` must have blocks built by keras_resnext, or contain models "
        f"that do; {model.name} has none."
    )


def _check_blocks(model, parts):
    """Refuse blocks with other inputs, outputs or strides than ours."""
    sources, readers = edges(model)
    # Not `get_layer`, which searches the thousands of an explicit form.
    layers = {layer.name: layer for layer in model.layers}
    inputs = {}
    for name, (block, part) in parts.items():
        strides = getattr(layers[name], "strides", (1, 1))
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
            for source in sources[name]
            if parts.get(source, (None,))[0] != block
        )
    for block, before in inputs.items():
        if len(before) != 1:
            raise ValueError(
                "`model` must use each block once and give it one input; "
                f"{block} reads {', '.join(sorted(before))}."
            )


def _build_transform(model, block, form, x):
    """A block's transform in another form, on a new tensor."""
    paths = [
        layer
        for layer in model.layers
        if whole_name(layer.name) == f"{block}_2_conv"
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


def _fill_blocks(source, target):
    """Settings and weights of blocks, from one form to another."""
    old, new = _by_whole_name(source), _by_whole_name(target)
    for whole, targets in new.items():
        sources = old.get(whole, [])
        if not sources:
            continue
        _carry_settings(sources, targets)
        weights = split_paths(
            join_paths({x.name: x.get_weights() for x in sources}),
            [x.name for x in targets],
        )
        for layer in targets:
            layer.trainable = sources[0].trainable
            layer.set_weights(weights[layer.name])


def _by_whole_name(model):
    """Layers of blocks' transforms, those of all paths together."""
    parts, layers = _block_parts(model), {}
    for layer in model.layers:
        if layer.name in parts:
            layers.setdefault(whole_name(layer.name), []).append(layer)
    return layers


def _carry_settings(sources, targets):
    """Set on a block's new layers what was set on the old ones."""
    settings = _settings(sources[0])
    for other in sources[1:]:
        if _settings(other) != settings:
            raise ValueError(
                "`model` must have the same settings on all paths of a "
                f"block; {sources[0].name} and {other.name} differ."
            )
    for target in targets:
        built = _settings(target)
        changed = {
            key
            for key in settings.keys() | built.keys()
            if settings.get(key) != built.get(key)
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


def _settings(layer):
    """A layer's config without what differs between forms."""
    config = layer.get_config()
    settings = {k: v for k, v in config.items() if k not in _STRUCTURE}
    kind = STOCK_LAYERS.get(type(layer), type(layer))
    return {**settings, "class": kind.__name__}


def _not_ours(layer, key, value):
    return (
        "`model` must have blocks as keras_resnext builds them; in "
        f"{layer}, {key} is {value!r}."
    )
