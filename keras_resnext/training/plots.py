"""Pictures of a run: its learning curves, and its predictions.

Without pyplot, whose state is shared with the caller's notebook.
"""

import os
import typing

import numpy as np

from keras_resnext.files import staged

if typing.TYPE_CHECKING:
    from keras_resnext.training.evaluation import Evaluation


def learning_curves(history, path):
    """Draw training and validation loss and accuracy over the epochs.

    Args:
        history: `Run.history`.
        path: PNG file to write.

    Example:

    >>> learning_curves(Run("runs/digits").history, "curves.png")
    """
    from matplotlib.figure import Figure

    epochs = [entry["epoch"] for entry in history]
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, key, title in (
        (axes[0], "loss", "Cross-entropy (nats)"),
        (axes[1], "accuracy", "Accuracy"),
    ):
        for prefix, name in (
            ("", "training"),
            ("val_", "validation"),
        ):
            values = [entry[prefix + key] for entry in history]
            ax.plot(epochs, values, marker="o", markersize=3, label=name)
        ax.set(xlabel="Epoch", title=title)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
        ax.legend()
    figure.savefig(path, dpi=120)


def prediction_grid(images, labels, predictions, names, path, *, title):
    """Draw images with their predicted classes, mistakes in red.

    Args:
        images: Array `(images, height, width, 3)` of pixels in [0, 255].
        labels: True classes, `(images,)`.
        predictions: Predicted classes, `(images,)`.
        names: Names of the classes.
        path: PNG file to write.
        title: Title of the picture.

    Example:

    >>> prediction_grid(images, labels, predictions, run.labels, "grid.png",
    ...                 title="Test digits")
    """
    from matplotlib.figure import Figure

    columns = min(10, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(
        figsize=(1.2 * columns, 1.4 * rows + 0.5), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, label, predicted in zip(
        axes.flat, images, labels, predictions, strict=False
    ):
        right = label == predicted
        ax.imshow(np.clip(image, 0, 255).astype("uint8"))
        ax.set_title(
            names[predicted]
            if right
            else f"{names[predicted]}, is {names[label]}",
            color="black" if right else "red",
            fontsize=9,
            parse_math=False,
        )
        if not right:
            ax.axis("on")
            ax.set(xticks=[], yticks=[])
            for spine in ax.spines.values():
                spine.set(color="red", linewidth=2)
    figure.suptitle(title, parse_math=False)
    figure.savefig(path, dpi=120)


def draw_predictions(
    result: "Evaluation",
    path: str | os.PathLike[str],
    *,
    count: int = 40,
) -> None:
    """Draw images of an evaluation with their predictions, mistakes first.

    Args:
        result: An `Evaluation` of `evaluate`.
        path: PNG file to write; replaced if it exists.
        count: Maximum number of images. Defaults to 40.

    Example:

    >>> draw_predictions(evaluate(classifier, "digits"), "grid.png")
    """
    wrong = result.labels != result.predictions
    shown = np.argsort(~wrong, kind="stable")[:count]
    images = result.images(shown)
    with staged(path, overwrite=True) as new:
        prediction_grid(
            images,
            result.labels[shown],
            result.predictions[shown],
            result.class_names,
            new,
            title=f"{result.data.name}, {result.split}: {wrong.sum()} of "
            f"{result.examples} wrong (red)",
        )
