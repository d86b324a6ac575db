"""The command line: it parses and prints; the work is done elsewhere.

Nothing heavy is imported before a command needs it, so that `--help` answers
at once.
"""

import contextlib
import enum
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
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


class Format(enum.StrEnum):
    """What `export` can write; also the names in its table."""

    savedmodel = "savedmodel"
    tflite = "tflite"
    onnx = "onnx"


_FILE_NAMES = {
    Format.savedmodel: "saved_model",
    Format.tflite: "model.tflite",
    Format.onnx: "model.onnx",
}
# What proves a file, where it is not TensorFlow itself.
_RUNTIMES = {Format.tflite: "ai_edge_litert", Format.onnx: "onnxruntime"}
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
    from keras_resnext.resnext import list_models

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
    freeze: Annotated[
        str | None,
        typer.Option(
            help="Last part that is not trained, such as conv3; with all "
            "before it."
        ),
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="auto, one, mirrored, multiworker or tpu.")
    ] = "auto",
    steps_per_call: Annotated[
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
        "freeze": freeze,
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
            steps_per_call=steps_per_call,
            save_every_steps=save_every_steps,
            keep=keep,
            on_bad_image=on_bad_image,
            deterministic=deterministic,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    accuracy = [entry["held_out_accuracy"] for entry in run.history[-1:]]
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
            named, weights, dataset, split, batch_size, data_dir
        )
        _check_accuracy(accuracy, at_least)
        return
    network, run = _load(model)
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
        crop=_crop_of(run),
        on_bad_image=on_bad_image,
    )
    console.print(
        f"{dataset}, split {result.split}: all {result.examples} images seen, "
        f"{round(result.accuracy * result.examples)} right. "
        f"Accuracy {result.accuracy:.4f}, loss {result.loss:.4f}."
    )
    if picture is not None:
        _draw_predictions(
            network, dataset, data_dir, result, picture, _crop_of(run)
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
    from keras_resnext.preprocessing import check_classifier
    from keras_resnext.preprocessing import image_size
    from keras_resnext.preprocessing import imagenet_labels
    from keras_resnext.preprocessing import preprocess_input
    from keras_resnext.preprocessing import read_image
    from keras_resnext.preprocessing import read_photo

    if weights is not None:
        photos = [read_photo(path) for path in images]
        network, record = _load_published(model, weights)
        labels, transform = imagenet_labels(), record.transform()
        inputs = [transform(photo) for photo in photos]
    else:
        network, run = _load(model)
        check_classifier(network)
        labels = run.labels if run else None
        size, crop = image_size(network), _crop_of(run)
        inputs = [
            preprocess_input(read_image(path, size, crop=crop))
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
    model: ModelArgument,
    formats: Annotated[
        str, typer.Option("--format", help="Some of them, with commas.")
    ] = ",".join(Format),
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set to compare on. Without one: the run's; for a "
            ".keras file, images of noise."
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
    data_dir: DataDirOption = None,
):
    """Write a model in other formats, and prove each file in its own runtime.

    Every file is loaded back and compared with Keras on the held-out images
    before it is put in place.
    """
    chosen = [_check_format(name) for name in formats.split(",")]
    _start_tensorflow()
    from keras_resnext import export as exporters
    from keras_resnext.extras import require
    from keras_resnext.files import check_free

    for name in chosen:
        if name in _RUNTIMES:
            require(
                _RUNTIMES[name], extra="export", purpose=f"The {name} check"
            )

    network, run = _load(model)
    if output is None:
        output = (model if run else model.parent) / "export"
    paths = {name: output / _FILE_NAMES[name] for name in chosen}
    for path in paths.values():
        check_free(path, overwrite=overwrite)
    images = classes = None
    if data or run:
        images, classes = _held_out_pixels(
            network,
            _dataset_of(run, data, data_dir),
            data_dir,
            max_images,
            _crop_of(run),
        )
    write = {
        Format.savedmodel: exporters.to_saved_model,
        Format.tflite: exporters.to_tflite,
        Format.onnx: exporters.to_onnx,
    }
    artifacts = []
    for name, path in paths.items():
        with console.status(f"Writing and checking {path}"):
            artifacts.append(
                write[name](
                    network,
                    path,
                    labels=run.labels if run else None,
                    images=images,
                    overwrite=overwrite,
                )
            )
    console.print(_comparison(network, artifacts, images, classes))
    for artifact in artifacts:
        console.print(f"Wrote {artifact.path}.")


def _stages(name, form):
    """The table of a model's cost by stage."""
    from keras_resnext.complexity import count_complexity
    from keras_resnext.complexity import total
    from keras_resnext.resnext import build

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

    from keras_resnext.layers import convolution_path

    for device in tf.config.list_physical_devices():
        details = tf.config.experimental.get_device_details(device)
        name = details.get("device_name", "")
        console.print(f"{device.device_type} {name}".rstrip())
    console.print("Grouped convolutions, see `layers.convolution_path`:")
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        console.print(f"  {dtype:9} {convolution_path(dtype)}")


def _print_paper():
    """The paper's tables: costs counted here, errors as published."""
    from keras_resnext.complexity import count_complexity
    from keras_resnext.paper import TABLES
    from keras_resnext.resnext import build

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


def _comparison(network, artifacts, images, classes):
    """The table of formats beside Keras, on the same images."""
    import numpy as np

    from keras_resnext.export import artifact as measures

    if images is None:
        images = measures.noise(network)
    keras_run = measures.keras_runner(network, "imagenet")
    rows = [("keras", None, keras_run(images), keras_run, None)] + [
        (a.format, a.size, a.scores, a.open(), a) for a in artifacts
    ]
    table = _table(
        "format",
        *("size (MB)", "logit difference", "top-1 agreement"),
        *("accuracy", "latency (ms)"),
        title=f"{len(images)} images, each in the format's own runtime; "
        f"latency: median, batch 1, all {os.cpu_count()} cores",
    )
    for name, size, scores, run, proof in rows:
        accuracy = (
            "-"
            if classes is None
            else f"{np.mean(scores.argmax(-1) == classes):.4f}"
        )
        table.add_row(
            name,
            "-" if size is None else f"{size / 1e6:.2f}",
            "-" if proof is None else f"{proof.max_logit_difference:.1e}",
            "-" if proof is None else f"{proof.top1_agreement:.2%}",
            accuracy,
            f"{measures.latency(run, images):.2f}",
        )
    return table


def _held_out_pixels(network, dataset, data_dir, max_images, crop):
    import numpy as np

    from keras_resnext.preprocessing import image_size
    from keras_resnext.training.data import open_dataset

    size = image_size(network)
    data = open_dataset(dataset, data_dir)
    data.prepare()
    images = data.pixels(data.held_out_split, size, crop=crop).take(max_images)
    pixels, classes = zip(*images.as_numpy_iterator(), strict=True)
    return np.stack(pixels), np.stack(classes)


def _draw_predictions(network, dataset, data_dir, result, picture, crop):
    """All mistakes, as far as they fit, then images classified right."""
    import numpy as np

    from keras_resnext.files import staged
    from keras_resnext.preprocessing import image_size
    from keras_resnext.training.data import open_dataset
    from keras_resnext.training.plots import prediction_grid

    data = open_dataset(dataset, data_dir)
    wrong = result.labels != result.predictions
    shown = np.argsort(~wrong, kind="stable")[:_GRID_IMAGES]
    wanted = {int(i): place for place, i in enumerate(shown)}
    pixels = [None] * len(shown)
    images = data.pixels(result.split, image_size(network), crop=crop)
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
    """A model and the `Run` it came from, `None` for a file."""
    import keras

    from keras_resnext.training.workdir import Run

    if path.is_dir():
        run = Run(path)
        return run.load_model(), run
    if path.suffix == ".keras" and path.is_file():
        return keras.saving.load_model(path), None
    raise ValueError(
        "`model` must be the folder of a training run or a .keras file; got "
        f"{path}."
    )


def _load_published(model, weights):
    """A model with published weights, and their record."""
    from keras_resnext.resnext import build
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


def _evaluate_published(model, weights, dataset, split, batch_size, data_dir):
    """With the record's transform; prints its published accuracy beside."""
    from keras_resnext.training import evaluate
    from keras_resnext.training.data import open_dataset

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
        transform=record.transform(),
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
    return result.accuracy


def _crop_of(run):
    """Which square of an image a run's model was evaluated on."""
    return run.recipe.eval_crop if run else 1.0


def _dataset_of(run, dataset, data_dir):
    """The data set asked for, or the run's; with the run's classes."""
    from keras_resnext.training.data import open_dataset

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


def _check_format(name):
    if name not in list(Format):
        raise ValueError(
            f"`format` must be some of {', '.join(Format)}; got {name!r}."
        )
    return Format(name)


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
                f"{entry['held_out_loss']:.4f}, "
                f"{entry['held_out_accuracy']:.4f}; "
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
