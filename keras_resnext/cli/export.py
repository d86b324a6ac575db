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
    start_tensorflow()
    from keras_resnext.classifier import Classifier
    from keras_resnext.export import export_files
    from keras_resnext.export import plan_files

    plan = plan_files(
        _default_folder(model) if output is None else output,
        formats=_names(formats),
        quantizations=[None if q == "none" else q for q in _names(quantize)],
        exclude=exclude_worst,
        data_format=data_format,
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
    classifier = Classifier.load(model, weights)
    del export_files, plan, dataclasses, box, escape, table


def _names(text):
    return [name.strip() for name in text.split(",")]


def _default_folder(model):
    path = Path(model)
    return (path if path.is_dir() else path.parent) / "export"
