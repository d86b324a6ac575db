"""Rewrite a built model, weights intact: other forms, folded batch norms.

Each function makes a new model with layers and weights of its own and leaves
the one it is given as it was. They know how blocks name their layers
(`keras_resnext.blocks`) and nothing of the variants built from them.
"""

import keras

from keras_resnext import blocks
from keras_resnext.inspection import edges
from keras_resnext.inspection import is_graph
from keras_resnext.rewrite.walker import as_functional
from keras_resnext.rewrite.walker import block_parts
from keras_resnext.rewrite.walker import copy_once
from keras_resnext.rewrite.walker import copy_weights
from keras_resnext.rewrite.walker import not_ours


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
    model = as_functional(model)
    if not _has_blocks(model):
        raise ValueError(
            "`model` must have blocks built by `keras_resnext`, or models "
            f"inside it that do; {model.name} has none."
        )
    return _convert_form(model, form, {})


def _convert_form(model, form, done):
    parts = block_parts(model)
    _check_blocks(model, parts)

    def make(layer):
        if layer.name in parts:
            return keras.layers.Identity(name=layer.name)
        return copy_once(layer, done, lambda m: _convert_form(m, form, done))

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
    copy_weights(model, new)
    return new


def _has_blocks(model):
    return bool(block_parts(model)) or any(
        _has_blocks(layer) for layer in model.layers if is_graph(layer)
    )


def _check_blocks(model, parts):
    """Refuse blocks that hold, or hand out, more than the builders' do."""
    producers, readers = edges(model)
    inputs = {}
    for name, (block, part) in parts.items():
        strides = getattr(model.get_layer(name), "strides", (1, 1))
        if strides != (1, 1) and part != "2_conv":
            raise ValueError(not_ours(name, "strides", strides))
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
