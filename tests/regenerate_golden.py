"""Freeze the layers of the models: `make golden` rewrites `tests/golden`."""

import json
from pathlib import Path

import keras_resnext
from keras_resnext.resnext import build

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = {
    "resnext50": lambda: build("resnext50"),
    "resnext101": lambda: build("resnext101"),
    "resnext11_8x4d": lambda: build("resnext11_8x4d", classes=10),
    "resnext8_2x4d_branches": lambda: keras_resnext.ResNeXt(
        (1, 1), 2, 4, form="branches", classes=10
    ),
}


def describe(model):
    """Class, name and weight shapes of every layer that has weights."""
    return [
        [
            type(layer).__name__,
            layer.name,
            [list(w.shape) for w in layer.weights],
        ]
        for layer in model.layers
        if layer.weights
    ]


def main():
    """Write one file a variant, a line a layer."""
    for name, make in VARIANTS.items():
        lines = ",\n".join(json.dumps(layer) for layer in describe(make()))
        (GOLDEN / f"{name}.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
