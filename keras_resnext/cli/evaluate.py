"""`keras-resnext evaluate`: classify every image of a split and count."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from keras_resnext.cli.console import BadImageOption
from keras_resnext.cli.console import DataDirOption
from keras_resnext.cli.console import ModelArgument
from keras_resnext.cli.console import PreprocessingOption
from keras_resnext.cli.console import WeightsOption
from keras_resnext.cli.console import console
from keras_resnext.cli.console import open_data
from keras_resnext.cli.console import print_bad_images
from keras_resnext.cli.console import read_preprocessing
from keras_resnext.cli.console import start_tensorflow
from keras_resnext.cli.console import table

# Images, as `export` takes them.
_CALIBRATION = 100


def evaluate(
    model: ModelArgument,
    weights: WeightsOption = None,
    preprocessing: PreprocessingOption = "auto",
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Name or folder of a data set. Defaults to the run's."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Defaults to the validation or test split."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Where to draw predictions, mistakes first. Defaults to "
            "predictions.png in the run's folder, for the run's own data and "
            "where matplotlib is installed."
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where to write report.html, report.json and pictures: "
            "confusion matrix, scores of each class, most confused pairs, "
            "calibration. An earlier report there is replaced.",
        ),
    ] = None,
    quantized: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="IMAGES",
            help="Also compare its 8-bit TFLite files on this many images of "
            "the split: dynamic range, int8 after training and, for a run of "
            "`finetune --qat`, its own. Ranges of int8 after training come "
            "from 100 training images.",
        ),
    ] = 0,
    at_least: Annotated[
        float | None,
        typer.Option(help="Exit with status 1 below this accuracy."),
    ] = None,
    on_bad_image: BadImageOption = "error",
    data_dir: DataDirOption = None,
):
    """Measure the accuracy of a model on a data set."""
    start_tensorflow()
    if quantized:
        from keras_resnext.export.verify import require_runtime
    from keras_resnext.classifier import Classifier
    from keras_resnext.extras import require
    from keras_resnext.training import evaluate
    from keras_resnext.training.plots import draw_predictions
    from keras_resnext.training.report import check_report

    if report is not None:
        check_report(report)
    if quantized:
        require_runtime("tflite", "int8")
    if picture is not None:
        require("matplotlib", extra="train", purpose="The picture")
    elif (
        Path(model).is_dir()
        and not (dataset or split)
        and importlib.util.find_spec("matplotlib")
    ):
        picture = Path(model, "predictions.png")
    data = open_data(model, dataset, data_dir)
    classifier = Classifier.load(
        model, weights, preprocessing=read_preprocessing(preprocessing)
    )
    plain = _float_network(model, classifier) if quantized else None
    result = evaluate(
        classifier,
        data,
        split=split,
        batch_size=batch_size,
        on_bad_image=on_bad_image,
    )
    if classifier.record:
        _print_beside_published(classifier.record, data.name, result)
    console.print(
        f"{data.name}, split {result.split}: {result.examples} images, "
        f"{round(result.accuracy * result.examples)} correct. "
        f"Accuracy {result.accuracy:.4f}, loss {result.loss:.4f}."
    )
    print_bad_images(result.bad_images)
    if picture is not None:
        draw_predictions(result, picture)
        console.print(f"Wrote {picture}.")
    if report is not None:
        result.report(report, title=f"{model} on {data.name}, {result.split}")
        console.print(f"Wrote {report / 'report.html'}.")
    if quantized:
        _print_quantized(plain, classifier, data, result.split, quantized)
    if at_least is not None and result.accuracy < at_least:
        raise RuntimeError(
            f"The accuracy must be at least {at_least}; it is "
            f"{result.accuracy:.4f}."
        )


def _print_beside_published(record, dataset, result):
    """The measured accuracy below the published one."""
    rows = table("", "top-1 (%)", "top-5 (%)", "images", title=record.name)
    rows.add_row(
        f"published by {record.measured_by}, {record.dataset}",
        f"{record.top1:.3f}",
        f"{record.top5:.3f}",
        "",
    )
    rows.add_row(
        f"measured, {dataset}, split {result.split}",
        f"{100 * result.accuracy:.3f}",
        f"{100 * result.top5_accuracy:.3f}",
        str(result.examples),
    )
    console.print(rows)


def _print_quantized(plain, classifier, data, split, count):
    """What eight bits cost, and in which layers."""
    from keras_resnext.export.comparison import compare_roundings
    from keras_resnext.training.datasets import read_images

    transform = classifier.require_transform()
    trained = None if classifier is plain else classifier
    images, classes = read_images(data, split, transform, count=count)
    calibration, _ = read_images(
        data, "train", transform, count=_CALIBRATION, shuffle_seed=0
    )
    with console.status("Writing and running files in eight bits"):
        roundings = compare_roundings(
            plain, images, classes, calibration, trained=trained
        )
    rows = table(
        *("", "size (MB)", "accuracy", "float32's class"),
        title=f"TFLite files on {len(images)} images",
    )
    for row in roundings:
        rows.add_row(
            row.name,
            f"{row.bytes / 1e6:.2f}",
            f"{row.accuracy:.4f}",
            f"{row.agreement:.2%}",
        )
    console.print(rows)
    layers = table(
        "layer",
        *(row.name for row in roundings[1:]),
        title="Accumulated rounding noise of each layer's output, relative "
        "to the signal",
    )
    errors = [
        {error.name: error.accumulated for error in row.layer_errors}
        for row in roundings[1:]
    ]
    for name in sorted(errors[-1], key=errors[-1].get, reverse=True):
        layers.add_row(name, *(f"{each[name]:.3f}" for each in errors))
    console.print(layers)


def _float_network(model, classifier):
    """The classifier in floating point: itself, or what its run began with."""
    from keras_resnext.classifier import Classifier
    from keras_resnext.inspection import is_quantization_aware
    from keras_resnext.training import Run

    if not is_quantization_aware(classifier.model):
        return classifier
    source = Run(model).recipe.weights if Path(model).is_dir() else ""
    if not source or not Run(source).finished:
        raise ValueError(
            "`quantized` must be 0 for a model of quantisation-aware training "
            "unless it is a run, and the run that it began with is there; got "
            f"{model}{source and f', which began with {source}'}."
        )
    return Classifier.load(source)
