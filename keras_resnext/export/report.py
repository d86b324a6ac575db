"""One report of several files: each in its own runtime, on the same images."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

import keras
import numpy as np

from keras_resnext.classifier import Classifier
from keras_resnext.classifier import as_classifier
from keras_resnext.export import artifact
from keras_resnext.export import onnx
from keras_resnext.export import quantization
from keras_resnext.export import runtimes
from keras_resnext.export.saved_model import to_saved_model
from keras_resnext.export.tflite import to_tflite
from keras_resnext.export.verify import Limits
from keras_resnext.files import check_free
from keras_resnext.files import staged
from keras_resnext.inspection import classifies

_REPORT, _PICTURE = "report.json", "report.png"
_EXPORTERS = {
    "savedmodel": to_saved_model,
    "tflite": to_tflite,
    "onnx": onnx.to_onnx,
}

_FILES = {
    "savedmodel": "saved_model",
    "tflite": "model{}.tflite",
    "onnx": "model{}.onnx",
}
# What each format can be quantised to.
QUANTIZATIONS = {
    "savedmodel": (None,),
    "tflite": quantization.QUANTIZATIONS,
    "onnx": onnx.QUANTIZATIONS,
}
_AGREEMENT = (
    *("max_logit_difference", "mean_logit_difference", "correlation"),
    *("centred_correlation", "top1_agreement"),
)
_CALLS = 50
_IMAGES = 10  # to take in turn


def plan(formats, quantizations) -> dict[tuple[str, str | None], str]:
    """Which files are to be written, each format in all it can.

    Args:
        formats: Names of formats.
        quantizations: `None`, `"float16"`, `"dynamic"` or `"int8"`.

    Returns:
        File names by format and quantisation.

    Raises:
        ValueError: if a name is not known, or none of the formats can be
            quantised so.

    Example:

    >>> plan(["onnx", "tflite"], [None, "float16"])
    {('onnx', None): 'model.onnx', ('tflite', None): 'model.tflite',
     ('tflite', 'float16'): 'model_float16.tflite'}
    """
    for name in formats:
        if name not in _FILES:
            raise ValueError(
                f"`format` must be some of {', '.join(_FILES)}; got {name!r}."
            )
    for quantize in quantizations:
        able = [f for f, known in QUANTIZATIONS.items() if quantize in known]
        if not able:
            names = [q or "none" for q in quantization.QUANTIZATIONS]
            raise ValueError(
                f"`quantize` must be some of {', '.join(names)}; got "
                f"{quantize!r}."
            )
        if not set(able) & set(formats):
            raise ValueError(
                f"`quantize` {quantize} needs one of the formats "
                f"{', '.join(able)}; got {', '.join(formats)}."
            )
    return {
        (format, quantize): _FILES[format].format(
            f"_{quantize}" if quantize else ""
        )
        for format in formats
        for quantize in quantizations
        if quantize in QUANTIZATIONS[format]
    }


def check_places(folder, planned, *, overwrite) -> None:
    """Refuse a folder before long work; see `export_files`."""
    for (format, _), name in planned.items():
        artifact.check_place(folder / name, format, overwrite=overwrite)
    for name in (_REPORT, _PICTURE):
        path = pathlib.Path(folder, name)
        check_free(path, overwrite=overwrite)
        if path.is_dir():
            raise FileExistsError(f"`path` must be a file; {path} is a folder.")


def export_files(
    model: keras.Model | Classifier,
    folder: str | os.PathLike,
    planned: dict[tuple[str, str | None], str],
    *,
    images: np.ndarray | None = None,
    classes: np.ndarray | None = None,
    calibration: np.ndarray | None = None,
    data_format: str = "NHWC",
    exclude: int = 0,
    limits: dict[str | None, Limits] | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    on_file: Callable[[pathlib.Path], None] = lambda path: None,
) -> dict:
    """Write files, prove and measure each, and write a report of all.

    A file that fails its proof is not there; the others are.

    Args:
        model: A `keras.Model` or a `Classifier`, see the exporters.
        folder: Where the files go, with `report.json` and `report.png`.
        planned: Of `plan`.
        images: Pixels to compare on. Defaults to eight images of noise.
        classes: What is on them, `(images,)`, for a classifier. Defaults to
            `None`.
        calibration: Pixels that set the ranges of int8.
        data_format: See `to_onnx`.
        exclude: See `to_tflite`.
        limits: `Limits` by quantisation. Defaults, where there are none, to
            `artifact.LIMITS`.
        threads: Threads within an operation while measuring. Defaults to all
            cores.
        overwrite: Whether to replace what is there.
        on_file: Called with each path before it is written.

    Returns:
        The report, a dict as JSON has it.

    Raises:
        FileExistsError: if one of the files exists and `overwrite` is false,
            before anything is written.
        ValueError: as the exporters do.

    Example:

    >>> planned = plan(["tflite"], [None, "dynamic"])
    >>> export_files(model, "export", planned)["files"][1]["latency_ms"]
    """
    classifier = as_classifier(model)
    model = classifier.model
    folder, threads = pathlib.Path(folder), threads or os.cpu_count()
    onnx.check_data_format(data_format)
    check_places(folder, planned, overwrite=overwrite)
    shown = artifact.noise(model) if images is None else images
    limits = artifact.LIMITS | (limits or {})
    if not classifies(model):
        classes = None
    lines = []
    for (format, quantize), name in planned.items():
        path = folder / name
        on_file(path)
        options = {
            "savedmodel": {"transform": classifier.transform},
            "tflite": {
                "quantize": quantize,
                "exclude": exclude if quantize in ("dynamic", "int8") else 0,
            },
            "onnx": {"quantize": quantize, "data_format": data_format},
        }[format]
        if quantize == "int8":
            options["calibration"] = calibration
        try:
            found = _EXPORTERS[format](
                model,
                path,
                labels=classifier.labels,
                images=images,
                limits=limits[quantize],
                overwrite=overwrite,
                **options,
            )
        except artifact.ExportError as error:
            known = {"format": format, "quantize": quantize, "path": path}
            line = _line(known | error.measured, classes)
            lines.append({**line, "passed": False, "error": str(error)})
        else:
            line = _line(vars(found), classes)
            cost = run_alone(format, path, shown, threads)
            lines.append({**line, "passed": True, **cost})
    report = {
        "model": model.name,
        "images": len(shown),
        "threads": threads,
        "keras_accuracy": None
        if classes is None
        else _accuracy(
            artifact.keras_runner(model, "imagenet")(shown), classes
        ),
        "files": lines,
    }
    with staged(folder / _REPORT, overwrite=overwrite) as new:
        new.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    with staged(folder / _PICTURE, overwrite=overwrite) as new:
        draw_report(report, new)
    return report


def _line(found, classes):
    """A line of the report: what the proof found, as far as it got.

    Args:
        found: Attributes of an `Artifact`.
        classes: What is on the images, or `None`.
    """
    line = {
        "format": found["format"],
        "quantize": found["quantize"],
        "path": str(found["path"]),
        "bytes": found.get("size"),
        "latency_ms": None,
        "peak_bytes": None,
        "accuracy": None,
        "limits": None,
        "layer_errors": [
            dataclasses.asdict(error) for error in found.get("layer_errors", ())
        ],
        **{name: _finite(found.get(name)) for name in _AGREEMENT},
    }
    if "limits" in found:
        line["limits"] = {
            name: _finite(value)
            for name, value in dataclasses.asdict(found["limits"]).items()
        }
        line["accuracy"] = _accuracy(found["outputs"], classes)
    return line


def _finite(value):
    """A number that JSON has, or `None`."""
    return value if value is not None and math.isfinite(value) else None


def _accuracy(outputs, classes):
    if classes is None:
        return None
    (scores,) = outputs.values()  # of a classifier, see `export_files`
    return float(np.mean(scores.argmax(axis=-1) == classes))


def run_alone(format, path, images, threads) -> dict:
    """Run a file in a process that loads nothing else.

    Args:
        format: `"savedmodel"`, `"tflite"` or `"onnx"`.
        path: The file.
        images: Pixels `(images, height, width, channels)`, taken in turn.
        threads: Threads within an operation.

    Returns:
        `latency_ms`, the median of one image, and `peak_bytes`, the process'
        largest memory.

    Raises:
        RuntimeError: if the process fails.

    Example:

    >>> run_alone("tflite", "model.tflite", pixels, threads=2)
    {'latency_ms': 41.3, 'peak_bytes': 268435456}
    """
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "images.npy"
        np.save(file, np.asarray(images[:_IMAGES], "float32"))
        process = subprocess.run(
            [
                # "-P": or this folder's onnx.py would be taken for ONNX.
                *(sys.executable, "-P", runtimes.__file__, format),
                *(path, file, str(threads), str(_CALLS)),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
    if process.returncode:
        raise RuntimeError(
            f"{path} cannot be run in a process of its own: "
            f"{process.stderr[-500:]}"
        )
    return json.loads(process.stdout.splitlines()[-1])


def draw_report(report: dict, path) -> None:
    """Draw what the files cost and how far from Keras they are, with a table.

    Args:
        report: Of `export_files`.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    files = [line for line in report["files"] if line["passed"]]
    rows = len(report["files"])
    bars, cells = 0.8 + 0.3 * max(1, len(files)), 0.6 + 0.25 * rows
    figure = Figure(figsize=(13, bars + cells), layout="constrained")
    figure.suptitle(
        f"{report['model']}: {report['images']} images, "
        f"{report['threads']} threads"
    )
    upper, lower = figure.subfigures(2, height_ratios=[bars, cells])
    panels = [
        ("size (MB)", [line["bytes"] / 1e6 for line in files]),
        ("latency, batch 1 (ms)", [line["latency_ms"] for line in files]),
        ("peak memory (MB)", [line["peak_bytes"] / 1e6 for line in files]),
        (
            "mean difference of logits",
            [line["mean_logit_difference"] for line in files],
        ),
    ]
    axes = upper.subplots(1, len(panels), sharey=True)
    for axis, (title, values) in zip(axes, panels, strict=True):
        axis.barh([line_name(line) for line in files], values, color="#4a6fa5")
        for y, value in enumerate(values):
            axis.annotate(f" {value:,.3g}", (value, y), va="center", fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()  # the first on top, as in the table
    axis = lower.subplots()
    axis.axis("off")
    table = axis.table(
        [_cells(line, report["keras_accuracy"]) for line in report["files"]],
        rowLabels=[line_name(line) for line in report["files"]],
        colLabels=list(_COLUMNS),
        colWidths=list(_COLUMNS.values()),
        colColours=["#e8edf4"] * len(_COLUMNS),
        cellLoc="center",
        bbox=[0.1, 0, 0.9, 1],
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    figure.savefig(path, dpi=120)


# Columns of the picture's table, and their shares of its width.
_COLUMNS = {
    "verdict": 0.08,
    "largest difference (limit)": 0.22,
    "mean difference": 0.11,
    "correlation (limit)": 0.15,
    "of what images change": 0.16,
    "top-1 agreement (limit)": 0.15,
    "accuracy (Keras)": 0.13,
}


def _cells(line, keras_accuracy):
    """What the table says of a file, below `_COLUMNS`."""

    limits = line["limits"] or {}

    def shown(name, form, note=""):
        if line[name] is None:
            return "-"
        return format(line[name], form) + (f" ({note})" if note else "")

    def at_least(name, form):
        limit = limits.get(name)
        return (
            ""
            if limit in (None, getattr(Limits, name))
            else (f"≥ {format(limit, form)}")
        )

    difference = limits.get("logit_difference")
    most = "" if difference is None else f"≤ {difference:g} of the largest"
    changes = at_least("centred_correlation", "g")
    others = "" if keras_accuracy is None else f"{keras_accuracy:.4f}"
    return [
        "passed" if line["passed"] else "FAILED",
        shown("max_logit_difference", ".2g", most),
        shown("mean_logit_difference", ".2g"),
        shown("correlation", ".6f", at_least("correlation", "g")),
        shown("centred_correlation", ".6f", changes),
        shown("top1_agreement", ".2%", at_least("top1_agreement", ".2%")),
        shown("accuracy", ".4f", others),
    ]


def line_name(line) -> str:
    """What a line of the report is of, such as "tflite int8"."""
    return line["format"] + (f" {line['quantize']}" * bool(line["quantize"]))
