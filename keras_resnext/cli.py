"""The command line: it parses and prints; the work is done elsewhere.

Nothing heavy is imported before a command needs it, so that `--help` answers
at once.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeRemainingColumn
from rich.table import Table

app = typer.Typer(
    help="ResNeXt for Keras 3: build, train, evaluate, predict and export.",
    epilog="Errors are one line; with KERAS_RESNEXT_TRACEBACK=1 in the "
    "environment they come with a traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(soft_wrap=True)


# What proves a file, where it is not TensorFlow itself.
_RUNTIMES = {"tflite": "ai_edge_litert", "onnx": "onnxruntime"}
_GRID_IMAGES = 40

ModelArgument = Annotated[
    Path, typer.Argument(help="Folder of a training run, or a .keras file.")
]
ModelOption = Annotated[
    Path,
    typer.Option(
        "--model",
        help="Folder of a training run, a .keras file, or with --weights a "
        "model's name.",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        help="Published weights: imagenet, or a tag of `list --weights`."
    ),
]
BadImageOption = Annotated[
    str, typer.Option(help="error, or skip images that cannot be decoded.")
]
DataDirOption = Annotated[
    Path | None,
    typer.Option(help="Where TensorFlow Datasets keeps its data sets."),
]


def main():
    """Run the command line; a failure is one line and exit status 1."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        app()
    except Exception as error:
        if "KERAS_RESNEXT_TRACEBACK" in os.environ or not _is_expected(error):
            raise
        message = " ".join(str(error).split())
        status = getattr(error, "exit_status", 1)
        label = "[bold red]Error:[/] " if status == 1 else ""
        Console(stderr=True).print(f"{label}{escape(message)}", soft_wrap=True)
        sys.exit(status)


def _is_expected(error):
    """Whether an error is about what was given, and not a mistake in here."""
    expected = (ValueError, OSError, ImportError, RuntimeError)
    if "tensorflow" in sys.modules:
        # Such as an image in a data set that cannot be decoded.
        expected += (sys.modules["tensorflow"].errors.OpError,)
    return isinstance(error, expected)


@app.command("list")
def list_models(
    devices: Annotated[
        bool,
        typer.Option(
            "--devices",
            help="This machine's devices and how grouped convolutions run on "
            "them instead.",
        ),
    ] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="Published weights instead.")
    ] = False,
    recipes: Annotated[
        bool, typer.Option("--recipes", help="Training recipes instead.")
    ] = False,
    model: Annotated[
        str | None, typer.Argument(help="Only this model's weights.")
    ] = None,
):
    """List the models that have a name of their own."""
    if (model and not weights) or weights + devices + recipes > 1:
        raise ValueError(
            "`list` takes a model with --weights only, and one of --weights, "
            "--devices and --recipes."
        )
    if weights:
        _print_weights(model)
        return
    if recipes:
        _print_recipes()
        return
    _start_tensorflow()
    if devices:
        _print_devices()
        return
    from keras_resnext.variants import list_models

    for name in list_models():
        console.print(name)
    console.print(
        "and resnext<depth>_<cardinality>x<base_width>d, such as "
        "resnext50_16x8d or resnext20_4x16d"
    )


@app.command()
def summary(
    model: Annotated[
        str | None, typer.Argument(help="Name of a model, see `list`.")
    ] = None,
    form: Annotated[
        str, typer.Option(help="grouped, concatenated or branches.")
    ] = "grouped",
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's tables instead.")
    ] = False,
):
    """Print what a model costs, stage by stage."""
    if paper == bool(model):
        raise ValueError(
            "`summary` must get the name of a model or --paper; got "
            f"{'both' if paper else 'neither'}."
        )
    _start_tensorflow()
    if paper:
        _print_paper()
    else:
        console.print(_stages(model, form))


@app.command()
def train(
    workdir: Annotated[
        Path,
        typer.Option(help="Folder of the run; one that exists goes on."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FIELD=VALUE]...",
            help="Other fields of the recipe, such as epochs=30.",
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="Name of a recipe, see `list --recipes`.")
    ] = "digits",
    dataset: Annotated[
        str | None,
        typer.Option(
            help="A TFDS name, such as digits or cifar10, or a folder "
            "<split>/<class>/<image>.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of a model, see `list`.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="Weights to start from: a tag, or a file."),
    ] = None,
    freeze_until: Annotated[
        str | None,
        typer.Option(
            help="Last part that is not trained, such as conv3; with all "
            "before it."
        ),
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="auto, one, mirrored, multiworker or tpu.")
    ] = "auto",
    steps_per_execution: Annotated[
        int,
        typer.Option(
            min=0,
            help="Steps between looks at the loss. Defaults to 1 on CPUs, 10 "
            "on GPUs and TPUs.",
        ),
    ] = 0,
    save_every_steps: Annotated[
        int,
        typer.Option(
            min=0, help="Steps between checkpoints. Defaults to an epoch's."
        ),
    ] = 0,
    keep: Annotated[
        int, typer.Option(min=1, help="Newest checkpoints to keep.")
    ] = 2,
    on_bad_image: BadImageOption = "error",
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="The same bits each time; may be slower."
        ),
    ] = False,
    data_dir: DataDirOption = None,
):
    """Train a model, or go on where training stopped.

    Without options the recipe is a small ResNeXt on handwritten digits.
    """
    from keras_resnext.training import RECIPES

    if recipe not in RECIPES:
        raise ValueError(
            f"`recipe` must be one of {', '.join(RECIPES)}; got {recipe!r}."
        )
    given = {
        "dataset": dataset,
        "model": model,
        "weights": weights,
        "freeze_until": freeze_until,
    }
    plan = RECIPES[recipe].override(
        [
            *(f"{name}={value}" for name, value in given.items() if value),
            *(overrides or []),
        ]
    )
    # Workers connect before anything else uses TensorFlow.
    chosen = _start_tensorflow(strategy)
    from keras_resnext.training import train

    console.print(plan)
    with _training_progress() as (on_step, on_epoch):
        run = train(
            plan,
            workdir,
            strategy=chosen,
            data_dir=data_dir,
            steps_per_execution=steps_per_execution,
            save_every_steps=save_every_steps,
            keep=keep,
            on_bad_image=on_bad_image,
            deterministic=deterministic,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    accuracy = [entry["val_accuracy"] for entry in run.history[-1:]]
    console.print(
        f"{run.path}: {plan.epochs} epochs done"
        + "".join(f", held-out accuracy {a:.4f}" for a in accuracy)
        + f". Its {run.model_file.name} is ready."
    )
    if run.bad_images:
        console.print(
            f"{len(run.bad_images)} images could not be decoded and were left "
            f"out; {run.path / 'bad_images*.txt'} names them."
        )


@app.command()
def evaluate(
    model: Annotated[
        Path | None,
        typer.Argument(help="Folder of a training run, or a .keras file."),
    ] = None,
    named: Annotated[
        str | None,
        typer.Option("--model", help="With --weights, a model's name."),
    ] = None,
    weights: WeightsOption = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="Defaults to the one the run was trained on."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Defaults to the one that is not trained on."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Where to draw predictions, mistakes first. Defaults to "
            "predictions.png in the run's folder, for the run's own held-out "
            "images."
        ),
    ] = None,
    at_least: Annotated[
        float | None,
        typer.Option(help="Accuracy below which the exit status is 1."),
    ] = None,
    on_bad_image: BadImageOption = "error",
    data_dir: DataDirOption = None,
):
    """Classify every image of a split and count."""
    published = named is not None or weights is not None
    if (model is None) != published or (
        published and (picture or named is None or weights is None)
    ):
        raise ValueError(
            "`evaluate` must get either a run's folder or a .keras file, or "
            "--model and --weights without --picture."
        )
    _start_tensorflow()
    from keras_resnext.extras import require
    from keras_resnext.training import evaluate

    if published:
        accuracy = _evaluate_published(
            named, weights, dataset, split, batch_size, data_dir, on_bad_image
        )
        _check_accuracy(accuracy, at_least)
        return
    network, run, notes = _load(model)
    if picture is None and run is not None and not (dataset or split):
        picture = run.path / "predictions.png"
    if picture is not None:
        require("matplotlib", extra="train", purpose="The picture")
    dataset = _dataset_of(run, dataset, data_dir)
    result = evaluate(
        network,
        dataset,
        split=split,
        batch_size=batch_size,
        data_dir=data_dir,
        crop=notes.crop,
        on_bad_image=on_bad_image,
    )
    console.print(
        f"{dataset}, split {result.split}: all {result.examples} images seen, "
        f"{round(result.accuracy * result.examples)} right. "
        f"Accuracy {result.accuracy:.4f}, loss {result.loss:.4f}."
    )
    _print_bad_images(result.bad_images)
    if picture is not None:
        _draw_predictions(
            network, dataset, data_dir, result, picture, notes.crop
        )
        console.print(f"Wrote {picture}.")
    _check_accuracy(result.accuracy, at_least)


@app.command()
def predict(
    images: Annotated[
        list[Path], typer.Argument(help="JPEG, PNG, GIF or BMP files.")
    ],
    model: ModelOption,
    weights: WeightsOption = None,
    top: Annotated[int, typer.Option(min=1, help="Classes to name.")] = 5,
):
    """Name the most probable classes of images."""
    _start_tensorflow()
    from keras_resnext.inspection import check_classifier
    from keras_resnext.inspection import image_size
    from keras_resnext.preprocessing import imagenet_labels
    from keras_resnext.preprocessing import preprocess_input
    from keras_resnext.preprocessing import read_image
    from keras_resnext.preprocessing import read_photo

    if weights is not None:
        photos = [read_photo(path) for path in images]
        network, record = _load_published(model, weights)
        labels, transform = imagenet_labels(), record.transform
        inputs = [transform(photo) for photo in photos]
    else:
        network, _, notes = _load(model)
        check_classifier(network)
        labels, size = notes.labels, image_size(network)
        inputs = [
            preprocess_input(read_image(path, size, crop=notes.crop))
            for path in images
        ]
    for path, image in zip(images, inputs, strict=True):
        scores = network.predict_on_batch(image[None])[0]
        table = Table("class", "probability", title=str(path))
        for i in scores.argsort()[::-1][:top]:
            table.add_row(labels[i] if labels else str(i), f"{scores[i]:.4f}")
        console.print(table)


@app.command()
def export(
    model: Annotated[
        Path,
        typer.Argument(
            help="Folder of a training run, a .keras file, or with --weights "
            "a model's name."
        ),
    ],
    weights: WeightsOption = None,
    formats: Annotated[
        str, typer.Option("--format", help="Some of them, with commas.")
    ] = "savedmodel,tflite,onnx",
    quantize: Annotated[
        str,
        typer.Option(
            help="Some of none, float16, dynamic and int8, with commas; each "
            "format is written in all it can."
        ),
    ] = "none",
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set to compare on, and for int8 to calibrate on. "
            "Without one: the run's; else images of noise."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder. Defaults to export/ beside the model."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.")
    ] = False,
    max_images: Annotated[
        int,
        typer.Option(min=1, help="Compare on the first held-out images only."),
    ] = 1000,
    calibration_images: Annotated[
        int,
        typer.Option(
            min=1,
            help="Training images to calibrate int8 on, drawn with seed 0.",
        ),
    ] = 100,
    exclude_worst: Annotated[
        int,
        typer.Option(
            min=0,
            help="TFLite layers that stay float32: those with the largest "
            "quantisation error of their own.",
        ),
    ] = 0,
    data_format: Annotated[
        str, typer.Option(help="Of ONNX images: NHWC or NCHW.")
    ] = "NHWC",
    max_difference: Annotated[
        float | None,
        typer.Option(
            help="Largest difference of logits, as a share of the largest."
        ),
    ] = None,
    min_correlation: Annotated[
        float | None, typer.Option(help="Smallest correlation of logits.")
    ] = None,
    min_image_correlation: Annotated[
        float | None,
        typer.Option(help="The same of what images change in them."),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(help="Smallest share of images with Keras' best class."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="For the latency. Defaults to all cores."),
    ] = None,
    data_dir: DataDirOption = None,
):
    """Write a model in other formats, and prove each file in its own runtime.

    Every file is loaded back and compared with Keras on the same held-out
    images before it is put in place; report.json and report.png tell of all.
    """
    from keras_resnext.extras import require

    _start_tensorflow()
    from keras_resnext.export import ExportError
    from keras_resnext.export import report
    from keras_resnext.export.verify import describe_limits

    formats = [name.strip() for name in formats.split(",")]
    quantizations = [
        None if name.strip() == "none" else name.strip()
        for name in quantize.split(",")
    ]
    planned = report.plan(formats, quantizations)
    limits_of = {
        how: _limits(
            how,
            logit_difference=max_difference,
            correlation=min_correlation,
            centred_correlation=min_image_correlation,
            top1_agreement=min_agreement,
        )
        for how in quantizations
    }
    for format, _ in planned:
        if format in _RUNTIMES:
            require(
                _RUNTIMES[format], extra="export", purpose=f"The {format} check"
            )
    require("matplotlib", extra="export", purpose="The picture")
    if exclude_worst and not ({"dynamic", "int8"} & set(quantizations)):
        raise ValueError("`exclude_worst` needs `quantize` dynamic or int8.")
    if data_format != "NHWC" and "onnx" not in formats:
        raise ValueError(
            "`data_format` is of the format onnx; it is not asked for."
        )
    # So that what is half-written is removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    is_run = model.is_dir() and weights is None
    output = output or (model if is_run else model.parent) / "export"
    report.check_places(output, planned, overwrite=overwrite)
    network, labels, resize, images = _exported(model, weights, data, data_dir)
    calibration = None
    if "int8" in quantizations:
        if images is None:
            raise ValueError(
                "`data` must be given to calibrate int8 on; got none, and "
                f"{model} is not a run's folder."
            )
        calibration, _ = images("train", calibration_images, shuffle_seed=0)
    pixels, classes = images(None, max_images) if images else (None, None)
    with console.status("") as status:
        found = report.export_files(
            network,
            output,
            planned,
            images=pixels,
            classes=classes,
            calibration=calibration,
            labels=labels,
            resize=resize,
            data_format=data_format,
            exclude=exclude_worst,
            limits=limits_of,
            threads=threads,
            overwrite=overwrite,
            on_file=lambda path: status.update(
                f"Writing and checking {escape(str(path))}"
            ),
        )
    _print_export(found)
    for line in found["files"]:
        if line["passed"]:
            limits = describe_limits(limits_of[line["quantize"]])
            console.print(
                f"Wrote {escape(line['path'])} ({limits}).", soft_wrap=True
            )
    failed = [line["error"] for line in found["files"] if not line["passed"]]
    if failed:
        raise ExportError(" ".join(failed))


def _limits(quantize, **wanted):
    """The usual limits, but for those that were given."""
    from keras_resnext.export.verify import LIMITS

    given = {name: value for name, value in wanted.items() if value is not None}
    return dataclasses.replace(LIMITS[quantize], **given)


def _exported(model, weights, dataset, data_dir):
    """What `export` works on.

    Returns:
        The network, its labels, what resizes a picture in TensorFlow (`None`
        for the usual), and a function from a split (`None` for the held-out
        one), a number of images and a seed to pixels and classes (`None`
        without a data set).
    """
    from keras_resnext.export.graph import resize_then_crop
    from keras_resnext.inspection import classifies
    from keras_resnext.inspection import image_shape
    from keras_resnext.inspection import image_size
    from keras_resnext.preprocessing import imagenet_labels
    from keras_resnext.preprocessing import resize_and_crop
    from keras_resnext.training.datasets import open_dataset
    from keras_resnext.training.datasets import read_images

    if weights is not None:
        if dataset:
            open_dataset(dataset, data_dir)  # or say so before downloading
        network, record = _load_published(model, weights)
        labels, show = imagenet_labels(), record.transform.pixels
        resize = functools.partial(
            resize_then_crop,
            resize_size=record.resize_size,
            image_size=record.image_size,
            interpolation=record.interpolation,
        )
    else:
        network, run, notes = _load(model)
        labels = notes.labels
        height, width, _ = image_shape(network)
        resize = show = None
        if height == width:
            resize = show = functools.partial(
                resize_and_crop, size=height, crop=notes.crop
            )
        if dataset or run:
            image_size(network)  # a square, or this says so
            dataset = _dataset_of(run, dataset, data_dir)
    if dataset is None:
        return network, labels, resize, None
    data = open_dataset(dataset, data_dir)
    data.prepare()
    if weights is None and labels and labels != data.labels:
        raise ValueError(
            "`data` must have the classes that the model was trained on, "
            f"{labels[:20]}; {dataset} has {data.labels[:20]}."
        )
    if classifies(network) and len(data.labels) != network.output_shape[-1]:
        raise ValueError(
            f"`data` must have the model's {network.output_shape[-1]} classes; "
            f"{dataset} has {len(data.labels)}."
        )

    def images(split, count, shuffle_seed=None):
        return read_images(
            data,
            split or data.val_split,
            show,
            count=count,
            shuffle_seed=shuffle_seed,
        )

    return network, labels, resize, images


def _print_export(report):
    """The table of files beside Keras, and the layers that lose most."""
    from keras_resnext.export.report import line_name

    table = _table(
        "file",
        *("size (MB)", "largest", "mean", "top-1", "accuracy"),
        *("time (ms)", "peak (MB)"),
        title=f"{report['images']} images, each in the file's own runtime: "
        "largest and mean difference\nfrom Keras' logits, agreement of best "
        f"classes, median time of one image,\npeak memory; "
        f"{report['threads']} threads",
    )
    table.box = box.SIMPLE  # or it would need more than 80 columns
    table.padding = 0
    table.columns[0].no_wrap = True

    def shown(value, form, unit=1):
        return "-" if value is None else format(value / unit, form)

    accuracy = shown(report["keras_accuracy"], ".4f")
    table.add_row("keras", *["-"] * 4, accuracy, "-", "-")
    for line in report["files"]:
        table.add_row(
            line_name(line),
            shown(line["bytes"], ".2f", 1e6),
            shown(line["max_logit_difference"], ".1e"),
            shown(line["mean_logit_difference"], ".1e"),
            shown(line["top1_agreement"], ".2%"),
            shown(line["accuracy"], ".4f"),
            shown(line["latency_ms"], ".2f") if line["passed"] else "FAILED",
            shown(line["peak_bytes"], ".0f", 1e6),
        )
    console.print(table)


def _stages(name, form):
    """The table of a model's cost by stage."""
    from keras_resnext.complexity import count_complexity
    from keras_resnext.complexity import total
    from keras_resnext.variants import build

    network = build(name, form=form)
    counts = count_complexity(network)
    stages = {}
    for layer, count in counts.by_layer.items():
        stages.setdefault(layer.partition("_")[0], {})[layer] = count
    height, width = network.input_shape[1:3]
    table = _table(
        "stage",
        *("output", "parameters", "multiply-adds", "activations"),
        title=f"{network.name}, {form}, one image of {height}x{width}",
    )
    rows = [
        (stage, network.get_layer(list(layers)[-1]).output.shape, total(layers))
        for stage, layers in stages.items()
    ]
    for stage, shape, count in [*rows, ("total", (), counts)]:
        table.add_row(
            stage,
            "x".join(str(side) for side in shape[1:]),
            f"{count.params:,}",
            f"{count.multiply_adds:,}",
            f"{count.activations:,}",
        )
    return table


def _print_weights(model):
    from keras_resnext.weights import list_weights

    records = list_weights(model)
    for name in dict.fromkeys(record.model for record in records):
        table = Table(
            "weights",
            "top-1",
            "top-5",
            "pixels",
            "MB",
            "licence",
            title=name,
        )
        for record in list_weights(name):
            table.add_row(
                record.tag + ("" if record.include_top else ", no top"),
                f"{record.top1:.2f}",
                f"{record.top5:.2f}",
                str(record.image_size),
                f"{record.size_mb:.0f}",
                record.license,
            )
        console.print(table)
    console.print(
        "Accuracies in percent of ImageNet's validation images, as published; "
        "none was measured here."
    )


def _print_recipes():
    """Each recipe, by what it changes of the default."""
    import dataclasses

    from keras_resnext.training import RECIPES
    from keras_resnext.training import Recipe

    usual = dataclasses.asdict(Recipe())
    for name, recipe in RECIPES.items():
        table = Table("field", "value", title=name)
        for field, value in dataclasses.asdict(recipe).items():
            if name == "digits" or value != usual[field]:
                table.add_row(field, str(value))
        console.print(table)
    console.print("Fields that a recipe does not list are those of digits.")


def _print_devices():
    import tensorflow as tf

    from keras_resnext.layers import conv_implementation

    for device in tf.config.list_physical_devices():
        details = tf.config.experimental.get_device_details(device)
        name = details.get("device_name", "")
        console.print(f"{device.device_type} {name}".rstrip())
    console.print("Grouped convolutions, see `layers.conv_implementation`:")
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        console.print(f"  {dtype:9} {conv_implementation(dtype)}")


def _print_paper():
    """The paper's tables: costs counted here, errors as published."""
    from keras_resnext.complexity import count_complexity
    from keras_resnext.paper import TABLES
    from keras_resnext.variants import build

    counts = {}
    for title, rows in TABLES.items():
        table = _table(
            "network",
            *("parameters", "multiply-adds"),
            *("top-1 error (published)", "top-5 error (published)"),
            title=title,
        )
        for row in rows:
            key = row.model, row.residual
            if key not in counts:
                with console.status(f"Building {row.label}"):
                    counts[key] = count_complexity(
                        build(row.model, residual=row.residual)
                    )
            table.add_row(
                row.label,
                f"{counts[key].params / 1e6:.2f} M",
                f"{counts[key].multiply_adds / 1e9:.3f} G",
                f"{row.top1} %",
                "-" if row.top5 is None else f"{row.top5} %",
            )
        console.print(table)
    console.print(
        "Parameters and multiply-adds are counted at 224x224; errors are as "
        "published in arXiv 1611.05431 and were not measured here."
    )


def _table(first, *others, title):
    """A table whose columns after the first are numbers."""
    table = Table(first, *others, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _draw_predictions(network, dataset, data_dir, result, picture, crop):
    """All mistakes, as far as they fit, then images classified right."""
    import numpy as np

    from keras_resnext.files import staged
    from keras_resnext.inspection import image_size
    from keras_resnext.training.datasets import open_dataset
    from keras_resnext.training.plots import prediction_grid

    data = open_dataset(dataset, data_dir)
    wrong = result.labels != result.predictions
    shown = np.argsort(~wrong, kind="stable")[:_GRID_IMAGES]
    wanted = {int(i): place for place, i in enumerate(shown)}
    pixels = [None] * len(shown)
    images = data.pixels(
        result.split,
        image_size(network),
        crop=crop,
        without=result.bad_images,
    )
    for i, (image, _) in enumerate(images.as_numpy_iterator()):
        if i in wanted:
            pixels[wanted[i]] = image
    with staged(picture, overwrite=True) as new:
        prediction_grid(
            np.stack(pixels),
            result.labels[shown],
            result.predictions[shown],
            data.labels,
            new,
            title=f"{dataset}, {result.split}: {wrong.sum()} of "
            f"{result.examples} wrong (red)",
        )


def _load(path):
    """A model, the `Run` it came from or `None`, and `ModelMetadata`."""
    import keras

    from keras_resnext.training.run import ModelMetadata
    from keras_resnext.training.run import Run
    from keras_resnext.training.run import read_metadata

    if path.is_dir():
        run = Run(path)
        return (
            run.load_model(),
            run,
            ModelMetadata(run.labels, run.recipe.crop_pct),
        )
    if path.suffix == ".keras" and path.is_file():
        return keras.saving.load_model(path), None, read_metadata(path)
    raise ValueError(
        "`model` must be the folder of a training run or a .keras file; got "
        f"{path}."
    )


def _load_published(model, weights):
    """A model with published weights, and their record."""
    from keras_resnext.variants import build
    from keras_resnext.weights import get_weights
    from keras_resnext.weights.read import reader_of

    if weights and (reader_of(weights) or os.path.exists(weights)):
        raise ValueError(
            "`weights` must be a tag of `list --weights`, whose transform is "
            f"known; got the file {weights!r}."
        )
    record = get_weights(str(model), weights)
    shape = (record.image_size, record.image_size, 3)
    return build(str(model), weights=weights, input_shape=shape), record


def _check_accuracy(accuracy, at_least):
    if at_least is not None and accuracy < at_least:
        raise RuntimeError(
            f"The accuracy must be at least {at_least}; it is {accuracy:.4f}."
        )


def _evaluate_published(
    model, weights, dataset, split, batch_size, data_dir, on_bad_image
):
    """With the record's transform; prints its published accuracy beside."""
    from keras_resnext.training import evaluate
    from keras_resnext.training.datasets import open_dataset

    if dataset is None:
        raise ValueError("`dataset` must be given with published weights.")
    open_dataset(dataset, data_dir)  # or say so before downloading
    network, record = _load_published(model, weights)
    result = evaluate(
        network,
        dataset,
        split=split,
        batch_size=batch_size,
        data_dir=data_dir,
        transform=record.transform,
        on_bad_image=on_bad_image,
    )
    table = _table("", "top-1 (%)", "top-5 (%)", "images", title=record.name)
    table.add_row(
        f"published by {record.measured_by}, ImageNet",
        f"{record.top1:.3f}",
        f"{record.top5:.3f}",
        "",
    )
    table.add_row(
        f"measured, {dataset}, split {result.split}",
        f"{100 * result.accuracy:.3f}",
        f"{100 * result.top5_accuracy:.3f}",
        str(result.examples),
    )
    console.print(table)
    _print_bad_images(result.bad_images)
    return result.accuracy


def _print_bad_images(names):
    if names:
        console.print(
            f"{len(names)} more could not be decoded and were left out: "
            f"{escape(', '.join(names))}."
        )


def _dataset_of(run, dataset, data_dir):
    """The data set asked for, or the run's; with the run's classes."""
    from keras_resnext.training.datasets import open_dataset

    if dataset is None and run is None:
        raise ValueError(
            "`dataset` must be given for a model that is not a run's folder; "
            "got none."
        )
    dataset = dataset or run.recipe.dataset
    if run is not None:
        data = open_dataset(dataset, data_dir)
        data.prepare()  # or some names would not be known
        run.check_labels(data.labels)
    return dataset


@contextlib.contextmanager
def _training_progress():
    """A bar over the whole run, and a line above it for each epoch."""
    with Progress(
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(bar_width=10),
        TextColumn(
            "loss {task.fields[loss]:.3f} accuracy {task.fields[accuracy]:.3f} "
            "{task.fields[speed]:.0f} images/s, left"
        ),
        TimeRemainingColumn(compact=True),
        console=console,
    ) as bar:
        task = None

        def on_step(progress):
            nonlocal task
            fields = {
                "epoch": progress.epoch,
                "loss": progress.loss,
                "accuracy": progress.accuracy,
                "speed": progress.images_per_second,
            }
            if task is None:
                # A resumed run starts its clock where it goes on.
                task = bar.add_task(
                    "", total=progress.steps, completed=progress.step, **fields
                )
            else:
                bar.update(task, completed=progress.step, **fields)

        def on_epoch(entry):
            bar.print(
                f"epoch {entry['epoch']:3d}: loss {entry['loss']:.4f}, "
                f"accuracy {entry['accuracy']:.4f}; held out "
                f"{entry['val_loss']:.4f}, "
                f"{entry['val_accuracy']:.4f}; "
                f"{entry['images_per_second']:.0f} images/s"
                + (
                    ""
                    if entry["waiting"] is None
                    else f", {entry['waiting']:.1%} waiting for them"
                )
            )

        yield on_step, on_epoch


def _start_tensorflow(strategy=None):
    """Import TensorFlow without its greeting, and make a strategy.

    Its libraries write to standard error before any log level counts. What
    they write is kept, and shown if the import fails.
    """

    def start():
        import tensorflow as tf

        if strategy is None:
            tf.config.list_logical_devices()
            return None
        from keras_resnext.training.strategy import make_strategy

        return make_strategy(strategy)

    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0":
        return start()
    sys.stderr.flush()
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as greeting:
        os.dup2(greeting.fileno(), 2)
        try:
            return start()
        except BaseException:
            greeting.seek(0)
            os.write(standard_error, greeting.read())
            raise
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
