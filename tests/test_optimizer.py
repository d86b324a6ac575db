"""Our optimizers against Keras' and PyTorch's, and their learning rates."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnext.training import RECIPES
from keras_resnext.training import Recipe
from keras_resnext.training.optimizer import SGD
from keras_resnext.training.optimizer import make_optimizer


def train(kind, dtype="float32", **arguments):
    """Variables and velocities after five steps in a graph."""
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape) for shape in ((3, 4), (4,))]
    variables = [
        keras.Variable(value, dtype=dtype, name=name)
        for value, name in zip(start, ("kernel", "bias"), strict=True)
    ]
    schedule = keras.optimizers.schedules.CosineDecay(0.5, 5)
    optimizer = kind(schedule, **arguments)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(variables)
    gradients = [
        [tf.constant(rng.normal(size=v.shape), dtype) for v in variables]
        for _ in range(5)
    ]

    @tf.function
    def step(gradients):
        optimizer.apply(gradients, variables)

    for gradient in gradients:
        step(gradient)
    return [v.numpy() for v in (*variables, *optimizer.variables)]


@pytest.mark.parametrize("weight_decay", [None, 0.1])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_is_keras_sgd(momentum, nesterov, weight_decay):
    arguments = {
        "momentum": momentum,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
    }
    found, expected = (
        train(kind, **arguments) for kind in (SGD, keras.optimizers.SGD)
    )
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        # Values near 1, five steps of a few roundings each.
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_config_is_keras_config():
    arguments = {"momentum": 0.9, "weight_decay": 0.1, "name": "sgd"}
    ours, stock = SGD(0.1, **arguments), keras.optimizers.SGD(0.1, **arguments)
    assert ours.get_config() == stock.get_config()


def test_learning_rate_warms_up_and_falls():
    recipe = Recipe(
        epochs=10, warmup_epochs=2.0, learning_rate=0.1, batch_size=32
    )
    rate = make_optimizer(recipe, 10, [])._learning_rate
    assert [float(rate(s)) for s in (0, 10, 20)] == pytest.approx(
        [0, 0.05, 0.1]
    )
    assert float(rate(60)) == pytest.approx(0.05)  # halfway down the cosine
    assert float(rate(100)) == pytest.approx(0, abs=1e-7)


def test_learning_rate_falls_in_steps():
    """In the epochs that the paper's appendix and its code say."""
    for name, last in (("cifar_paper", 150), ("cifar_released", 147)):
        rate = make_optimizer(RECIPES[name], 390, [])._learning_rate
        before, after = rate(last * 390 - 1), rate(last * 390)
        assert float(before) == pytest.approx(0.1)
        assert float(after) == pytest.approx(0.01)
        assert float(rate(299 * 390)) == pytest.approx(0.001)


@pytest.mark.integration
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("decay_all", [False, True])
def test_weight_decay_is_pytorchs(decay_all, optimizer):
    """Three steps, from the same weights and gradients; and who is spared."""
    torch = pytest.importorskip("torch", reason="`make peers` installs it")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(3, name="predictions")(inputs)
    model = keras.Model(inputs, keras.layers.BatchNormalization()(x))
    recipe = Recipe(
        optimizer=optimizer,
        learning_rate=0.05,  # 0.1 for the head
        epochs=100,
        weight_decay=0.1,
        decay_all=decay_all,
        warmup_epochs=0.0,
        schedule="step",
        milestones=(99,),
        momentum=0.9,
        head_lr_factor=2.0,
    )
    variables = model.trainable_variables
    theirs = [torch.tensor(v.numpy() + 1) for v in variables]
    groups = [
        {
            "params": [tensor],
            "weight_decay": 0.1
            if decay_all or "kernel" in variable.path
            else 0.0,
            "lr": recipe.peak_lr * (2 if "predictions" in variable.path else 1),
        }
        for variable, tensor in zip(variables, theirs, strict=True)
    ]
    if optimizer == "sgd":
        reference = torch.optim.SGD(
            groups, recipe.peak_lr, momentum=0.9, nesterov=True
        )
    else:
        reference = torch.optim.AdamW(groups, recipe.peak_lr, eps=1e-7)
    for variable in variables:
        variable.assign(variable.numpy() + 1)
    ours = make_optimizer(recipe, 1, variables)
    rng = np.random.default_rng(0)
    for _ in range(3):
        gradients = [
            rng.normal(size=v.shape).astype("float32") for v in variables
        ]
        for tensor, gradient in zip(theirs, gradients, strict=True):
            tensor.grad = torch.from_numpy(gradient)
        reference.step()
        ours.apply([tf.constant(g) for g in gradients], variables)
    # Keras adds AdamW's epsilon, 1e-7, before it corrects the second moment
    # for its start, which makes it 1 / sqrt(1 - 0.999) as large: 3e-6 of a
    # gradient of 1, 3e-5 of one of 0.1, of three updates of 0.1.
    atol = 1e-5 if recipe.optimizer == "adamw" else 1e-6
    for variable, tensor in zip(variables, theirs, strict=True):
        np.testing.assert_allclose(
            variable.numpy(), tensor.numpy(), rtol=1e-5, atol=atol
        )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_head_has_a_rate_of_its_own(optimizer):
    inputs = keras.Input((3,))
    x = keras.layers.Dense(3, kernel_initializer="ones")(inputs)
    head = keras.layers.Dense(3, kernel_initializer="ones", name="predictions")
    model = keras.Model(inputs, head(x))
    recipe = Recipe(
        optimizer=optimizer,
        weight_decay=0.0,
        head_lr_factor=5.0,
        warmup_epochs=0.0,
    )
    variables = model.trainable_variables
    optimizer = make_optimizer(recipe, 4, variables)
    optimizer.apply([tf.ones(v.shape) for v in variables], variables)
    body, head = (variables[i].numpy() - 1 for i in (0, 2))
    np.testing.assert_allclose(head, 5 * body, rtol=1e-5)
    assert np.all(body < 0)


@pytest.mark.parametrize("schedule", ["cosine", "step"])
@pytest.mark.parametrize("warmup_epochs", [0.0, 1.3])
def test_learning_rate_at_every_step(schedule, warmup_epochs):
    """Against the formulas in float64."""
    milestones = (3, 5) if schedule == "step" else ()
    recipe = Recipe(
        epochs=7,
        schedule=schedule,
        milestones=milestones,
        warmup_epochs=warmup_epochs,
    )
    steps, warmup = 70, round(10 * warmup_epochs)
    rate = make_optimizer(recipe, 10, [])._learning_rate
    for step in range(steps + 1):
        if step < warmup:
            expected = step / warmup
        elif schedule == "step":
            expected = 0.1 ** sum(step >= 10 * epoch for epoch in milestones)
        else:
            done = (step - warmup) / (steps - warmup)
            expected = 0.5 * (1 + np.cos(np.pi * done))
        # Near its end the cosine is a small difference of numbers near 1.
        assert float(rate(step)) == pytest.approx(
            recipe.peak_lr * expected, rel=1e-6, abs=1e-7 * recipe.peak_lr
        )
