"""Our SGD against Keras', written as products and sums."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnext.training.optimizer import SGD


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
