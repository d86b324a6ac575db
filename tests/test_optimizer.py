"""Our optimizers against Keras' and PyTorch's, and their learning rates."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnext.training import RECIPES
from keras_resnext.training import Recipe
from keras_resnext.training.optimizer import SGD
from keras_resnext.training.optimizer import RatedAdamW
from keras_resnext.training.optimizer import RatedSGD
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


@pytest.mark.parametrize("kind", [RatedSGD, RatedAdamW])
def test_recipes_optimizers_have_a_config(kind):
    decay = "l2_weight_decay" if kind is RatedSGD else "decoupled_weight_decay"
    config = kind(learning_rate=0.1, **{decay: 0.25}).get_config()
    assert config[decay] == 0.25
    assert kind.from_config(config).get_config() == config


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


STEPS, WARMUP = 60, 10
_RATES = {
    "warm-up and cosine": (
        {"warmup_epochs": 1.0},
        lambda step: (
            step / WARMUP
            if step < WARMUP
            else (1 + np.cos(np.pi * (step - WARMUP) / (STEPS - WARMUP))) / 2
        ),
    ),
    "step": (
        {"schedule": "step", "milestones": (2, 4), "warmup_epochs": 0.0},
        lambda step: 0.1 ** ((step >= 20) + (step >= 40)),
    ),
}


@pytest.mark.integration
@pytest.mark.parametrize("schedule", _RATES)
@pytest.mark.parametrize(
    "kind", ["sgd", "nesterov", "without momentum", "adamw"]
)
@pytest.mark.parametrize("decay_all", [False, True])
def test_training_is_pytorchs(kind, schedule, decay_all, float64):
    """Sixty steps of a network that both differentiate; who is spared.

    Each gradient depends on the weights before it, so that a difference
    grows. In float64 both round at 1e-16 of a value.
    """
    torch = pytest.importorskip("torch", reason="`make peers` installs it")
    keras.utils.set_random_seed(0)
    fields, rate_factor = _RATES[schedule]
    recipe = Recipe(
        optimizer="adamw" if kind == "adamw" else "sgd",
        learning_rate=0.02 if kind == "adamw" else 0.2,
        epochs=STEPS // 10,
        weight_decay=0.02,
        decay_all=decay_all,
        momentum=0.0 if kind == "without momentum" else 0.9,
        nesterov=kind == "nesterov",
        head_lr_factor=2.0,
        **fields,
    )
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, activation="tanh")(inputs)
    outputs = keras.layers.Dense(3, name="predictions")(hidden)
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(STEPS, 16, 6))
    labels = rng.integers(0, 3, (STEPS, 16))
    variables = model.trainable_variables
    for variable in variables:
        variable.assign(rng.normal(size=variable.shape))
    theirs = [torch.tensor(v.numpy(), requires_grad=True) for v in variables]
    groups = [
        {
            "params": [tensor],
            "weight_decay": 0.02 * (decay_all or "kernel" in variable.path),
            "lr": recipe.learning_rate
            * (2 if "predictions" in variable.path else 1),
        }
        for variable, tensor in zip(variables, theirs, strict=True)
    ]
    if kind == "adamw":
        reference = torch.optim.AdamW(groups, betas=(0.9, 0.999))
    else:
        reference = torch.optim.SGD(
            groups, momentum=recipe.momentum, nesterov=recipe.nesterov
        )
    scheduler = torch.optim.lr_scheduler.LambdaLR(reference, rate_factor)
    ours = make_optimizer(recipe, 10, variables)
    losses = []
    for x, y in zip(images, labels, strict=True):
        reference.zero_grad()
        first, first_bias, second, second_bias = theirs
        hidden = torch.tanh(torch.from_numpy(x) @ first + first_bias)
        loss = torch.nn.functional.cross_entropy(
            hidden @ second + second_bias, torch.from_numpy(y)
        )
        loss.backward()
        reference.step()
        scheduler.step()
        with tf.GradientTape() as tape:
            found = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(
                    y, model(tf.constant(x))
                )
            )
        ours.apply(tape.gradient(found, variables), variables)
        losses.append(float(found))
        assert losses[-1] == pytest.approx(float(loss.detach()), rel=1e-9)
    assert np.std(losses) > 0.05
    for variable, tensor in zip(variables, theirs, strict=True):
        np.testing.assert_allclose(
            variable.numpy(), tensor.detach(), rtol=1e-9, atol=1e-9
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
