"""The pictures of a run: learning curves, and predictions on real images.

They use matplotlib's figures without pyplot: drawing into files needs no
screen, and must not change how a notebook shows its own figures.
"""

import numpy as np

from keras_resnext.files import staged


def learning_curves(history, path):
    """Draw loss and accuracy, in training and held out, over the epochs.

    Args:
        history: A list of a run's history dicts.
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
            ("", "training, as minimised"),
            ("val_", "held out"),
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
        title: What is to be seen.

    Example:

    >>> prediction_grid(images, labels, predictions, run.labels, "grid.png",
    ...                 title="Held-out digits")
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
        )
        if not right:
            ax.axis("on")
            ax.set(xticks=[], yticks=[])
            for spine in ax.spines.values():
                spine.set(color="red", linewidth=2)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def draw_predictions(evaluation, data, transform, path, *, count=40):
    """Draw predictions: the mistakes first, then correct ones.

    Args:
        evaluation: An `Evaluation`.
        data: The `ImageData` that was evaluated.
        transform: The `EvalTransform` that it was evaluated with.
        path: PNG file to write; an existing one is replaced.
        count: Images to draw at most. Defaults to 40.

    Example:

    >>> draw_predictions(result, data, classifier.transform, "grid.png")
    """
    wrong = evaluation.labels != evaluation.predictions
    chosen = np.argsort(~wrong, kind="stable")[:count]
    images = data.pixels(
        evaluation.split, transform, without=evaluation.bad_images
    )
    wanted = set(chosen.tolist())
    pixels = {
        i: image
        for i, (image, _) in enumerate(images.as_numpy_iterator())
        if i in wanted
    }
    with staged(path, overwrite=True) as new:
        prediction_grid(
            np.stack([pixels[i] for i in chosen]),
            evaluation.labels[chosen],
            evaluation.predictions[chosen],
            data.labels,
            new,
            title=f"{data.name}, {evaluation.split}: {wrong.sum()} of "
            f"{evaluation.examples} wrong (red)",
        )
