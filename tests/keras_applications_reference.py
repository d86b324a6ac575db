"""ResNeXt as keras-applications 1.0.8 built it, from Keras 2's own layers.

There were no grouped convolutions then: a depthwise one with several outputs
a channel, and a sum over the channels of each group. `tf_keras` is the last
version of these layers, and writes the files that were published.
"""

import numpy as np
import pytest

tf_keras = pytest.importorskip(
    "tf_keras", reason="tf_keras is not installed; `make peers` installs it"
)
layers = tf_keras.layers

EPSILON = 1.001e-5
GROUPS = 32


def build(depths, include_top, size=224):
    """The network; `depths` are the blocks of its four stages."""
    inputs = x = layers.Input((size, size, 3))
    x = layers.ZeroPadding2D(3, name="conv1_pad")(x)
    x = _convolution(x, 64, 7, 2, "conv1")
    x = layers.Activation("relu", name="conv1_relu")(x)
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = layers.MaxPooling2D(3, 2, name="pool1_pool")(x)
    for stage, depth in enumerate(depths):
        for index in range(depth):
            x = _block(
                x,
                128 * 2**stage,
                stride=2 if stage and not index else 1,
                project=not index,
                name=f"conv{stage + 2}_block{index + 1}",
            )
    if include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dense(1000, activation="softmax", name="probs")(x)
    return _randomized(tf_keras.Model(inputs, x))


def _convolution(x, filters, size, stride, name):
    x = layers.Conv2D(
        filters, size, stride, use_bias=False, name=f"{name}_conv"
    )(x)
    return layers.BatchNormalization(epsilon=EPSILON, name=f"{name}_bn")(x)


def _block(x, filters, stride, project, name):
    shortcut = x
    if project:
        shortcut = _convolution(x, 2 * filters, 1, stride, f"{name}_0")
    x = _convolution(x, filters, 1, 1, f"{name}_1")
    x = layers.Activation("relu", name=f"{name}_1_relu")(x)
    x = layers.ZeroPadding2D(1, name=f"{name}_2_pad")(x)
    c = filters // GROUPS
    x = layers.DepthwiseConv2D(
        3, stride, depth_multiplier=c, use_bias=False, name=f"{name}_2_conv"
    )(x)
    shape = x.shape[1:-1]
    x = layers.Reshape((*shape, GROUPS, c, c))(x)
    x = layers.Lambda(
        lambda x: sum(x[:, :, :, :, i] for i in range(c)),
        name=f"{name}_2_reduce",
    )(x)
    x = layers.Reshape((*shape, filters))(x)
    x = layers.BatchNormalization(epsilon=EPSILON, name=f"{name}_2_bn")(x)
    x = layers.Activation("relu", name=f"{name}_2_relu")(x)
    x = _convolution(x, 2 * filters, 1, 1, f"{name}_3")
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.Activation("relu", name=f"{name}_out")(x)


def _randomized(model):
    """Scales and statistics that a mix-up would show."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            shape = layer.gamma.shape
            layer.set_weights(
                [
                    rng.uniform(low, high, shape)
                    for low, high in (
                        (0.5, 1.5),
                        (-0.5, 0.5),
                        (-0.5, 0.5),
                        # Small enough for the epsilon to count.
                        (1e-4, 1.5),
                    )
                ]
            )
    return model
