"""The pictures of an evaluation's report.

Without pyplot, whose state is shared with the caller's notebook.
"""

import pathlib

import numpy as np

CONFUSION = "confusion_matrix.png"
MOST_CONFUSED = "most_confused.png"
RELIABILITY = "reliability.png"
PAIRS = "confused_pairs.png"
FILES = (CONFUSION, MOST_CONFUSED, RELIABILITY, PAIRS)

MOST_NAMED = 20  # classes in a matrix with names and numbers
DPI = 150
_BLUE, _RED, _GREY = "#4a6fa5", "#b5403a", "#666666"


def draw_confusion(numbers: dict, folder: pathlib.Path) -> None:
    """Draw the confusion matrix; of many classes, the most confused too.

    Args:
        numbers: The content of `report.json`.
        folder: Where `confusion_matrix.png` goes and, with more than 20
            classes, `most_confused.png`.
    """
    matrix = np.array(numbers["confusion_matrix"])
    names = [entry["name"] for entry in numbers["classes"]]
    # Not the counts: the colours of a large class would hide a small one.
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    if len(names) <= MOST_NAMED:
        short = [shorten(name) for name in names]
        title = "Numbers of images"
        _draw_named(matrix, shares, short, folder / CONFUSION, title)
        return
    _draw_all(shares, folder / CONFUSION)
    chosen = most_confused(matrix)
    if len(chosen):
        part = np.ix_(chosen, chosen)
        _draw_named(
            matrix[part],
            shares[part],
            [f"{i} {shorten(names[i])}" for i in chosen],
            folder / MOST_CONFUSED,
            f"The {len(chosen)} most confused of {len(names)} classes: "
            "numbers of images",
        )


def most_confused(matrix: np.ndarray, count: int = MOST_NAMED) -> list[int]:
    """Choose the classes of the most common mistakes.

    Args:
        matrix: Confusion matrix, `(classes, classes)`, true classes first.
        count: Maximum number of classes. Defaults to 20.

    Returns:
        Indices of classes; those of a common mistake stand together.

    Example:

    >>> most_confused(np.array([[9, 0, 1], [0, 9, 0], [0, 4, 9]]), 2)
    [2, 1]
    """
    mistakes = matrix * ~np.eye(len(matrix), dtype=bool)
    rows, columns = np.nonzero(mistakes)
    order = np.argsort(-mistakes[rows, columns], kind="stable")
    pairs = np.stack([rows, columns], axis=1)[order]
    # A dict keeps the order.
    return [int(i) for i in dict.fromkeys(pairs.ravel())][:count]


def draw_reliability(calibration: dict, path: pathlib.Path) -> None:
    """Draw accuracy against confidence, and the number of images.

    Args:
        calibration: `calibration` of `report.json`.
        path: PNG file to write.
    """
    panels = {"": f"As predicted\nECE {calibration['ece']:.4f}"}
    if calibration["temperature"]:
        panels["_at_temperature"] = (
            f"At temperature {calibration['temperature']:.3f}, fitted on the "
            f"same images\nECE {calibration['ece_at_temperature']:.4f}"
        )
    figure = _figure(4.6 * len(panels), 5.2)
    axes = figure.subplots(
        2,
        len(panels),
        sharex=True,
        sharey="row",
        squeeze=False,
        height_ratios=[3, 1],
    )
    for (upper, lower), (suffix, title) in zip(
        axes.T, panels.items(), strict=True
    ):
        _draw_bins(upper, lower, calibration[f"reliability{suffix}"])
        upper.set_title(title, fontsize=10)
        lower.set_xlabel("Confidence")
    axes[0, 0].set_ylabel("Accuracy")
    axes[1, 0].set_ylabel("Images (log)")
    figure.legend(
        handles=axes[0, 0].get_legend_handles_labels()[0],
        loc="outside lower center",
        ncols=2 * len(panels) - 1,
        fontsize=8,
    )
    figure.get_layout_engine().set(wspace=0.06)
    _save(figure, path)


def draw_pairs(
    pairs: list[dict], names: list[str], images: list, path: pathlib.Path
) -> None:
    """Draw the images of the most common mistakes, a row for each pair.

    Args:
        pairs: `confused_pairs` of `report.json`.
        names: Names of the classes.
        images: Pixels in [0, 255] of the pairs' examples, in their order.
        path: PNG file to write.
    """
    texts = [
        f"is {shorten(names[pair['true']])}\n"
        f"taken for {shorten(names[pair['predicted']])}\n"
        f"{pair['images']} of {pair['images_of_true']} images"
        for pair in pairs
    ]
    wide = 0.08 * max(len(line) for text in texts for line in text.split("\n"))
    columns = max(len(pair["examples"]) for pair in pairs)
    figure = _figure(wide + 1.1 * columns, 1.4 * len(pairs))
    axes = figure.subplots(
        len(pairs),
        1 + columns,
        squeeze=False,
        width_ratios=[wide] + [1.1] * columns,
    )
    for axis in axes.flat:
        axis.axis("off")
    style = {"ha": "right", "va": "center", "fontsize": 9, "parse_math": False}
    left = iter(images)
    for row, pair, text in zip(axes, pairs, texts, strict=True):
        row[0].text(1, 0.5, text, **style)
        for axis, example in zip(row[1:], pair["examples"], strict=False):
            pixels = np.clip(next(left), 0, 255).round().astype("uint8")
            axis.imshow(pixels, interpolation="nearest")
            axis.set_title(f"{example['confidence']:.2f}", fontsize=8, pad=3)
    _save(figure, path)


def shorten(name: str, length: int = 20) -> str:
    """A name on one line, with an ellipsis in place of a long one's middle.

    Both ends are kept: long names of classes often begin alike.

    Args:
        name: The name.
        length: Maximum number of characters. Defaults to 20.

    Example:

    >>> shorten("Canis_lupus_familiaris_samoyed")
    'Canis_lupu…s_samoyed'
    """
    name = " ".join(name.split())
    if len(name) <= length:
        return name
    end = (length - 1) // 2
    return f"{name[: length - 1 - end]}…{name[-end:]}"


def _figure(width, height):
    """An empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure, path):
    """Write a PNG without margins; a square matrix leaves wide ones."""
    figure.savefig(path, dpi=DPI, bbox_inches="tight")


def _draw_named(matrix, shares, names, path, title):
    """A matrix with the names of the classes and the counts."""
    side = 1.8 + 0.42 * len(names)
    figure = _figure(side, side)
    axis = figure.subplots()
    _draw_shares(axis, shares, title)
    turned = {}
    if max(map(len, names)) > 3:
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    ticks, text = range(len(names)), {"fontsize": 8, "parse_math": False}
    axis.set_xticks(ticks, names, **text, **turned)
    axis.set_yticks(ticks, names, **text)
    for (i, j), count in np.ndenumerate(matrix):
        if count:
            dark = shares[i, j] > (0.5 if i == j else 0.25)
            axis.text(
                j,
                i,
                count,
                ha="center",
                va="center",
                fontsize=8 if count < 10000 else 6,
                color="white" if dark else "black",
            )
    _save(figure, path)


def _draw_all(shares, path):
    """A matrix of many classes, by their number."""
    count = len(shares)
    figure = _figure(8, 7)
    axis = figure.subplots()
    # Mistakes of a thousand classes would be dots of one pixel.
    size = 1 + 2 * (count // 600)
    title = f"All {count} classes, by number"
    if size > 1:
        title += f"; each mistake drawn {size} classes wide"
    drawn = _draw_shares(axis, shares, title, size)
    bar = figure.colorbar(drawn, ax=axis, fraction=0.04, pad=0.02)
    bar.set_label("Fraction of the true class mistaken")
    _save(figure, path)


def _draw_shares(axis, shares, title, size=1):
    """Fractions of each true class: right ones blue, mistakes red."""
    from matplotlib.colors import PowerNorm
    from scipy.ndimage import maximum_filter

    right = np.eye(len(shares), dtype=bool)
    mistakes = maximum_filter(np.where(right, 0, shares), size)
    # Most mistakes are rare: a cube root tells them from none.
    drawn = axis.imshow(
        np.ma.masked_equal(mistakes, 0),
        cmap="Reds",
        norm=PowerNorm(1 / 3, 0, 1),
        interpolation="nearest",
    )
    axis.imshow(
        np.ma.array(shares, mask=~right | (shares == 0)),
        cmap="Blues",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.set(xlabel="Predicted class", ylabel="True class")
    return drawn


def _draw_bins(upper, lower, bins):
    """One panel of the reliability diagram, with the counts below it."""
    from scipy.stats import binomtest

    width = 1 / len(bins)
    middles = (np.arange(len(bins)) + 0.5) * width
    upper.plot([0, 1], [0, 1], "--", color=_GREY, label="accuracy = confidence")
    filled = [entry for entry in bins if entry["images"]]
    accuracy = [entry["accuracy"] or 0 for entry in bins]
    upper.bar(middles, accuracy, width, color=_BLUE, alpha=0.35, lw=0)
    intervals = [
        binomtest(
            round(entry["accuracy"] * entry["images"]), entry["images"]
        ).proportion_ci(method="wilson")
        for entry in filled
    ]
    x = [entry["confidence"] for entry in filled]
    upper.vlines(
        x, *np.array(intervals).T, color=_BLUE, label="95 % interval (Wilson)"
    )
    upper.plot(
        x,
        [entry["accuracy"] for entry in filled],
        "o",
        color=_RED,
        markersize=4,
        clip_on=False,
        label="mean confidence and accuracy",
    )
    upper.set(xlim=(0, 1), ylim=(0, 1.02))
    upper.grid(alpha=0.3)
    lower.bar(middles, [entry["images"] for entry in bins], width, color=_BLUE)
    images = sum(entry["images"] for entry in bins)
    lower.set(yscale="log", ylim=(0.7, 1.5 * images))
    lower.grid(alpha=0.3)
