"""Every number must land where it belongs; shapes alone would not show it."""

import numpy as np
import pytest

import keras_resnext
from keras_resnext.weights.convert import from_torch
from keras_resnext.weights.convert import to_torch


def grouped_weights(model):
    return {x.name: x.get_weights() for x in model.layers if x.weights}


def test_kernels_keep_every_index():
    shape = (8, 3, 2, 5)  # filters, channels, height, width
    torch_kernel = np.arange(np.prod(shape)).reshape(shape)
    ((name, (kernel,)),) = from_torch({"conv1.weight": torch_kernel}).items()
    assert name == "conv1_conv"
    for f, c, h, w in np.ndindex(shape):
        assert kernel[h, w, c, f] == torch_kernel[f, c, h, w]


def test_names():
    names = [
        "layer1.0.conv2.weight",
        "layer3.22.downsample.0.weight",
        "layer3.22.downsample.1.running_var",
        "layer4.2.bn3.running_mean",
        "layer4.2.bn3.num_batches_tracked",
        "fc.bias",
    ]
    assert list(from_torch({name: np.ones(1) for name in names})) == [
        "conv2_block1_2_conv",
        "conv4_block23_0_conv",
        "conv4_block23_0_bn",
        "conv5_block3_3_bn",
        "predictions",
    ]


def test_there_and_back():
    model = keras_resnext.ResNeXt((1, 2, 1, 1), 4, 4, classes=10)
    weights = grouped_weights(model)
    tensors = to_torch(weights)
    assert len(tensors) == len(model.weights)
    again = from_torch(tensors)
    assert again.keys() == weights.keys()
    for name, arrays in weights.items():
        for got, want in zip(again[name], arrays, strict=True):
            np.testing.assert_array_equal(got, want)


def test_order_of_batch_norms_values_does_not_matter():
    values = {
        "bn1.running_var": np.full(4, 3.0),
        "bn1.bias": np.full(4, 1.0),
        "bn1.running_mean": np.full(4, 2.0),
        "bn1.weight": np.full(4, 0.0),
    }
    ((_, arrays),) = from_torch(values).items()
    assert [a[0] for a in arrays] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "name", ["layer1.0.se.fc1.weight", "head.weight", "conv1.weight_g", "x"]
)
def test_foreign_names_are_refused(name):
    with pytest.raises(ValueError, match="`tensors` must be a ResNet's; got"):
        from_torch({name: np.ones(1)})
    with pytest.raises(ValueError, match="`weights` must be a grouped model"):
        to_torch({"conv2_block1_2_conv_path01": [np.ones(1)]})
