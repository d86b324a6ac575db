"""A ResNeXt written a second time, in NumPy, after the paper.

It shares no code with the package: it reads the model's weights by name, and
has strides, paddings and epsilon from the paper and torchvision.
"""

import numpy as np


def forward(model, images, cardinality, depths, stem="imagenet"):
    """Class probabilities of the grouped form, in float64.

    Args:
        model: The model whose weights to use.
        images: Preprocessed images `(batch, height, width, 3)`.
        cardinality: Groups of the 3x3 convolutions.
        depths: Blocks of each stage.
        stem: "imagenet" or "cifar".

    Returns:
        Array `(batch, classes)`.
    """
    weights = {
        layer.name: [np.asarray(w, "float64") for w in layer.get_weights()]
        for layer in model.layers
    }

    def conv_bn(x, name, stride=1, padding=0, groups=1):
        (kernel,) = weights[f"{name}_conv"]
        gamma, beta, mean, variance = weights[f"{name}_bn"]
        y = convolve(x, kernel, stride, padding, groups)
        return gamma * (y - mean) / np.sqrt(variance + 1e-5) + beta

    def relu(x):
        return np.maximum(x, 0)

    x = np.asarray(images, "float64")
    if stem == "imagenet":
        x = max_pool(relu(conv_bn(x, "conv1", stride=2, padding=3)))
    else:
        x = relu(conv_bn(x, "conv1", padding=1))
    for stage, depth in enumerate(depths):
        for block in range(depth):
            name = f"conv{stage + 2}_block{block + 1}"
            stride = 2 if stage and not block else 1
            y = relu(conv_bn(x, f"{name}_1"))
            y = relu(conv_bn(y, f"{name}_2", stride, 1, cardinality))
            y = conv_bn(y, f"{name}_3")
            shortcut = conv_bn(x, f"{name}_0", stride) if not block else x
            x = relu(shortcut + y)
    kernel, bias = weights["predictions"]
    scores = np.exp(x.mean(axis=(1, 2)) @ kernel + bias)
    return scores / scores.sum(axis=-1, keepdims=True)


def convolve(x, kernel, stride, padding, groups):
    """Sum over the kernel's taps of shifted images times their matrices."""
    size, _, per_group, filters = kernel.shape
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height = (x.shape[1] - size) // stride + 1
    width = (x.shape[2] - size) // stride + 1
    kernel = kernel.reshape(size, size, per_group, groups, filters // groups)
    y = 0
    for i in range(size):
        for j in range(size):
            tap = x[
                :,
                i : i + stride * height : stride,
                j : j + stride * width : stride,
            ]
            tap = tap[:, :height, :width].reshape(
                len(x), height, width, groups, per_group
            )
            y = y + np.einsum("bhwgi,igo->bhwgo", tap, kernel[i, j])
    return y.reshape(len(x), height, width, filters)


def max_pool(x):
    """3x3, stride 2, padded by one pixel of minus infinity."""
    around = ((0, 0), (1, 1), (1, 1), (0, 0))
    x = np.pad(x, around, constant_values=-np.inf)
    height, width = (x.shape[1] - 1) // 2, (x.shape[2] - 1) // 2
    return np.max(
        [
            x[:, i : i + 2 * height : 2, j : j + 2 * width : 2]
            for i in range(3)
            for j in range(3)
        ],
        axis=0,
    )
