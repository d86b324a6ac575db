"""Freeze the layers of the models, and what the named ones cost.

`make golden` rewrites `tests/golden` and `keras_resnext/model_costs.json`.
"""

import functools
import json
from pathlib import Path

import keras_resnext
from keras_resnext import catalog
from keras_resnext.blocks import TRANSFORMS
from keras_resnext.variants import build
from keras_resnext.variants import list_models

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = {
    **{name: functools.partial(build, name) for name in list_models()},
    **{
        name: functools.partial(build, name)
        for name in (
            *("resnext20_8x4d_f64", "resnext29_8x4d_f64"),
            "resnext50_32x2d_f128",
        )
    },
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


def cost(model):
    """What `catalog.ModelCost` holds, but for the name."""
    count = keras_resnext.count_complexity(model)
    return {
        "image_size": model.input_shape[1],
        "parameters": count.params,
        "multiply_adds": count.multiply_adds,
        "values": model.count_params(),
    }


def main():
    """Write one file a variant, a line a layer, and a line a named model."""
    for path in GOLDEN.glob("*.json"):
        path.unlink()
    costs = []
    for name, make in VARIANTS.items():
        model = make()
        lines = ",\n".join(json.dumps(layer) for layer in layer_specs(model))
        (GOLDEN / f"{name}.json").write_text(f"[\n{lines}\n]\n")
        if name in list_models():
            costs.append(f'"{name}": {json.dumps(cost(model))}')
    lines = ",\n".join(costs)
    catalog.FILE.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
