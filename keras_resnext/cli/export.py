"""`keras-resnext export`: a model in other formats, each file verified."""

import dataclasses
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape

from keras_resnext.cli.console import DataDirOption
from keras_resnext.cli.console import ModelArgument
from keras_resnext.cli.console import WeightsOption
from keras_resnext.cli.console import console
from keras_resnext.cli.console import open_data
from keras_resnext.cli.console import start_tensorflow
from keras_resnext.cli.console import table


def export(
    model: ModelArgument,
    weights: WeightsOption = None,
    formats: Annotated[
        str, typer.Option("--format", help="Formats, separated by commas.")
    ] = "savedmodel,tflite,onnx",
    quantize: Annotated[
        str,
        typer.Option(
            help="none, float16, dynamic and int8, separated by commas; each "
            "format is written in all that it supports."
        ),
    ] = "none",
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set for verification, and for calibration of int8. "
            "Defaults to the run's, or to noise."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder. Defaults to export/ beside the model."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files.")
    ] = False,
    max_images: Annotated[
        int,
        typer.Option(min=1, help="Verify on this many images at most."),
    ] = 1000,
    calibration_images: Annotated[
        int,
        typer.Option(
            min=1,
            help="Training images for the calibration of int8, drawn with "
            "seed 0.",
        ),
    ] = 100,
    exclude_worst: Annotated[
        int,
        typer.Option(
            min=0,
            help="TFLite layers to leave in float32: those with the largest "
            "quantisation error.",
        ),
    ] = 0,
    data_format: Annotated[
        str, typer.Option(help="Of ONNX images: NHWC or NCHW.")
    ] = "NHWC",
    max_difference: Annotated[
        float | None,
        typer.Option(
            help="Maximum difference of logits, as a share of the largest."
        ),
    ] = None,
    min_correlation: Annotated[
        float | None, typer.Option(help="Minimum correlation of logits.")
    ] = None,
    min_centred_correlation: Annotated[
        float | None,
        typer.Option(
            help="Minimum correlation after subtracting each logit's mean "
            "over the images."
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(help="Minimum share of images with Keras' top class."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="For the latency. Defaults to all cores."),
    ] = None,
    data_dir: DataDirOption = None,
):
    """Export a model, and verify each file in its own runtime.

    Every file is compared with Keras on the same images before it is put in
    place; report.json and report.png have the results.
    """
    from keras_resnext.extras import require

    start_tensorflow()
    from keras_resnext.classifier import Classifier
    from keras_resnext.export import ExportError
    from keras_resnext.export import report

    quantizations = [None if q == "none" else q for q in _names(quantize)]
    planned = report.plan(_names(formats), quantizations)
    limits = _limits(
        quantizations,
        logit_difference=max_difference,
        correlation=min_correlation,
        centred_correlation=min_centred_correlation,
        top1_agreement=min_agreement,
    )
    for format, _ in planned:
        if format in _RUNTIMES:
            purpose = f"Verification of {format}"
            require(_RUNTIMES[format], extra="export", purpose=purpose)
    require("matplotlib", extra="export", purpose="The picture")
    if exclude_worst and not ({"dynamic", "int8"} & set(quantizations)):
        raise ValueError("`exclude_worst` needs `quantize` dynamic or int8.")
    if data_format != "NHWC" and "onnx" not in _names(formats):
        raise ValueError("`data_format` needs the format onnx.")
    # Temporary files are removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = _default_folder(model) if output is None else output
    report.check_places(folder, planned, overwrite=overwrite)
    source = _open_data(model, data, data_dir, needed="int8" in quantizations)
    classifier = Classifier.load(model, weights)
    images = _read_images(
        classifier,
        source,
        max_images,
        calibration_images if "int8" in quantizations else 0,
    )
    with console.status("") as status:
        result = report.export_files(
            classifier,
            folder,
            planned,
            **images,
            data_format=data_format,
            exclude=exclude_worst,
            limits=limits,
            threads=threads,
            overwrite=overwrite,
            on_file=lambda path: status.update(
                f"Writing and verifying {escape(str(path))}"
            ),
        )
    _print_result(result, limits)
    failed = [line["error"] for line in result["files"] if not line["passed"]]
    if failed:
        raise ExportError(" ".join(failed))


# What verifies a file, where it is not TensorFlow itself.
_RUNTIMES = {"tflite": "ai_edge_litert", "onnx": "onnxruntime"}


def _names(text):
    return [name.strip() for name in text.split(",")]


def _default_folder(model):
    path = Path(model)
    return (path if path.is_dir() else path.parent) / "export"


def _limits(quantizations, **options):
    """The default limits, with those that were given in their place."""
    from keras_resnext.export.verify import LIMITS

    given = {name: x for name, x in options.items() if x is not None}
    return {q: dataclasses.replace(LIMITS[q], **given) for q in quantizations}


def _open_data(model, dataset, data_dir, needed):
    """The data set asked for, or the run's, or `None`."""
    if dataset or Path(model).is_dir():
        return open_data(model, dataset, data_dir)
    if needed:
        raise ValueError(
            "`data` must be given for the calibration of int8, because "
            f"{model} is not the folder of a run."
        )
    return None


def _read_images(classifier, data, count, calibration_count):
    """Images for verification and calibration, as `export_files` takes them."""
    from keras_resnext.inspection import classifies
    from keras_resnext.inspection import image_size
    from keras_resnext.training.datasets import read_images
    from keras_resnext.training.evaluation import check_classes

    if data is None:
        return {}
    data.prepare()
    image_size(classifier.model)  # a square, or the error says so
    if classifies(classifier.model):
        check_classes(classifier, data)
    transform = classifier.transform
    images, classes = read_images(data, data.val_split, transform, count=count)
    calibration = None
    if calibration_count:
        calibration, _ = read_images(
            data, "train", transform, count=calibration_count, shuffle_seed=0
        )
    return {"images": images, "classes": classes, "calibration": calibration}


def _print_result(report, limits):
    """The table of files, and where they are."""
    from keras_resnext.export.verify import describe_limits

    _print_table(report)
    for line in report["files"]:
        if line["passed"]:
            held = describe_limits(limits[line["quantize"]])
            console.print(f"Wrote {escape(line['path'])} ({held}).")


def _print_table(report):
    """Size, agreement with Keras, and cost of each file."""
    from keras_resnext.export.report import line_name

    rows = table(
        "file",
        *("size (MB)", "largest", "mean", "top-1", "accuracy"),
        *("time (ms)", "peak (MB)"),
        title=f"{report['images']} images, each in the file's own runtime: "
        "largest and mean difference\nfrom Keras' logits, top-1 agreement, "
        "median time of one image, peak memory;\n"
        f"{report['threads']} threads",
    )
    rows.box = box.SIMPLE  # or it would need more than 80 columns
    rows.padding = 0
    rows.columns[0].no_wrap = True

    def shown(value, form, unit=1):
        return "-" if value is None else format(value / unit, form)

    accuracy = shown(report["keras_accuracy"], ".4f")
    rows.add_row("keras", *["-"] * 4, accuracy, "-", "-")
    for line in report["files"]:
        rows.add_row(
            line_name(line),
            shown(line["bytes"], ".2f", 1e6),
            shown(line["max_logit_difference"], ".1e"),
            shown(line["mean_logit_difference"], ".1e"),
            shown(line["top1_agreement"], ".2%"),
            shown(line["accuracy"], ".4f"),
            shown(line["latency_ms"], ".2f") if line["passed"] else "FAILED",
            shown(line["peak_bytes"], ".0f", 1e6),
        )
    console.print(rows)
