"""What is drawn, read back from the figure before it becomes pixels."""

import matplotlib.figure
import numpy as np
import pytest

from keras_resnext.training import plots


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is written to a file."""
    found = []
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda figure, path, **_: found.append(figure),
    )
    return found


def test_learning_curves_show_the_history(figures):
    keys = ("loss", "accuracy", "val_loss", "val_accuracy")
    history = [
        {"epoch": e, **{key: e + i / 10 for i, key in enumerate(keys)}}
        for e in (1, 2, 3)
    ]
    plots.learning_curves(history, "x.png")
    losses, accuracies = figures[0].axes
    for ax, key in ((losses, "loss"), (accuracies, "accuracy")):
        training, validation = ax.lines
        for line, prefix in ((training, ""), (validation, "val_")):
            expected = [entry[prefix + key] for entry in history]
            assert list(line.get_xdata()) == [1, 2, 3]
            assert list(line.get_ydata()) == expected
        assert validation.get_label() == "validation"


def test_grid_marks_mistakes_in_red(figures):
    images = np.stack([np.full((4, 4, 3), shade) for shade in range(12)])
    labels = np.arange(12) % 3
    predictions = labels.copy()
    predictions[[0, 7]] = 2, 0
    plots.prediction_grid(
        images, labels, predictions, ["a", "b", "c"], "x.png", title="Test"
    )
    (figure,) = figures
    assert figure.get_suptitle() == "Test"
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == 12
    for i, ax in enumerate(shown):
        assert np.all(ax.images[0].get_array() == i)
        wrong = i in (0, 7)
        assert ax.title.get_color() == ("red" if wrong else "black")
        predicted = "abc"[predictions[i]]
        expected = f"{predicted}, is {'abc'[labels[i]]}" if wrong else predicted
        assert ax.get_title() == expected
