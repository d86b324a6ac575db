"""The networks are those that published weights were trained in."""

import keras
import numpy as np
import pytest

import keras_resnext
from tests import torch_reference
from tests.torch_reference import torch
from tests.torch_reference import torchvision

pytestmark = pytest.mark.integration

# Rounding errors of float32 add up like a random walk: about 2^-24 of the
# activations at each of a hundred convolutions, some ten roundings each,
# 2^-24 * sqrt(1000) = 2e-6. Five times that is still far below what a wrong
# epsilon (1e-3 for 1e-5) or padding does, see the last test.
RELATIVE_TOLERANCE = 1e-5


def logits_of_both(ours, theirs, size):
    """Both sides' logits of the same photographs, each preprocessing them."""
    images = torch_reference.photographs(size)
    x = torch.from_numpy(images / np.float32(255)).permute(0, 3, 1, 2)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with torch.inference_mode():
        expected = theirs((x - mean) / std).numpy()
    images = keras_resnext.preprocess_input(images)
    return np.asarray(ours(images, training=False)), expected


def relative_difference(actual, expected):
    return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (keras_resnext.ResNet50, "resnet50"),
        (keras_resnext.ResNeXt50, "resnext50_32x4d"),
        pytest.param(
            keras_resnext.ResNeXt101_32x8d,
            "resnext101_32x8d",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            keras_resnext.ResNeXt101_64x4d,
            "resnext101_64x4d",
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_logits_equal_torchvisions(ours, theirs):
    network = torch_reference.randomized(torchvision.models.get_model(theirs))
    model = ours(
        weights=None,
        classifier_activation=None,
        input_shape=(None, None, 3),
    )
    torch_reference.load_into(model, network)

    for size in (224, 320):
        actual, expected = logits_of_both(model, network, size)
        difference = relative_difference(actual, expected)
        print(f"{theirs} at {size}: {difference:.1e}")  # pytest -s
        assert difference < RELATIVE_TOLERANCE
        # Photographs are told apart, or the numbers above say little.
        assert relative_difference(expected[:1], expected[1:]) > 0.01
    keras.backend.clear_session()


def test_logits_equal_timms():
    timm = pytest.importorskip("timm", reason="`make peers` installs timm")
    network = torch_reference.randomized(timm.create_model("resnext50_32x4d"))
    model = keras_resnext.ResNeXt50(weights=None, classifier_activation=None)
    torch_reference.load_into(model, network)

    actual, expected = logits_of_both(model, network, 224)
    assert relative_difference(actual, expected) < RELATIVE_TOLERANCE


def test_a_wrong_epsilon_would_be_seen():
    network = torch_reference.randomized(
        torchvision.models.get_model("resnext50_32x4d")
    )
    model = keras_resnext.ResNeXt50(weights=None, classifier_activation=None)
    torch_reference.load_into(model, network)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.epsilon = 1e-3  # Keras' default

    actual, expected = logits_of_both(model, network, 224)
    assert relative_difference(actual, expected) > 10 * RELATIVE_TOLERANCE
