"""What all rewrites share: a model copied layer by layer."""

import re

import keras
import numpy as np

from keras_resnext.inspection import graph_config
from keras_resnext.inspection import is_graph
from keras_resnext.layers import FusedBatchNormalization
from keras_resnext.layers import GroupedConv2D

STOCK_LAYERS = {
    GroupedConv2D: keras.layers.Conv2D,
    FusedBatchNormalization: keras.layers.BatchNormalization,
}


# Layers inside a block's transform, whichever its form: "<block>_<part>" and,
# in the explicit forms, the path.
_PART = re.compile(
    r"(?P<block>.+)_(?P<part>1_conv|1_bn|1_relu|2_pad|2_conv|2_bn|2_relu"
    r"|2_concat|3_conv|3_sum|3_bn)(?P<path>_path\d+)?"
)


def block_parts(model):
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


def as_functional(model):
    if not is_graph(model):
        raise ValueError(
            "`model` must be a functional or a built sequential keras.Model; "
            f"got {model!r}."
        )
    # A subclass may have a config of its own; what is rewritten is the graph.
    if "input_layers" not in graph_config(model):
        trainable = model.trainable
        # The `input` of a sequential one may be where another model calls it.
        ends = (
            (model.inputs[0], model.outputs[0])
            if isinstance(model, keras.Sequential)
            else (model.input, model.output)
        )
        model = keras.Model(*ends, name=model.name)
        if not trainable:
            model.trainable = False
    return model


def copy_once(layer, done, rewrite):
    """What becomes of a layer: the same one wherever the layer is used."""
    if layer not in done:
        hidden = isinstance(layer, keras.Model) or (
            isinstance(layer, keras.layers.Wrapper)
            and isinstance(layer.layer, (keras.Model, *STOCK_LAYERS))
        )
        if is_graph(layer):
            done[layer] = rewrite(as_functional(layer))
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


def copy_weights(source, target, without=()):
    """Weights, settings and `trainable` by name, between any two forms.

    The paths' parts are joined, then cut as the target has them. Models
    inside have theirs already.
    """
    if not source.trainable:
        target.trainable = False
    parts, target_parts = block_parts(source), block_parts(target)
    joined, wanted = {}, {}
    for layer in source.layers:
        key = parts.get(layer.name, (layer.name, None))
        joined.setdefault(key, []).append(layer)
    for layer in target.layers:
        key = target_parts.get(layer.name, (layer.name, None))
        wanted.setdefault(key, []).append(layer)
    for key, layers in wanted.items():
        sources = joined.get(key, [])
        if not sources or is_graph(layers[0]):
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
            raise ValueError(not_ours(sources[0].name, key, settings.get(key)))
        for key in changed:
            value = getattr(sources[0], key)
            setattr(target, key, value)
            weight, _, kind = key.rpartition("_")
            if kind in ("regularizer", "constraint"):
                setattr(getattr(target, weight), kind, value)


def not_ours(layer, key, value):
    return (
        "`model` must have blocks as keras_resnext builds them; in "
        f"{layer}, {key} is {value!r}."
    )


def _settings(layer):
    """What a layer does beside its weights, whichever form it is in."""
    config = layer.get_config()
    settings = {k: v for k, v in config.items() if k not in _STRUCTURE}
    kind = STOCK_LAYERS.get(type(layer), type(layer))
    return {**settings, "class": kind.__name__}
