"""torchvision's and timm's networks, as a second implementation.

Both need torch; tests that use this module skip where it is missing
(`pip install 'keras_resnext[peers]'`, `make peers`).
"""

import sys
import types

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from keras_resnext.weights.convert import from_torch

torch = pytest.importorskip(
    "torch", reason="torch is not installed; `make peers` installs it"
)

# torchvision has no wheel for torch's CPU build. The compiled operators of its
# other wheels do not load there, and this module of theirs, which describes
# those operators, fails when imported; the networks use none of them.
sys.modules.setdefault(
    "torchvision._meta_registrations",
    types.ModuleType("torchvision._meta_registrations"),
)

torchvision = pytest.importorskip(
    "torchvision",
    reason="torchvision is not installed; `make peers` installs it",
)


def randomized(network, seed=0):
    """The network, evaluating, with batch norms that a mix-up would show."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        torch.nn.init.uniform_(tensor, low, high, generator=generator)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                uniform(module.weight, 0.5, 1.5)
                uniform(module.bias, -0.5, 0.5)
                uniform(module.running_mean, -0.5, 0.5)
                uniform(module.running_var, 0.5, 1.5)
            elif isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                torch.nn.init.kaiming_normal_(
                    module.weight, generator=generator
                )
    return network.eval()


def load_into(model, network):
    """Copy every tensor of a torchvision ResNet into a grouped model."""
    weights = from_torch(
        {name: x.numpy() for name, x in network.state_dict().items()}
    )
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(weights.pop(layer.name))
    assert not weights, f"left over: {sorted(weights)}"


def photographs(size):
    """scikit-learn's two photographs, uint8 `(2, size, size, 3)`."""
    from PIL import Image

    return np.stack(
        [
            np.asarray(Image.fromarray(image).resize((size, size)))
            for image in load_sample_images().images
        ]
    )
