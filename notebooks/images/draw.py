"""Draw the pictures beside this file anew, after a change of the blocks.

pip install pydot                   # and Debian's graphviz
python notebooks/images/draw.py
"""

from pathlib import Path

import keras

from keras_resnext import blocks

HERE = Path(__file__).parent


def block_model(form, cardinality, width):
    """One block of the second stage's shape as a model of its own."""
    x = keras.Input((56, 56, 256), name="input")
    y = blocks.bottleneck(
        x,
        blocks.TRANSFORMS[form],
        cardinality=cardinality,
        width=width,
        filters=256,
        stride=1,
        name="block",
    )
    return keras.Model(x, y, name=form)


def draw_forms():
    """Keras' own drawing of a block in each form, with 3 paths of 4."""
    for form in blocks.TRANSFORMS:
        graph = keras.utils.model_to_dot(  # plot_model cannot return an SVG
            block_model(form, cardinality=3, width=4),
            show_shapes=True,
            show_layer_names=True,
            dpi=72,
        )
        graph.write_svg(HERE / f"block_{form}.svg")


if __name__ == "__main__":
    draw_forms()
