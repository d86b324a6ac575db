"""Single training steps, against gradients written out."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnext.training import Recipe
from keras_resnext.training.optimizer import make_optimizer
from keras_resnext.training.step import make_train_steps


def step_once(model, optimizer, recipe, images, targets, weights):
    strategy = tf.distribute.get_strategy()
    steps = make_train_steps(strategy, model, optimizer, recipe)
    batch = tuple(tf.cast(x, tf.float32) for x in (images, targets, weights))
    batches = tf.data.Dataset.from_tensors(batch)
    return steps(iter(batches), 1, tf.constant(0.0)).numpy()


@pytest.mark.parametrize("global_clipnorm", [0.0, 0.05])
@pytest.mark.parametrize("gradient_accumulation_steps", [1, 2])
def test_step_follows_the_gradient_of_the_mean_loss(
    gradient_accumulation_steps, global_clipnorm
):
    """One plain SGD step, against the gradient written out."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3, "softmax")(inputs))
    kernel, bias = (w.astype("float64") for w in model.get_weights())
    optimizer = keras.optimizers.SGD(0.5)
    optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 4)), np.array([0, 1, 2, 0, 1, 2])
    weights = np.array([1, 1, 0, 1, 1, 1.0])  # one could not be decoded
    recipe = Recipe(
        batch_size=6,
        gradient_accumulation_steps=gradient_accumulation_steps,
        label_smoothing=0.1,
        global_clipnorm=global_clipnorm,
    )
    loss, correct, images, waited, stops = step_once(
        model, optimizer, recipe, x, np.eye(3)[y], weights
    )

    scores = np.exp(x @ kernel + bias)
    p = scores / scores.sum(-1, keepdims=True)
    target = 0.9 * np.eye(3)[y] + 0.1 / 3
    expected = -np.sum(weights * np.sum(target * np.log(p), -1))
    assert loss == pytest.approx(expected)
    assert correct == np.sum(weights * (p.argmax(-1) == y))
    assert (images, stops) == (5, 0)
    assert 0 <= waited < 10
    error = weights[:, None] * (p - target) / 6
    gradients = x.T @ error, error.sum(0)
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
    assert norm > 0.05
    factor = min(1, global_clipnorm / norm) if global_clipnorm else 1
    for found, before, gradient in zip(
        model.get_weights(), (kernel, bias), gradients, strict=True
    ):
        np.testing.assert_allclose(
            found, before - 0.5 * factor * gradient, atol=1e-6
        )


def scaled_float16_step(images):
    """A step in mixed float16: the model and its optimizer after it."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    x = keras.layers.Dense(8, "relu", dtype="mixed_float16")(inputs)
    outputs = keras.layers.Dense(3, "softmax", dtype="float32")(x)
    model = keras.Model(inputs, outputs)
    recipe = Recipe(
        batch_size=6,
        precision="mixed_float16",
        global_clipnorm=1.0,
        warmup_epochs=0.0,
    )
    optimizer = make_optimizer(recipe, 4, model.trainable_variables)
    before = model.get_weights()
    targets = np.eye(3)[np.arange(6) % 3]
    step_once(model, optimizer, recipe, images, targets, np.ones(6))
    moved = [
        np.abs(a - b).max()
        for a, b in zip(model.get_weights(), before, strict=True)
    ]
    return float(optimizer.dynamic_scale), max(moved)


def test_float16_scales_the_loss_and_passes_over_overflows():
    images = np.random.default_rng(0).normal(size=(6, 4))
    scale, moved = scaled_float16_step(images)
    assert scale == 2**15
    assert 0 < moved < 1
    scale, moved = scaled_float16_step(1e4 * images)
    assert scale == 2**14
    assert moved == 0
