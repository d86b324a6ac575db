"""`keras-resnext export`: a model in other formats, each file verified."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.text import Text

from keras_resnext.cli.console import DataDirOption
from keras_resnext.cli.console import ModelArgument
from keras_resnext.cli.console import PreprocessingOption
from keras_resnext.cli.console import WeightsOption
from keras_resnext.cli.console import console
from keras_resnext.cli.console import open_data
from keras_resnext.cli.console import printable
from keras_resnext.cli.console import read_preprocessing
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
            "Defaults to the run's, or to drawn images."
        ),
    ] = None,
    preprocessing: PreprocessingOption = "auto",
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
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most pixels of a picture that a SavedModel's image_bytes "
            "takes; other files take pixels. Defaults to 178956970, Pillow's "
            "limit.",
        ),
    ] = None,
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
    start_tensorflow()
    from keras_resnext.classifier import Classifier
    from keras_resnext.export import ExportError
    from keras_resnext.export import export_files
    from keras_resnext.export import plan_files
    from keras_resnext.images import MAX_PIXELS

    plan = plan_files(
        _default_folder(model) if output is None else output,
        _names(formats),
        [None if name == "none" else name for name in _names(quantize)],
        data_format=data_format,
        exclude=exclude_worst,
        max_pixels=max_pixels or MAX_PIXELS,
        limits={
            "logit_difference": max_difference,
            "correlation": min_correlation,
            "centred_correlation": min_centred_correlation,
            "top1_agreement": min_agreement,
        },
        threads=threads,
        overwrite=overwrite,
    )
    # Temporary files are removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    needs_calibration = "int8" in _names(quantize)
    source = _open_data(model, data, data_dir, needs_calibration)
    classifier = Classifier.load(
        model, weights, preprocessing=read_preprocessing(preprocessing)
    )
    images = _read_images(
        classifier,
        source,
        max_images,
        calibration_images if needs_calibration else 0,
    )
    with console.status("") as status:
        report = export_files(
            classifier,
            plan,
            **images,
            on_file=lambda path: status.update(
                Text(f"Writing and verifying {printable(str(path))}")
            ),
        )
    _print_report(report)
    failed = [file.error for file in report.files if not file.passed]
    if failed:
        raise ExportError(" ".join(failed))


def _names(text):
    return [name.strip() for name in text.split(",")]


def _default_folder(model):
    path = Path(model)
    if not path.exists():  # a model's name, or a repository of the Hub
        return Path("export")
    return (path if path.is_dir() else path.parent) / "export"


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
    from keras_resnext.inspection import is_quantization_aware
    from keras_resnext.training.datasets import read_images
    from keras_resnext.training.evaluation import check_classes

    if data is None:
        return {}
    data.prepare()
    image_size(classifier.model)  # a square, or the error says so
    if classifies(classifier.model):
        check_classes(classifier, data)
    transform = classifier.require_transform()
    images, classes = read_images(data, data.val_split, transform, count=count)
    calibration = None
    if calibration_count and not is_quantization_aware(classifier.model):
        calibration, _ = read_images(
            data, "train", transform, count=calibration_count, shuffle_seed=0
        )
    return {"images": images, "classes": classes, "calibration": calibration}


def _print_report(report):
    """Size, agreement with Keras and cost of each file, and where it is."""
    rows = table(
        "file",
        *("size (MB)", "largest", "mean", "top-1", "accuracy"),
        *("time (ms)", "peak (MB)"),
        title=f"{report.images} images, each in the file's own runtime: "
        "largest and mean difference\nfrom Keras' logits, top-1 agreement, "
        "median time of one image, peak memory;\n"
        f"{report.threads} threads",
    )
    rows.box = box.SIMPLE  # or it would need more than 80 columns
    rows.padding = 0
    rows.columns[0].no_wrap = True
    accuracy = _shown(report.keras_accuracy, ".4f")
    rows.add_row("keras", *["-"] * 4, accuracy, "-", "-")
    for file in report.files:
        agreement = file.agreement
        rows.add_row(
            file.name,
            _shown(file.bytes, ".2f", 1e6),
            _shown(agreement and agreement.max_logit_difference, ".1e"),
            _shown(agreement and agreement.mean_logit_difference, ".1e"),
            _shown(agreement and agreement.top1_agreement, ".2%"),
            _shown(file.accuracy, ".4f"),
            _shown(file.latency_ms, ".2f") if file.passed else "FAILED",
            _shown(file.peak_bytes, ".0f", 1e6),
        )
    console.print(rows)
    console.print(f"Input: {report.input}.")
    for file in report.files:
        if file.passed:
            limits = file.limits.describe()
            console.print(f"Wrote {file.path} ({limits}).")


def _shown(value, form, unit=1):
    return "-" if value is None else format(value / unit, form)
