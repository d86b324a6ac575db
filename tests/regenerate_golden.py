"""Freeze the layers of the models: `make golden` rewrites `tests/golden`."""

import functools
import json
from pathlib import Path

import keras_resnext
from keras_resnext.blocks import TRANSFORMS
from keras_resnext.variants import build
from keras_resnext.variants import list_models

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = {
    **{name: functools.partial(build, name) for name in list_models()},
    **{
        f"resnext8_2x4d_{form}": functools.partial(
            keras_resnext.ResNeXt, (1, 1), 2, 4, form=form, classes=10
        )
        for form in TRANSFORMS
    },
    "resnext8_2x4d_no_shortcuts": functools.partial(
        keras_resnext.ResNeXt, (1, 1), 2, 4, residual=False, classes=10
    ),
}


def layer_specs(model):
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
    for path in GOLDEN.glob("*.json"):
        path.unlink()
    for name, make in VARIANTS.items():
        lines = ",\n".join(json.dumps(layer) for layer in layer_specs(make()))
        (GOLDEN / f"{name}.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
