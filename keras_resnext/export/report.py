"""Several files of one model, verified and measured on the same images."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_resnext.classifier import Classifier
from keras_resnext.export import onnx
from keras_resnext.export import quantization
from keras_resnext.export import runtimes
from keras_resnext.export.picture import draw_report
from keras_resnext.export.saved_model import to_saved_model
from keras_resnext.export.session import Session
from keras_resnext.export.session import check_path
from keras_resnext.export.tflite import to_tflite
from keras_resnext.export.verify import LIMITS
from keras_resnext.export.verify import Agreement
from keras_resnext.export.verify import ExportError
from keras_resnext.export.verify import Limits
from keras_resnext.export.verify import require_runtime
from keras_resnext.extras import require
from keras_resnext.files import check_free
from keras_resnext.files import check_not_held
from keras_resnext.files import file_hash
from keras_resnext.files import held
from keras_resnext.files import staged
from keras_resnext.images import MAX_PIXELS
from keras_resnext.images import check_max_pixels
from keras_resnext.transforms import EvalTransform

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
_CALLS = 50
_IMAGES = 10  # used in turn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Files to write, checked before any long work; see `plan_files`.

    Args:
        folder: Where the files go, with `report.json` and `report.png`.
        files: File names by format and quantisation.
        limits: `Limits` by quantisation.
        data_format: Order of dimensions in ONNX files.
        exclude: Layers to leave in float32 in quantised TFLite files.
        max_pixels: Most pixels of a file for a SavedModel's `image_bytes`.
        threads: Threads for measuring.
        overwrite: Whether to replace existing files.

    Example:

    >>> plan = plan_files("export", ["tflite"], ["int8"])
    >>> plan.limits["int8"].centred_correlation
    0.8
    """

    folder: pathlib.Path
    files: dict[tuple[str, str | None], str]
    limits: dict[str | None, Limits]
    data_format: str
    exclude: int
    max_pixels: int
    threads: int
    overwrite: bool

    def options(self, format: str, quantize: str | None) -> dict[str, Any]:
        """Keyword arguments of the exporter of one file."""
        options = {
            "limits": self.limits[quantize],
            "overwrite": self.overwrite,
        }
        if format == "savedmodel":
            options["max_pixels"] = self.max_pixels
        else:
            options["quantize"] = quantize
        if format == "onnx":
            options["data_format"] = self.data_format
        if format == "tflite" and quantize in ("dynamic", "int8"):
            options["exclude"] = self.exclude
        return options


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileReport:
    """One file of a `Report`.

    Args:
        format: `"savedmodel"`, `"tflite"` or `"onnx"`.
        quantize: `None`, `"float16"`, `"dynamic"` or `"int8"`.
        path: Where it is, or would be.
        passed: Whether it was verified; if not, it was not written.
        error: Why it was refused, or `None`.
        bytes: Size on disk, in bytes.
        sha256: Of the file's content; `None` for a SavedModel, a folder.
        agreement: How closely its outputs agree with Keras'.
        limits: The limits that `agreement` was held to.
        accuracy: Share of the images that it classifies correctly.
        layer_errors: See `Artifact`.
        latency_ms: Median time of one image, in milliseconds.
        peak_bytes: Peak memory of a process that runs it, in bytes.

    Of a file that could not be written, and of images whose classes are not
    known, what could not be measured is `None`.
    """

    format: str
    quantize: str | None
    path: str
    passed: bool
    error: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    agreement: Agreement | None = None
    limits: Limits | None = None
    accuracy: float | None = None
    layer_errors: tuple[quantization.LayerError, ...] = ()
    latency_ms: float | None = None
    peak_bytes: int | None = None

    @property
    def name(self) -> str:
        """Format and quantisation, such as "tflite int8"."""
        return " ".join(filter(None, (self.format, self.quantize)))

    def to_json(self) -> dict[str, Any]:
        """All values by name; those of `agreement` stand beside the others."""
        values = dataclasses.asdict(self)
        agreement = values.pop("agreement")
        names = [field.name for field in dataclasses.fields(Agreement)]
        return values | (agreement or dict.fromkeys(names))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What `export_files` wrote and measured.

    Args:
        model: Name of the model.
        fingerprint: See `Session`.
        input: What the files take, see `Artifact`.
        images: Number of images that were compared.
        threads: Threads used for the latency.
        keras_accuracy: Share of the images that Keras classifies correctly;
            `None` if their classes are not known.
        files: A `FileReport` for each file.

    Example:

    >>> report = export_files(model, plan_files("export", ["onnx"]))
    >>> report.files[0].passed, report.files[0].agreement.top1_agreement
    (True, 1.0)
    """

    model: str
    fingerprint: str
    input: str
    images: int
    threads: int
    keras_accuracy: float | None
    files: tuple[FileReport, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`; JSON has no NaN: `None` instead."""
        files = [file.to_json() for file in self.files]
        return _without_nan(vars(self) | {"files": files})


def plan_files(
    folder: str | os.PathLike[str],
    formats: Sequence[str] = tuple(_FILES),
    quantizations: Sequence[str | None] = (None,),
    *,
    data_format: str = "NHWC",
    exclude: int = 0,
    max_pixels: int = MAX_PIXELS,
    limits: Mapping[str, float | None] | None = None,
    threads: int | None = None,
    overwrite: bool = False,
) -> Plan:
    """Plan files for `export_files`, each format in all its quantisations.

    Names, paths, limits and installed extras are checked here, before a model
    is loaded or anything is written.

    Args:
        folder: Where the files go, with `report.json` and `report.png`.
        formats: Names of formats. Defaults to `("savedmodel", "tflite",
            "onnx")`.
        quantizations: `None`, `"float16"`, `"dynamic"` or `"int8"`. Defaults
            to `None` alone.
        data_format: See `to_onnx`. Defaults to `"NHWC"`.
        exclude: See `to_tflite`; for dynamic and int8. Defaults to 0.
        max_pixels: See `to_saved_model`. Defaults to 178,956,970.
        limits: Values that replace those of `LIMITS` for every file, by the
            names of `Limits`; values of `None` replace nothing. Defaults to
            `None`.
        threads: Threads within an operation while measuring. Defaults to all
            cores.
        overwrite: Whether to replace existing files. Defaults to `False`.

    Returns:
        A `Plan`.

    Raises:
        ValueError: if an argument is not as described, or no format can be
            quantised as asked.
        FileExistsError: if one of the files exists and `overwrite` is false.
        BlockingIOError: if another process is exporting to `folder`.
        ModuleNotFoundError: if a module of the extra `export` is missing that
            the files need.

    Example:

    >>> plan_files("export", ["onnx", "tflite"], [None, "float16"]).files
    {('onnx', None): 'model.onnx', ('tflite', None): 'model.tflite',
     ('tflite', 'float16'): 'model_float16.tflite'}
    """
    files = _file_names(formats, quantizations)
    given = {k: v for k, v in (limits or {}).items() if v is not None}
    onnx.check_data_format(data_format)
    if data_format != "NHWC" and "onnx" not in formats:
        raise ValueError(
            "`data_format` must be NHWC unless `formats` has onnx; got "
            f"{data_format!r}."
        )
    if exclude and not {("tflite", "dynamic"), ("tflite", "int8")} & set(files):
        raise ValueError(
            "`exclude` must be 0 without TFLite files in dynamic or int8; got "
            f"{exclude!r}."
        )
    check_max_pixels(max_pixels)
    if max_pixels != MAX_PIXELS and "savedmodel" not in formats:
        raise ValueError(
            f"`max_pixels` must be {MAX_PIXELS} unless `formats` has "
            f"savedmodel; got {max_pixels}."
        )
    plan = Plan(
        folder=pathlib.Path(folder),
        files=files,
        limits={
            quantize: dataclasses.replace(LIMITS[quantize], **given)
            for quantize in quantizations
        },
        data_format=data_format,
        exclude=exclude,
        max_pixels=max_pixels,
        threads=threads or os.cpu_count(),
        overwrite=overwrite,
    )
    for format, quantize in files:
        require_runtime(format, quantize)
    require("matplotlib", extra="export", purpose=_PICTURE)
    _check_paths(plan)
    return plan


def export_files(
    model: keras.Model | Classifier | Session,
    plan: Plan,
    *,
    images: np.ndarray | None = None,
    classes: np.ndarray | None = None,
    calibration: np.ndarray | None = None,
    preprocessing: str | keras.Layer | None = "auto",
    labels: Sequence[str] | None = None,
    transform: EvalTransform | None = None,
    on_file: Callable[[pathlib.Path], None] | None = None,
) -> Report:
    """Write, verify and measure the files of a plan, and report on them.

    The files share one `Session`. One that fails its verification is not
    written; the others are.

    Args:
        model: A `keras.Model`, `Classifier` or `Session`, see `to_tflite`.
        plan: The `Plan` of `plan_files`.
        images: Pixels to compare on, `(images, height, width, channels)`.
            Defaults to eight drawn ones, see `drawings`.
        classes: Their classes, `(images,)`, for a classifier. Defaults to
            `None`.
        calibration: Pixels whose activations set the ranges of int8. Defaults
            to `None`.
        preprocessing: See `to_saved_model`. Defaults to `"auto"`.
        labels: Class names. Defaults to those of the `Classifier`.
        transform: See the exporters. Defaults to that of the `Classifier`.
        on_file: Called with each path before it is written. Defaults to `None`.

    Returns:
        A `Report`, as in `report.json`.

    Raises:
        FileExistsError: if one of the files has come to exist since the plan
            was made and is not to be overwritten.
        BlockingIOError: if another process is exporting to the folder.
        ValueError: if an argument is not as described.

    Example:

    >>> plan = plan_files("export", ["tflite"], [None, "dynamic"])
    >>> export_files(model, plan).files[1].latency_ms
    """
    session = Session.of(model, preprocessing, labels, transform, images)
    if any(quantize == "int8" for _, quantize in plan.files):
        session.check_quantization("int8", calibration, ("int8",))
    if not session.classifies:
        classes = None
    files = []
    with held(plan.folder, argument="folder") as check_folder:
        for (format, quantize), name in plan.files.items():
            if on_file is not None:
                on_file(plan.folder / name)
            files.append(
                _export_file(
                    session, plan, format, quantize, calibration, classes
                )
            )
        report = Report(
            model=session.model.name,
            fingerprint=session.fingerprint,
            input=session.input_description,
            images=len(session.images),
            threads=plan.threads,
            keras_accuracy=_accuracy(session.reference, classes),
            files=tuple(files),
        )
        _save(report, plan)
        check_folder()  # or what was just written may be gone
    return report


def _export_file(session, plan, format, quantize, calibration, classes):
    """Write, verify and measure one file of a plan."""
    path = plan.folder / plan.files[format, quantize]
    options = plan.options(format, quantize)
    if quantize == "int8":
        options["calibration"] = calibration
    error, cost, measured = None, {}, {}
    try:
        artifact = _EXPORTERS[format](session, path, **options)
        cost = run_alone(format, path, session.images, plan.threads)
    except ExportError as refusal:
        error, artifact = str(refusal), refusal.artifact
    if artifact is not None:
        measured = {
            "bytes": artifact.size,
            "agreement": artifact.agreement,
            "limits": artifact.limits,
            "accuracy": _accuracy(artifact, classes),
            "layer_errors": artifact.layer_errors,
        }
    return FileReport(
        format=format,
        quantize=quantize,
        path=str(path),
        passed=error is None,
        error=error,
        sha256=file_hash(path) if error is None and path.is_file() else None,
        **measured,
        **cost,
    )


def _file_names(formats, quantizations):
    """File names by format and quantisation."""
    for format in formats:
        if format not in _FILES:
            raise ValueError(
                f"`formats` must be some of {', '.join(_FILES)}; got "
                f"{format!r}."
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


def _check_paths(plan):
    """Refuse places that are taken, each once."""
    check_not_held(plan.folder, argument="folder")
    formats = {name: format for (format, _), name in plan.files.items()}
    for name, format in (formats | {_REPORT: "json", _PICTURE: "png"}).items():
        check_path(plan.folder / name, format)
        check_free(plan.folder / name, overwrite=plan.overwrite)


def _accuracy(side, classes):
    """Share of the images that an artifact or Keras classifies correctly."""
    if classes is None:
        return None
    (scores,) = side.outputs.values()
    return float(np.mean(scores.argmax(axis=-1) == classes))


def _without_nan(value):
    """The same with `None` for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _save(report, plan):
    """Write `report.json` and `report.png`."""
    with staged(plan.folder / _REPORT, overwrite=plan.overwrite) as new:
        text = json.dumps(report.to_json(), indent=1, allow_nan=False)
        new.write_text(text + "\n")
    with staged(plan.folder / _PICTURE, overwrite=plan.overwrite) as new:
        draw_report(report, new)


def run_alone(format, path, images, threads) -> dict:
    """Measure a file in a process that loads nothing else.

    Args:
        format: `"savedmodel"`, `"tflite"` or `"onnx"`.
        path: The file.
        images: Pixels `(images, height, width, channels)`, used in turn.
        threads: Threads within an operation.

    Returns:
        `latency_ms`, the median time of one image, and `peak_bytes`, the
        peak memory of the process.

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
                # "-P": or `import onnx` would find this folder's onnx.py.
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
