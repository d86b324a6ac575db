"""The networks that a recipe describes: to train, and to save."""

import keras

from keras_resnext.fake_quantization import FakeQuantization
from keras_resnext.fake_quantization import Observer
from keras_resnext.fake_quantization import QuantizedConv2D
from keras_resnext.names import CLASSIFIER
from keras_resnext.names import stage_of
from keras_resnext.rewrite.quantization import quantization_aware
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
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = recipe.sync_batch_norm
    set_trainable(model, recipe)
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
    model = build(
        recipe.model,
        form=recipe.form,
        residual=recipe.residual,
        classes=classes,
        input_shape=(size, size, 3),
        **{"weights": None, **options},
    )
    if not recipe.weight_bits:
        return model
    return quantization_aware(model, weight_bits=recipe.weight_bits)


def set_observers(
    model: keras.Model, recipe: Recipe, steps_per_epoch: int
) -> None:
    """Say when statistics and ranges of a quantised network are frozen.

    Statistics come first, so that the ranges settle on what is exported. They
    stay frozen in a run that is extended.

    Args:
        model: The network of `build_model`; a plain one stays as it is.
        recipe: A `Recipe`.
        steps_per_epoch: Training steps in an epoch.
    """
    epochs = recipe.extended_from or recipe.epochs
    # Layers count the parts of a batch.
    calls = epochs * steps_per_epoch * recipe.gradient_accumulation_steps
    observer = Observer(
        freeze_statistics_after=0 if recipe.freeze_batch_norm else calls // 2,
        freeze_ranges_after=max(1, 3 * calls // 4),
    )
    for layer in model.layers:
        if isinstance(layer, (FakeQuantization, QuantizedConv2D)):
            layer.observer = observer


def set_trainable(
    model: keras.Model, recipe: Recipe, *, head_only: bool = False
) -> None:
    """Freeze the layers that a recipe does not train.

    Frozen batch norms use their moving statistics in training too. A step
    that is already traced does not change.

    Args:
        model: The network of `build_model`.
        recipe: A `Recipe`.
        head_only: Whether to freeze all but the classifier, as in the first
            `head_epochs`. Defaults to `False`.

    Raises:
        ValueError: if the network has no stage `freeze_until`.
    """
    frozen = _stages_until(model, recipe.freeze_until)
    for layer in model.layers:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = layer.name == CLASSIFIER or not (
            head_only
            or stage_of(layer.name) in frozen
            or (is_norm and recipe.freeze_batch_norm)
        )
        if isinstance(layer, QuantizedConv2D) and recipe.freeze_batch_norm:
            for weight in layer.norm_weights:
                weight.trainable = False


def _stages_until(model, last):
    """Names of all stages up to and including `last`."""
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
    return list(stages)[: list(stages).index(last) + 1] if last else ()
