"""The networks that a recipe describes: to train, and to save."""

import keras

from keras_resnext.names import CLASSIFIER
from keras_resnext.names import stage_of
from keras_resnext.training.recipe import Recipe
from keras_resnext.variants import build


def build_model(recipe: Recipe, classes: int) -> keras.Model:
    """The network to train, with its initial weights.

    Build it under the strategy's scope.

    Args:
        recipe: A `Recipe`.
        classes: Number of classes.

    Returns:
        A `keras.Model`; its height and width are `None` if it is evaluated at
        another size than it is trained at.

    Raises:
        ValueError: if the recipe does not describe a network.
    """
    size = recipe.image_size
    if recipe.final_image_size != size:
        size = None
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(recipe.precision)
    try:
        model = _build(
            recipe,
            classes,
            size,
            drop_path_rate=recipe.drop_path_rate,
            weights=recipe.weights or None,
        )
    finally:
        keras.config.set_dtype_policy(policy)
    _freeze(model, recipe.freeze_until)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = recipe.sync_batch_norm
    return model


def build_final_model(recipe: Recipe, classes: int) -> keras.Model:
    """The network to save: float32, for inference, at its final size.

    Args:
        recipe: A `Recipe`.
        classes: Number of classes.

    Returns:
        A `keras.Model` that takes the weights of `build_model`.
    """
    return _build(recipe, classes, recipe.final_image_size)


def _build(recipe, classes, size, **options):
    return build(
        recipe.model,
        form=recipe.form,
        residual=recipe.residual,
        classes=classes,
        input_shape=(size, size, 3),
        **{"weights": None, **options},
    )


def _freeze(model, last):
    """Freeze all stages up to and including `last`."""
    stages = dict.fromkeys(
        stage_of(layer.name)
        for layer in model.layers
        if layer.weights and layer.name != CLASSIFIER
    )
    if last and last not in stages:
        raise ValueError(
            f"`freeze_until` must be empty or one of {', '.join(stages)}; "
            f"got {last!r}."
        )
    frozen = list(stages)[: list(stages).index(last) + 1] if last else ()
    for layer in model.layers:
        if stage_of(layer.name) in frozen:
            layer.trainable = False
