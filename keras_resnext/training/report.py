"""The report of an evaluation: its numbers, and the folder they go to."""

import json
import math
import os
import pathlib
import typing

import numpy as np

from keras_resnext import __version__
from keras_resnext.extras import require
from keras_resnext.files import check_free
from keras_resnext.files import staged
from keras_resnext.training import report_pictures as pictures
from keras_resnext.training.calibration import BINS
from keras_resnext.training.calibration import Reliability
from keras_resnext.training.calibration import TemperatureScaling
from keras_resnext.training.calibration import reliability
from keras_resnext.training.report_page import page

if typing.TYPE_CHECKING:
    from keras_resnext.training.evaluation import Evaluation

_KIND = "keras_resnext evaluation"
_NUMBERS, _PAGE = "report.json", "report.html"
_LEVEL = 0.95
_PAIRS = 8
_EXAMPLES = 6  # pictures of a pair


def check_report(folder: str | os.PathLike[str]) -> None:
    """Check, before long work, that a report can be written.

    Args:
        folder: Where the report will go.

    Raises:
        ModuleNotFoundError: if matplotlib or scikit-learn is missing.
        FileExistsError: if `folder` exists and is not an earlier report, or
            has files that are not of one.
        NotADirectoryError: if one of its parents is a file.

    Example:

    >>> check_report("runs/digits/report")
    """
    for module in ("sklearn", "matplotlib"):
        require(module, extra="train", purpose="The report")
    folder = pathlib.Path(folder)
    check_free(folder, overwrite=True)
    if folder.exists() and not _is_report(folder):
        raise FileExistsError(
            "`folder` must not exist or must hold an earlier report and "
            f"nothing else; {folder} does not."
        )


def write_report(
    result: "Evaluation",
    folder: str | os.PathLike[str],
    *,
    title: str | None = None,
) -> dict:
    """Write the report of an evaluation; see `Evaluation.report`."""
    check_report(folder)
    dataset = result.data and result.data.name
    of = f" of {dataset}" if dataset else ""
    numbers = {
        "kind": _KIND,
        "version": __version__,
        "title": title or f"Evaluation on split {result.split}{of}",
        "dataset": dataset,
        **measure(result),
    }
    numbers = _plain(numbers)
    with staged(folder, overwrite=True) as new:
        new.mkdir()
        _draw(result, numbers, new)
        (new / _NUMBERS).write_text(_json(numbers), "utf-8")
        (new / _PAGE).write_text(page(numbers, new), "utf-8")
    return numbers


def measure(result: "Evaluation") -> dict:
    """Compute the numbers of a report.

    Args:
        result: An `Evaluation`.

    Returns:
        The content of `report.json`, from the split on. What is not defined,
        such as the precision of a class that is never predicted, is NaN.

    Raises:
        ValueError: if a probability is not finite.

    Example:

    >>> measure(result)["accuracy"]["interval"]
    [0.9718, 0.9957]
    """
    from sklearn.metrics import confusion_matrix

    broken = ~np.isfinite(result.probabilities).all(axis=1)
    if broken.any():
        raise ValueError(
            "`probabilities` must be finite; those of "
            f"{broken.sum()} of {result.examples} images are not."
        )
    classes = range(len(result.class_names))
    matrix = confusion_matrix(result.labels, result.predictions, labels=classes)
    per_class, macro = _per_class(result, matrix)
    top5 = None
    if len(classes) > 5:
        top5 = _share(result.in_top5)
    return {
        "split": result.split,
        "images": result.examples,
        "bad_images": list(result.bad_images),
        "loss": result.loss,
        "accuracy": _share(result.labels == result.predictions),
        "top5_accuracy": top5,
        "macro": macro,
        "calibration": _calibration(result),
        "confused_pairs": _confused_pairs(result, matrix),
        "classes": per_class,
        "confusion_matrix": matrix,
    }


def _share(right):
    """The fraction of images that are right, and Wilson's interval."""
    from scipy.stats import binomtest

    test = binomtest(int(right.sum()), len(right))
    interval = test.proportion_ci(_LEVEL, method="wilson")
    return {
        "value": test.statistic,
        "right": test.k,
        "interval": [interval.low, interval.high],
        "level": _LEVEL,
        "method": "wilson",
    }


def _per_class(result, matrix):
    """Scores of each class, and their means over classes."""
    from sklearn.metrics import precision_recall_fscore_support

    scores = precision_recall_fscore_support(
        result.labels,
        result.predictions,
        labels=range(len(matrix)),
        zero_division=np.nan,
    )
    names = ("precision", "recall", "f1")
    columns = dict(zip(names, scores, strict=False))
    counts = {
        "images": matrix.sum(axis=1),
        "predicted": matrix.sum(axis=0),
        "right": matrix.diagonal(),
    }
    classes = [
        {"class": i, "name": name}
        | {key: column[i] for key, column in (counts | columns).items()}
        for i, name in enumerate(result.class_names)
    ]
    # A split need not have images of all classes.
    means = {
        key: np.mean(column[np.isfinite(column)])
        for key, column in columns.items()
    }
    return classes, means


def _confused_pairs(result, matrix):
    """True and predicted class of the most common mistakes."""
    mistakes = matrix * ~np.eye(len(matrix), dtype=bool)
    true, predicted = np.nonzero(mistakes)
    count = mistakes[true, predicted]
    images_of_true = matrix.sum(axis=1)[true]
    share = count / images_of_true
    pairs = []
    for k in np.lexsort((-share, -count))[:_PAIRS]:
        numbers = np.flatnonzero(
            (result.labels == true[k]) & (result.predictions == predicted[k])
        )
        confidence = result.probabilities[numbers, predicted[k]]
        surest = numbers[np.argsort(-confidence, kind="stable")][:_EXAMPLES]
        pairs.append(
            {
                "true": true[k],
                "predicted": predicted[k],
                "images": count[k],
                "images_of_true": images_of_true[k],
                "share": share[k],
                "examples": [
                    {
                        "number": i,
                        "name": result.image_names[i],
                        "confidence": result.probabilities[i, predicted[k]],
                    }
                    for i in surest
                ],
            }
        )
    return pairs


def _calibration(result):
    """Calibration of the probabilities, and what a temperature would do."""
    scaling = TemperatureScaling(result.probabilities, result.labels)
    right = result.labels == result.predictions
    before = result.probabilities.max(axis=1)
    values = {
        "bins": BINS,
        "loss": scaling.loss(1.0),
        "mean_confidence": before.mean(dtype="float64"),
        **_bins("", reliability(before, right)),
        "temperature": scaling.fit(),
    }
    if values["temperature"]:
        after = scaling.confidences(values["temperature"])
        values |= {
            "fitted_on": "the images of this evaluation",
            "loss_at_temperature": scaling.loss(values["temperature"]),
            **_bins("_at_temperature", reliability(after, right)),
        }
    return values


def _bins(suffix, bins: Reliability):
    """Expected calibration error and bins, as in `report.json`."""
    columns = (bins.images, bins.confidence, bins.accuracy)
    return {
        f"ece{suffix}": bins.calibration_error,
        f"reliability{suffix}": [
            {"images": images, "confidence": confidence, "accuracy": accuracy}
            for images, confidence, accuracy in zip(*columns, strict=True)
        ],
    }


def _draw(result, numbers, folder):
    """Draw what there is to draw."""
    pictures.draw_confusion(numbers, folder)
    pictures.draw_reliability(
        numbers["calibration"], folder / pictures.RELIABILITY
    )
    pairs = numbers["confused_pairs"]
    if not pairs or result.data is None:
        return
    shown = [example["number"] for p in pairs for example in p["examples"]]
    pictures.draw_pairs(
        pairs,
        result.class_names,
        result.images(shown),
        folder / pictures.PAIRS,
    )


def _is_report(folder):
    """Whether a folder holds a report and nothing else."""
    known = {_NUMBERS, _PAGE, *pictures.FILES}
    try:
        if not {path.name for path in folder.iterdir()} <= known:
            return False
        return json.loads((folder / _NUMBERS).read_bytes())["kind"] == _KIND
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _plain(value):
    """The same without NumPy's types, and `None` for NaN: JSON has neither."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _json(numbers):
    """JSON with a line for each value, and for each item of a list."""
    lines = []
    for key, value in numbers.items():
        text = json.dumps(value, allow_nan=False)
        if isinstance(value, list) and value:
            items = (json.dumps(item, allow_nan=False) for item in value)
            text = "[\n  " + ",\n  ".join(items) + "\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"
